"""Shows the preflight when there is one, before the first step."""

from __future__ import annotations

import lightning as L

from pgu_lightning.callback import PGUCallback
from pgu_lightning.report import print_preflight


class ShowPreflight(L.Callback):
    """Stands after a ``PGUCallback``, whose preflight is there once its own hook has run."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print it, on one process."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, PGUCallback) and callback.preflight is not None and trainer.is_global_zero:
                print_preflight(callback.preflight)
