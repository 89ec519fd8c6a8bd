"""Loaders of a part of a user's data, and batches that are the same on any number of processes and after an interruption.

Samples are dealt out as ``rank::world`` of a fixed order, so that nothing is padded and nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from pgu_lightning import distributed
from pgu_lightning.views import View


class SharedBatches(DistributedSampler[list[int]]):
    """Random batches of a dataset that do not depend on the number of processes, of which each process takes every ``world``-th sample.

    Lightning leaves a ``DistributedSampler`` as it is. Give it to a loader of ``InBatches(dataset)`` as ``sampler``, with
    ``batch_size=None``.

    Args:
        rows: Length of the dataset.
        sizes: Samples of each batch, over all processes. Where they come to more than ``rows``, a new order begins.
        seed: With the epoch, what the order depends on.

    Attributes:
        start: How many batches are passed over when iterating.

    Example:
        >>> [len(batch) for batch in SharedBatches(rows=3, sizes=[2, 1])]
        [2, 1]
    """

    def __init__(self, rows: int, sizes: Sequence[int], seed: int = 0) -> None:
        super().__init__(range(rows), num_replicas=distributed.world(), rank=distributed.rank(), seed=seed)  # type: ignore[arg-type]
        self._rows, self._sizes = rows, list(sizes)
        self.start = 0

    def batches(self) -> list[list[int]]:
        """This process's part of each batch of the whole epoch."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        orders = [torch.randperm(self._rows, generator=generator) for _ in range(-(-sum(self._sizes) // self._rows))]
        parts = torch.cat(orders)[: sum(self._sizes)].split(self._sizes)
        return [part[distributed.rank() :: distributed.world()].tolist() for part in parts]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches()[self.start :])

    def __len__(self) -> int:
        return len(self._sizes)


class InBatches(Dataset[Any]):
    """A dataset that is asked for a batch at once, so that a loader can be told its batches."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._samples = View(dataset, torch.arange(len(dataset)))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, positions: list[int]) -> list[Any]:
        return self._samples.__getitems__(positions)


def batch_sizes(rows: int, largest: int) -> list[int]:
    """Even batches of at most ``largest`` samples, in each of which every process of the data group has at least one.

    Raises:
        ValueError: If there are fewer samples than processes.

    Example:
        >>> batch_sizes(rows=11, largest=4)
        [4, 4, 3]
    """
    if rows < distributed.world():
        raise ValueError(f"{rows} samples cannot be shared by {distributed.world()} processes, each needs one: use fewer processes.")
    batches = min(-(-rows // largest), rows // distributed.world())
    return [rows // batches + (number < rows % batches) for number in range(batches)]


class Resumable(DataLoader[Any]):
    """A loader in ``SharedBatches`` that Lightning takes up again in the middle of an epoch."""

    _done = _skip = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator begins at its first batch: workers do not look ahead before Lightning has set the sampler's epoch.
        self._done, self._skip = self._skip, 0
        self.sampler.start = self._done  # type: ignore[attr-defined]
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch were given."""
        return {"batches": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Pass over as many, once."""
        self._skip = state["batches"] % len(self)


def over(dataset: Dataset[Any], like: DataLoader[Any], batches: SharedBatches | None = None, shuffle: bool = False) -> DataLoader[Any]:
    """A loader of ``dataset`` with another one's collate function and workers, and its batch size unless the batches are given."""
    make = DataLoader if batches is None else Resumable
    return make(
        dataset if batches is None else InBatches(dataset),
        batch_size=like.batch_size or 128 if batches is None else None,
        sampler=batches,
        shuffle=shuffle,
        collate_fn=like.collate_fn,
        num_workers=like.num_workers,
        pin_memory=like.pin_memory,
        multiprocessing_context=like.multiprocessing_context,
        persistent_workers=like.num_workers > 0,
    )
