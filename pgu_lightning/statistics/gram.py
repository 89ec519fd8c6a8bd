"""The Gram matrix of what a layer receives: a value with arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gram:
    """Sum of the outer products of a layer's input rows, one matrix a channel group.

    ``full - forget`` is the Gram of the retained data when both were collected at the same weights.

    Attributes:
        matrix: (groups, dim, dim), float64.
        rows: Number of rows summed (for a convolution: patches).
        sums: The sum of the rows themselves, (groups, dim), float64; None where no bias is added to their products, or nobody took it down.

    Example:
        >>> import torch
        >>> one = Gram(torch.eye(2, dtype=torch.float64)[None], rows=2)
        >>> (one + one).rows, (one + one - one).matrix[0, 0, 0].item()
        (4, 1.0)
        >>> one.response(torch.tensor([[[3.0, 4.0]]]))
        25.0
    """

    matrix: Tensor
    rows: int
    sums: Tensor | None = None

    @property
    def dim(self) -> int:
        """Input dimension of one group."""
        return self.matrix.shape[-1]

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.matrix + other.matrix, self.rows + other.rows, _both(torch.add, self.sums, other.sums))

    def __sub__(self, other: Gram) -> Gram:
        return Gram(self.matrix - other.matrix, self.rows - other.rows, _both(torch.sub, self.sums, other.sums))

    def augmented(self) -> Gram:
        """The Gram of the rows with a one behind each: what the matrix [W | b] multiplies.

        Raises:
            ValueError: If the sums of the rows are not known.

        Example:
            >>> Gram(torch.tensor([[[5.0]]]), 2, torch.tensor([[3.0]])).augmented().matrix.tolist()
            [[[5.0, 3.0], [3.0, 2.0]]]
        """
        if self.sums is None:
            raise ValueError("the sums of its rows were not taken down")
        groups, dim = self.sums.shape
        matrix = self.matrix.new_empty(groups, dim + 1, dim + 1)
        matrix[:, :dim, :dim] = self.matrix
        matrix[:, dim, :dim] = matrix[:, :dim, dim] = self.sums
        matrix[:, dim, dim] = self.rows
        return Gram(matrix, self.rows)

    def response(self, weight: Tensor) -> float:
        """tr(W M W^T): the summed squared response of ``weight``, (groups, out, dim), to all rows."""
        weight = weight.to(self.matrix)
        return float(((weight @ self.matrix) * weight).sum())


def _both(combine: Callable[[Tensor, Tensor], Tensor], one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if one is None or other is None else combine(one, other)
