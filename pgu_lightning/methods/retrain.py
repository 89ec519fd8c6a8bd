"""The reference: train again without the forget set."""

from __future__ import annotations

import lightning as L

from pgu_lightning.methods.base import Job, train
from pgu_lightning.records import Report


class Retrain:
    """Trains a new model on the retained samples with the original's recipe. It reads all that is retained.

    Args:
        name: As in the report.
    """

    uses_retain_data = True

    def __init__(self, name: str = "retrain") -> None:
        self.name = name

    def unlearn(self, job: Job) -> tuple[L.LightningModule, Report | None]:
        """Train, with a seed other than the original's and the reference's."""
        L.seed_everything(job.seed + 30_000, verbose=False)
        module = job.untrained()
        train(module, job.split.retain, job.data, job.trainer(max_epochs=job.epochs, logger=list(job.loggers)))
        return module, None
