"""Every way to forget, behind one interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning as L
from torch.utils.data import Dataset

from pgu_lightning.batches import over
from pgu_lightning.records import Report
from pgu_lightning.requests import ForgetRequest, Split


@dataclass(frozen=True)
class Job:
    """What a method is given.

    Attributes:
        module: The trained model; the method may change it.
        untrained: Makes an untrained model of the same recipe.
        data: The data module it was trained on.
        request: What shall be forgotten.
        split: The training data in two parts.
        retain_space: File with the statistics of the training data.
        trainer: Makes a Trainer; takes ``max_epochs``, ``callbacks`` and ``logger``.
        epochs: Number of epochs of the training recipe.
        seed: Of the run.
        loggers: Where progress is logged.
    """

    module: L.LightningModule
    untrained: Callable[[], L.LightningModule]
    data: L.LightningDataModule
    request: ForgetRequest
    split: Split
    retain_space: Path
    trainer: Callable[..., L.Trainer]
    epochs: int
    seed: int
    loggers: tuple[Any, ...] = ()


class Method(Protocol):
    """A way to forget.

    Attributes:
        name: As in the report.
        uses_retain_data: Whether it reads retained data.
    """

    name: str
    uses_retain_data: bool

    def unlearn(self, job: Job) -> tuple[L.LightningModule, Report | None]:
        """The model after forgetting, and the callback's report where there is one."""


def train(
    module: L.LightningModule,
    samples: Dataset[Any],
    data: L.LightningDataModule,
    trainer: L.Trainer,
) -> None:
    """Fit ``module`` on ``samples`` with the data module's own training and validation loaders, everything else as in its recipe."""
    like = data.train_dataloader()
    loader = over(samples, like, shuffle=True)
    trainer.fit(module, loader, data.val_dataloader())
