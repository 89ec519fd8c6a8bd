"""Projected-gradient unlearning: the callback in a fit of its own."""

from __future__ import annotations

import dataclasses

import lightning as L
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from pgu_lightning.callback import PGUCallback
from pgu_lightning.methods.base import Job
from pgu_lightning.records import Report
from pgu_lightning.settings import Settings


class PGU:
    """Hoang et al., "Learn to Unlearn for Deep Neural Networks: Minimizing Unlearning Interference with Gradient Projection", WACV 2024.

    Args:
        name: As in the report.
        settings: The algorithm.
        epochs: At most so many passes over the forget set.
        repair: Where the stop rule is not met: the number of retained samples to go on with, below 1 their share; None: none.
    """

    uses_retain_data = False

    def __init__(self, name: str, settings: Settings, epochs: int, repair: float | None = None) -> None:
        self.name, self._settings, self._epochs, self._repair = name, settings, epochs, repair

    def unlearn(self, job: Job) -> tuple[L.LightningModule, Report | None]:
        """Run one fit with the callback on the data module; only the forget and the validation samples of it are read, before a repair."""
        callback = PGUCallback(job.request, retain_space=job.retain_space, settings=self._settings, repair=self._repair)
        trainer = job.trainer(max_epochs=self._epochs, callbacks=[callback], logger=list(job.loggers))
        trainer.fit(job.module, datamodule=job.data)
        assert callback.report is not None
        assert callback.space is not None
        if trainer.is_global_zero:
            callback.space.save(job.retain_space)  # what belongs to the model as it is now, fulfilled or not
        done = callback.report.method
        method = dataclasses.replace(done, name=self.name, settings={**done.settings, "epochs": self._epochs})
        return job.module, dataclasses.replace(callback.report, method=method)


def exponential_decay(optimizer: Optimizer, end: float, epochs: int) -> ExponentialLR:
    """A schedule from the optimizer's learning rate to ``end`` over ``epochs``.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.05)
        >>> schedule = exponential_decay(optimizer, end=0.01, epochs=100)
        >>> for _ in range(100):
        ...     optimizer.step()
        ...     schedule.step()
        >>> round(schedule.get_last_lr()[0], 6)
        0.01
    """
    return ExponentialLR(optimizer, (end / optimizer.param_groups[0]["lr"]) ** (1 / epochs))
