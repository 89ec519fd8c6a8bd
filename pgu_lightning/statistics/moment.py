"""Sums of outer products of rows, as they come in: what becomes a Gram matrix.

Three things make it cheap. Products are of float32 and of a bounded number of rows, and are summed in float64, so only small matrices are
ever converted. A Gram matrix is symmetric: what is on and above the diagonal is computed, half the work, and mirrored at the end. And few
rows wait for others until a product costs more than adding it to the sum, which for a wide layer is the larger part otherwise.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Protocol

import torch
from torch import Tensor, nn

from pgu_lightning.statistics.layers import MAX_ROWS, rows

_FEW = 1024
"""Fewer rows than these wait for others. So many of them take an eighth of their matrix where there are 4,096 columns."""


def block(dim: int) -> int:
    """Rows of a symmetric product that are computed at a time, from the diagonal on: few do little in vain, many are nearer to the peak."""
    return max(64, min(256, dim // 8))


class Moment(Protocol):
    """A sum of outer products that is added to."""

    def add(self, x: Tensor) -> None:
        """Add those of the rows that the layer multiplies when it is given ``x``, which is not kept."""

    def result(self) -> tuple[Tensor, int]:
        """The matrix, (groups, dim, dim) in float64, and the number of rows. Nothing is added after that."""


class RowMoment:
    """The sum for a layer of which ``rows`` is known, and nothing else.

    Args:
        layer: The layer.
        place: Where the sum is kept; None: where the rows are.
    """

    def __init__(self, layer: nn.Module, place: torch.device | None = None) -> None:
        self._layer, self._place = layer, place
        self._count = 0
        self._total: Tensor | None = None
        self._waiting: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """See ``Moment``."""
        self.add_rows(rows(self._layer, x))

    def add_rows(self, every: Tensor) -> None:
        """Add those of rows, (groups, rows, dim), as ``rows(layer, x)`` gives them, which are not kept."""
        self._count += every.shape[1]
        if every.shape[1] >= _FEW:
            self._multiply(every)
            return
        if self._waiting and self._waiting[0].shape[0] != every.shape[0]:
            self._flush()
        self._waiting.append(every.clone())
        if sum(part.shape[1] for part in self._waiting) >= _FEW:
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._multiply(torch.cat(waiting, 1))

    def _multiply(self, every: Tensor) -> None:
        groups, _, dim = every.shape
        if self._total is None:
            self._total = torch.zeros((groups, dim, dim), dtype=torch.float64, device=self._place or every.device)
        if len(self._total) < groups:  # one group that stood for several that had the same rows so far
            self._total = self._total.repeat(groups, 1, 1)
        side = block(dim)
        for chunk in every.split(MAX_ROWS, 1):
            for start in range(0, dim, side):
                one, other = chunk[..., start : start + side], chunk[..., start:]
                product = one.mT @ other if groups > 1 else (one[0].T @ other[0])[None]
                self._total[:, start : start + side, start:] += product.to(self._total.device)

    def result(self) -> tuple[Tensor, int]:
        """See ``Moment``."""
        self._flush()
        if self._total is None:
            raise ValueError("nothing was added")
        mirror(self._total)
        return self._total, self._count


def mirror(matrix: Tensor) -> None:
    """Write what stands above the diagonal of each (dim, dim) matrix below it, in place and without a copy of the whole."""
    dim = matrix.shape[-1]
    side = block(dim)
    for start in range(0, dim, side):
        matrix[..., start + side :, start : start + side] = matrix[..., start : start + side, start + side :].mT


@singledispatch
def moment(layer: nn.Module, place: torch.device | None = None) -> Moment:
    """An empty sum for ``layer``; register a type's own where the products can be had without forming the rows.

    Args:
        layer: The layer.
        place: Where the sum is kept; None: where the inputs are.
    """
    return RowMoment(layer, place)


class Counts:
    """The sum for an embedding: how often each token came.

    Args:
        layer: The embedding.
        place: Where the sum is kept; None: where the tokens are.
    """

    def __init__(self, layer: nn.Embedding, place: torch.device | None = None) -> None:
        self._tokens, self._place = layer.num_embeddings, place
        self._counts: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """See ``Moment``."""
        counts = x.reshape(-1).bincount(minlength=self._tokens).to(self._place or x.device)
        self._counts = counts if self._counts is None else self._counts + counts

    def result(self) -> tuple[Tensor, int]:
        """See ``Moment``."""
        assert self._counts is not None
        return self._counts.double().view(-1, 1, 1), int(self._counts.sum())


moment.register(nn.Embedding, Counts)


def second_moment(layer: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """Sum of the outer products of ``rows(layer, x)``.

    Returns:
        The matrix, (groups, dim, dim) in float64, and the number of rows.
    """
    total = moment(layer)
    total.add(x)
    return total.result()
