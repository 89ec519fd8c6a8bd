"""The plainest reference that starts from the trained model: go on training without the forget set."""

from __future__ import annotations

import lightning as L

from pgu_lightning.methods.base import Job, train
from pgu_lightning.records import Report


class Finetune:
    """Trains on the retained samples for a few more epochs, with the recipe's optimizer from its start. It reads all that is retained.

    Args:
        name: As in the report.
        epochs: Passes over the retained samples.
    """

    uses_retain_data = True

    def __init__(self, name: str, epochs: int) -> None:
        self.name, self._epochs = name, epochs

    def unlearn(self, job: Job) -> tuple[L.LightningModule, Report | None]:
        """Train the model that was given."""
        train(job.module, job.split.retain, job.data, job.trainer(max_epochs=self._epochs, logger=list(job.loggers)))
        return job.module, None
