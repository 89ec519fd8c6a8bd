"""The Gram matrix of what a layer receives: a value with arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Gram:
    """Sum of the outer products of a layer's input rows, one matrix a channel group.

    ``full - forget`` is the Gram of the retained data when both were collected at the same weights.

    Attributes:
        matrix: (groups, dim, dim), float64.
        rows: Number of rows summed (for a convolution: patches).

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

    @property
    def dim(self) -> int:
        """Input dimension of one group."""
        return self.matrix.shape[-1]

    def __add__(self, other: Gram) -> Gram:
        return Gram(self.matrix + other.matrix, self.rows + other.rows)

    def __sub__(self, other: Gram) -> Gram:
        return Gram(self.matrix - other.matrix, self.rows - other.rows)

    def response(self, weight: Tensor) -> float:
        """tr(W M W^T): the summed squared response of ``weight``, (groups, out, dim), to all rows."""
        weight = weight.to(self.matrix)
        return float(((weight @ self.matrix) * weight).sum())
