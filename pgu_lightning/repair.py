"""The next step where the stop rule was not met: go on, with as much retained data as is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from pgu_lightning import distributed
from pgu_lightning.batches import SharedBatches, batch_sizes, over
from pgu_lightning.requests import Split
from pgu_lightning.settings import Settings
from pgu_lightning.stopping import Decision
from pgu_lightning.unlearner import Unlearner
from pgu_lightning.views import View, size_of

Repair = Dataset[Any] | DataLoader[Any] | float
"""Retained samples; or how many of those in the training loader, below 1 a share of them."""

_RADIUS = 0.01  # for settings without a trust radius: their own step length belongs to projected steps


def retained(given: Repair, split: Split) -> Dataset[Any]:
    """The samples to repair with.

    Args:
        given: As above. Of a number the samples are drawn at random, always the same.
        split: The training samples in two parts.

    Raises:
        TypeError: If it is none of these.
        ValueError: If there are not as many samples, or none.
    """
    if isinstance(given, DataLoader):
        given = given.dataset
    if isinstance(given, bool | str) or not isinstance(given, int | float):
        if isinstance(given, bool | str):
            raise TypeError(
                f"repair= is a map-style dataset of retained samples, a loader of one, or a number, got {type(given).__name__}."
            )
        if not size_of(given):
            raise ValueError("repair= has no samples: leave it out, or give retained ones.")
        return given
    there = len(split.retain)
    wanted = round(given * there) if 0 < given < 1 else int(given)
    if not 0 < wanted <= there:
        where = f"the training loader has {there}" if there else "the training loader has none: give them as a dataset"
        raise ValueError(f"repair={given} is {wanted} retained samples, and {where}.")
    chosen = torch.randperm(there, generator=torch.Generator().manual_seed(0))[:wanted].sort().values
    return View(split.retain.dataset, split.retain.positions[chosen])


def repair(
    unlearner: Unlearner,
    trainer: L.Trainer,
    forget: DataLoader[Any],
    retain: Dataset[Any],
    settings: Settings,
    passes: int,
    end_pass: Callable[[], Decision | None],
) -> Decision | None:
    """Fine-tune on retained samples while the forget objective goes on.

    A step's loss is the forget objective on a batch of the forget set plus cross entropy on one of the retained samples. It is not
    projected: where the retained data itself says what has to stay, its statistics only hold back what repairs. Its length is
    measured as in unlearning, so there is no learning rate to find.

    Args:
        unlearner: After ``finish``; its model is the one that was kept.
        trainer: Of the fit.
        forget: A loader of the forget set.
        retain: The retained samples.
        settings: The algorithm.
        passes: At most so many over the forget set.
        end_pass: Called after each pass: scores the model and says whether it is enough.

    Returns:
        What ``end_pass`` said last.
    """
    parameters = list(unlearner.guard.weights.values())
    unlearner.release(size_of(retain), settings.trust_radius or _RADIUS)
    optimizer = torch.optim.SGD(parameters, lr=1.0)  # where to; how far is measured
    sizes = batch_sizes(size_of(forget.dataset), settings.batch_size)
    largest = max(batch_sizes(size_of(retain), settings.batch_size))
    orders = SharedBatches(size_of(forget.dataset), sizes), SharedBatches(size_of(retain), [largest] * len(sizes))
    loaders = over(forget.dataset, forget, orders[0]), over(retain, forget, orders[1])
    decision = None
    for number in range(passes):
        for order in orders:
            order.set_epoch(number)
        for samples, *batches in zip(orders[0].batches(), *loaders, strict=True):
            parts = [trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch)) for batch in batches]
            optimizer.zero_grad()
            with trainer.precision_plugin.forward_context():
                loss = unlearner.loss(parts[0], None, torch.tensor(samples), parts[1])
            loss.backward()
            for parameter in parameters:  # no strategy averages them here
                if parameter.grad is not None:
                    distributed.local(parameter.grad).copy_(distributed.mean_gradient(parameter))
            unlearner.check_gradients(parameters)
            optimizer.step()
            unlearner.after_step()
        decision = end_pass()
        if decision is not None and decision.fulfilled:
            break
    return decision
