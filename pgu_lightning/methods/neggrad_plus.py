"""Descent on the retained samples and ascent on the forget set, in one loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy

from pgu_lightning.batches import over
from pgu_lightning.methods.base import Job
from pgu_lightning.mixin import question
from pgu_lightning.records import Report


class NegGradPlus:
    """NegGrad+ of Kurmanji et al., "Towards Unbounded Machine Unlearning", NeurIPS 2023. It reads all that is retained.

    Each step takes a batch of retained samples and one of the forget set, which starts again when it is through, and minimises
    alpha * cross entropy(retained) - (1 - alpha) * cross entropy(forget) with the recipe's optimizer from its start.

    Args:
        name: As in the report.
        alpha: Weight of the retained samples, in (0, 1].
        epochs: Passes over the retained samples.

    Raises:
        ValueError: If alpha is outside (0, 1].
    """

    uses_retain_data = True

    def __init__(self, name: str, alpha: float, epochs: int) -> None:
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha must lie in (0, 1], got {alpha}")
        self.name, self._alpha, self._epochs = name, alpha, epochs

    def unlearn(self, job: Job) -> tuple[L.LightningModule, Report | None]:
        """Train the model that was given."""
        like = job.data.train_dataloader()
        parts = {"retain": over(job.split.retain, like, shuffle=True), "forget": over(job.split.forget, like, shuffle=True)}
        trainer = job.trainer(max_epochs=self._epochs, logger=list(job.loggers))
        trainer.fit(_Difference(job.module, self._alpha), CombinedLoader(parts, "max_size_cycle"))
        return job.module, None


class _Difference(L.LightningModule):
    """Another training step around a module."""

    def __init__(self, module: L.LightningModule, alpha: float) -> None:
        super().__init__()
        self.module, self._alpha = module, alpha

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        outputs = question(self.module, "unlearning_outputs")
        retain, forget = (cross_entropy(*outputs(batch[part])) for part in ("retain", "forget"))
        return self._alpha * retain - (1 - self._alpha) * forget

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return self.module.configure_optimizers()
