"""Batches that are the same on any number of processes.

Samples are dealt out as ``rank::world`` of a fixed order, so that nothing is padded and nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

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

    Example:
        >>> [len(batch) for batch in SharedBatches(rows=3, sizes=[2, 1])]
        [2, 1]
    """

    def __init__(self, rows: int, sizes: Sequence[int], seed: int = 0) -> None:
        super().__init__(range(rows), num_replicas=distributed.world(), rank=distributed.rank(), seed=seed)  # type: ignore[arg-type]
        self._rows, self._sizes = rows, list(sizes)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        orders = [torch.randperm(self._rows, generator=generator) for _ in range(-(-sum(self._sizes) // self._rows))]
        for batch in torch.cat(orders)[: sum(self._sizes)].split(self._sizes):
            yield batch[distributed.rank() :: distributed.world()].tolist()

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
