"""Every collective of the package. On one process each of these is the identity.

Work is dealt out as ``rows rank::world`` of a fixed order, so that nothing is padded and nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler


def _active() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if _active() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if _active() else 1


def sum_(tensor: Tensor) -> Tensor:
    """Sum ``tensor`` over all processes, in place, and return it."""
    if _active():
        dist.all_reduce(tensor)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean of ``tensor`` over all processes, as a new tensor."""
    return sum_(tensor.detach().clone()) / world()


def share(rows: int, like: Tensor) -> float:
    """The factor for a mean over this process's ``rows``, so that averaging over processes gives the mean over all rows.

    Args:
        rows: Rows of the global batch that this process holds.
        like: A tensor on the device that collectives run on.

    Example:
        >>> import torch
        >>> share(3, torch.zeros(1))
        1.0
    """
    if not _active():
        return 1.0
    total = int(sum_(torch.tensor(rows, device=like.device)))  # not of like's type: half precision counts to 256
    return rows * world() / total if total else 0.0


def gather(value: Any) -> list[Any]:
    """Every process's ``value``, in order of rank. CPU tensors and plain objects."""
    if not _active():
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


class SharedOrder(DistributedSampler[int]):
    """Random orders of a dataset that do not depend on the number of processes, which take every ``world``-th sample of them.

    So a global batch holds the same samples on any number of processes. Lightning leaves a ``DistributedSampler`` as it is.

    Args:
        rows: Length of the dataset.
        size: Samples in an epoch, over all processes; beyond ``rows`` a new order begins.
        seed: With the epoch, what the order depends on.

    Attributes:
        start: How many of this process's samples are passed over when iterating.

    Example:
        >>> sorted(SharedOrder(rows=3, size=3))
        [0, 1, 2]
    """

    def __init__(self, rows: int, size: int, seed: int = 0) -> None:
        super().__init__(range(rows), num_replicas=world(), rank=rank(), seed=seed)  # type: ignore[arg-type]
        self._rows, self._size = rows, size
        self.start = 0

    def order(self) -> Tensor:
        """This process's samples of the whole epoch, in order."""
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        orders = [torch.randperm(self._rows, generator=generator) for _ in range(-(-self._size // self._rows))]
        return torch.cat(orders)[: self._size][rank() :: world()]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.start :].tolist())

    def __len__(self) -> int:
        return len(range(rank(), self._size, world()))
