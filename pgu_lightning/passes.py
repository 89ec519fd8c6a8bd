"""Passes over data that change nothing: in eval mode, every sample once, gradients and random states as they were."""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MethodType
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from tqdm import tqdm

from pgu_lightning import distributed
from pgu_lightning.evaluation.scores import Scores
from pgu_lightning.mixin import question
from pgu_lightning.statistics import (
    Collector,
    LayerInfo,
    Provenance,
    RetainSpace,
    check_room,
    fingerprint,
    free_on,
    gram_bytes,
    in_words,
    offloaded,
    survey,
)
from pgu_lightning.views import View

_LOGGER = logging.getLogger(__name__)
_QUANTILES = 200
"""Of the training samples' margins."""


class _Repeatable(Dataset[Any]):
    """A dataset dealt out to processes, in which random transforms are a function of the sample, not of the pass.

    So the rows that a forget set sends into a layer are among those that the whole set sent, augmentation or not.
    """

    def __init__(self, dataset: Any, batch_size: int, share: float = 1.0) -> None:
        self._dataset = dataset
        every = [position for position in range(len(dataset)) if _is_looked_at(_origin(dataset, position), share)]
        self._positions = every[distributed.rank() :: distributed.world()]
        self.batches = -(-len(self._positions) // batch_size)
        if self.batches < -(-len(every) // (batch_size * distributed.world())):  # of the first process
            self._positions.append(0)  # a batch that does not count: sharded weights wait for every process

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Any:
        position = self._positions[index]
        seed = _origin(self._dataset, position)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        return self._dataset[position]


def _origin(dataset: Any, position: int) -> int:
    while True:
        if isinstance(dataset, View):
            dataset, position = dataset.dataset, int(dataset.positions[position])
        elif isinstance(dataset, Subset):
            dataset, position = dataset.dataset, int(dataset.indices[position])
        else:
            return position


def _is_looked_at(origin: int, share: float) -> bool:
    """Whether a sample is among a share of all: a function of its position alone, spread evenly (golden ratio multiples modulo 1)."""
    return share == 1 or origin * 0x9E3779B97F4A7C15 % 2**64 < share * 2**64


def exact_loader(loader: DataLoader[Any], share: float = 1.0) -> DataLoader[Any]:
    """The same samples in their order, this process's part of them, without shuffling, dropping or repeating any.

    Every process gets as many batches; the dataset's ``batches`` tells how many of them count. With a ``share`` below 1 so many of all
    samples, chosen by their position in the dataset that views and subsets are of.

    Raises:
        TypeError: If the dataset cannot be indexed and there is more than one process or a share is asked for, or if this is no DataLoader.
    """
    if not isinstance(loader, DataLoader):
        raise TypeError(f"Expected a torch DataLoader, got {type(loader).__name__}: give one loader, not a collection of them.")
    if isinstance(loader.dataset, IterableDataset):
        if distributed.world() > 1:
            raise TypeError(
                "An IterableDataset cannot be dealt out to several processes without repeating samples: use a map-style dataset."
            )
        if share != 1:
            raise TypeError("The samples of an IterableDataset have no positions to choose a share by: use a map-style dataset.")
        return loader
    batches_itself = loader.batch_sampler is None
    batch_size = loader.batch_size or 128
    return DataLoader(
        _Repeatable(loader.dataset, 1 if batches_itself else batch_size, share),
        batch_size=None if batches_itself else batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        multiprocessing_context=loader.multiprocessing_context,
    )


def check_outputs(module: L.LightningModule, batch: Any, trainer: L.Trainer) -> None:
    """Try a batch, so that one that is not understood is noticed before any work is spent.

    Raises:
        TypeError: If the module cannot tell logits and labels.
        ValueError: If they have other shapes than (rows, classes) and (rows,).
    """
    with _undisturbed(module), trainer.precision_plugin.forward_context():
        Scores.of(*question(module, "unlearning_outputs")(batch))


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    logs = {name: module.__dict__.get(name) for name in ("log", "log_dict")}
    module.eval()
    for name in logs if isinstance(module, L.LightningModule) else ():
        module.__dict__[name] = MethodType(lambda self, *args, **kwargs: None, module)
    try:
        # Hooks that come after compilation are only called where compiled code is left aside.
        with isolate_rng(), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for name, value in logs.items():
            module.__dict__.pop(name, None)
            if value is not None:
                module.__dict__[name] = value
        for part, training in modes:
            part.training = training
        distributed.reshard(module)


def forward_pass(
    module: nn.Module,
    loader: DataLoader[Any],
    use: Callable[[Tensor, Tensor], object],
    description: str,
    before: Callable[[Any, bool], object] = lambda batch, counts: None,
    trainer: L.Trainer | None = None,
    share: float = 1.0,
) -> None:
    """Run a model over this process's share of a loader's samples.

    Args:
        module: The model.
        loader: Its dataset, batch size and collate function are used.
        use: Called with the logits and labels of each batch.
        description: Words for the progress bar.
        before: Called with each batch before the model is, and whether it counts or only keeps other processes company.
        trainer: Of a running fit, for its device and precision.
        share: Of the samples, as ``exact_loader`` chooses them.
    """
    outputs = question(module, "unlearning_outputs")  # type: ignore[arg-type]
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    shows = distributed.is_first() and (trainer is None or trainer.progress_bar_callback is not None)
    with _undisturbed(module):
        # Nothing is shown of a pass that takes less than a second, or where nobody looks.
        batches = exact_loader(loader, share)
        real = getattr(batches.dataset, "batches", sys.maxsize)
        for number, batch in enumerate(tqdm(batches, desc=description, leave=False, delay=1, disable=None if shows else True)):
            if trainer is None:
                batch = move_data_to_device(batch, device)
                before(batch, number < real)
                found = outputs(batch)
            else:
                batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                before(batch, number < real)
                # Without autocast, so that what was collected under one precision can be subtracted from what was under another.
                with trainer.precision_plugin.forward_context(), torch.autocast(device.type, enabled=False):
                    found = outputs(batch)
            if number < real:
                use(*found)


def collect(
    model: nn.Module,
    loader: DataLoader[Any],
    *,
    layers: Sequence[str] | None = None,
    place: Literal["device", "cpu"] | None = None,
    samples: float | None = None,
    trainer: L.Trainer | None = None,
    description: str = "Collecting",
) -> RetainSpace:
    """Take down what the samples of ``loader`` look like inside each layer of ``model``: one pass in eval mode.

    Args:
        model: The model, at its final weights. If its batch is not ``(x, y)``, it answers ``unlearning_outputs`` (see ``PGUMixin``).
        loader: All samples are used once, whatever its sampler.
        layers: Shell patterns of the layers to protect; the others will be frozen. None: all that can be.
        place: Where the matrices are summed: on the ``"device"`` that the model is on, or on the ``"cpu"``, to which each batch's are then
            copied. None: on the device as far as they fit, and a warning says which do not.
        samples: Look at this share of the samples only, chosen by their position in the dataset: faster, and not exact. None: all.
        trainer: Of a running fit; inside one the callback calls this.
        description: Words for the progress bar.

    Returns:
        The statistics, the same on every process.

    Raises:
        ValueError: If there are no samples, no layer can be protected, or the statistics do not fit into memory.

    Example:
        >>> data = torch.utils.data.TensorDataset(torch.eye(2), torch.tensor([0, 1]))
        >>> space = collect(nn.Sequential(nn.Linear(2, 2)), DataLoader(data))
        >>> space.grams["0"].matrix.tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
    """
    distributed.reshard(model)  # after a validation pass it may own gathered copies in place of its weights
    found = survey(model, layers)
    check_room(found, 1 if trainer is None else trainer.num_devices)
    away, share = _on_cpu(model, found, place), samples or 1.0
    mask = question(model, "row_mask")  # type: ignore[arg-type]

    def taken_down(shared: bool) -> tuple[Collector, int, list[Tensor]]:
        collector, seen, margins = Collector(model, found, away, shared), 0, [torch.empty(0)]

        def before(batch: Any, counts: bool) -> None:
            collector.mask, collector.counts = mask(batch), counts

        def count(logits: Tensor, target: Tensor) -> None:
            nonlocal seen
            seen += len(target)
            with suppress(ValueError):  # statistics need no labels: where there are none, a forget set is not compared
                margins.append(Scores.of(logits, target).margin)

        with collector:
            forward_pass(model, loader, count, description, before, trainer, share)
        return collector, seen, margins

    collector, number, margins = taken_down(shared=True)
    if not collector.agrees():  # the model does not do the same in every call
        collector, number, margins = taken_down(shared=False)
    if not isinstance(loader.dataset, IterableDataset):
        number = len(loader.dataset)  # type: ignore[arg-type]
    if not number:
        raise ValueError("The loader has no samples: there is nothing to collect.")
    grams, infos = collector.result()
    every = torch.cat(distributed.gather(torch.cat(margins)))
    quantiles = tuple(np.quantile(every.numpy(), (np.arange(_QUANTILES) + 0.5) / _QUANTILES).tolist()) if len(every) else ()
    return RetainSpace(grams, infos, Provenance(fingerprint(model), number, _transforms(loader.dataset), share=share, margins=quantiles))


def _on_cpu(model: nn.Module, layers: Sequence[LayerInfo], place: Literal["device", "cpu"] | None) -> frozenset[str]:
    sizes, device = gram_bytes(layers), next(model.parameters()).device
    if place is not None:
        return frozenset(sizes if place == "cpu" else ())
    away = offloaded(sizes, free := free_on(device))
    if away:
        _LOGGER.warning(
            f"The statistics need {in_words(sizes)}, and {free / 1e9:.1f} GB of {device} are free: "
            f"{', '.join(sorted(away))} are summed on the CPU, which is slower."
        )
    return away


def _transforms(dataset: Any) -> str:
    while isinstance(dataset, (View, Subset)):
        dataset = dataset.dataset
    words = repr(getattr(dataset, "transform", None))
    return words.split(" at 0x")[0]  # an address says nothing about the transform


def gradient(
    module: nn.Module,
    loader: DataLoader[Any],
    loss: Callable[[Any, int], Tensor],
    weights: Mapping[str, nn.Parameter],
    trainer: L.Trainer,
) -> dict[str, Tensor]:
    """The gradient of a loss that is a sum over a loader's batches; the model's own ``grad`` are left as they were.

    Args:
        module: The model.
        loader: As many batches on every process.
        loss: Called with each batch and its number.
        weights: What the gradient is taken by.
        trainer: Of a running fit.

    Returns:
        The mean over processes, by the weights' names; of sharded weights this process's part.
    """
    own = {parameter: parameter.grad for parameter in module.parameters()}
    for parameter in own:
        parameter.grad = None
    try:
        with _undisturbed(module), torch.enable_grad(), trainer.precision_plugin.forward_context():
            for number, batch in enumerate(loader):
                batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                with torch.autocast(trainer.strategy.root_device.type, enabled=False):
                    value = loss(batch, number)
                value.backward()  # not autograd.grad: sharded weights get their gradient from a hook
        return {name: distributed.mean_gradient(weight) for name, weight in weights.items()}
    finally:
        for parameter, before in own.items():
            parameter.grad = before


def score(
    module: nn.Module, loader: DataLoader[Any], *, trainer: L.Trainer | None = None, description: str = "Scoring"
) -> tuple[Scores, Tensor]:
    """Per-example scores of all samples of ``loader``, in the dataset's order, the same on every process.

    Args:
        module: The model.
        loader: The samples.
        trainer: Of a running fit.
        description: Words for the progress bar.

    Returns:
        The scores, and the probabilities, (samples, classes).

    Raises:
        ValueError: If there are no samples.
    """
    parts: list[tuple[Scores, Tensor]] = []

    def use(logits: Tensor, target: Tensor) -> None:
        parts.append((Scores.of(logits, target), logits.float().softmax(1).cpu()))

    forward_pass(module, loader, use, description, trainer=trainer)
    gathered = distributed.gather((Scores.concatenate([part for part, _ in parts]), torch.cat([p for _, p in parts])) if parts else None)
    shares = [part for part in gathered if part is not None]
    if not shares:
        raise ValueError("The loader has no samples: there is nothing to score.")
    scores, probabilities = Scores.concatenate([part for part, _ in shares]), torch.cat([p for _, p in shares])
    # rank r holds samples r, r + world, ...: put them back in order
    order = torch.cat([torch.arange(r, len(scores), len(gathered)) for r in range(len(gathered))]).argsort()
    return scores.select(order), probabilities[order]
