"""Right-multiplication of a layer's update by P = V diag(gains) V^T."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pgu_lightning.projection.rules import Rule, Soft
from pgu_lightning.projection.spectrum import Damped, Spectrum

Filter = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Maps an update, (groups, out, dim), to what passes of it, D, and to tr(D M D^T) where that costs next to nothing; None elsewhere."""


class Projector:
    """Removes from an update what would change the layer's response to the retained data.

    For a hard rule this is the solution of: the update nearest to D, subject to D U = 0, with U the protected eigenvectors. The cheaper
    of ``(D N) N^T`` and ``D - (D U) U^T`` is used, N being the free ones: at most the cost of the dense P, which other rules have.

    Args:
        spectrum: Decomposed Gram matrix of the retained data; a ``Damped`` one was made for ``rule``.
        rule: Eigenvalues to gains.
        like: A tensor whose device and floating type the projector shall have.

    Attributes:
        dim: Input dimension of a group.
        rank: Directions of which less than half passes, over all groups.
        free: The other directions.
        clamped: As in the spectrum.
        measured: Filters an update, (groups, out, dim), and says what its response to the retained data is, where that is known by then.

    Example:
        >>> from pgu_lightning.projection.rules import Hard
        >>> from pgu_lightning.statistics.gram import Gram
        >>> gram = Gram(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))[None], rows=1)
        >>> Projector(Spectrum.of(gram), Hard(1.0))(torch.tensor([[[3.0, 4.0]]])).abs().tolist()
        [[[0.0, 4.0]]]
    """

    def __init__(self, spectrum: Spectrum | Damped, rule: Rule, like: Tensor | None = None) -> None:
        like = torch.empty(0) if like is None else like
        gains = rule(spectrum.values)
        passes = gains > 0.5
        self.dim = gains.shape[-1]
        self.rank, self.free = int((~passes).sum()), int(passes.sum())
        self.clamped = spectrum.clamped
        dtype = torch.promote_types(like.dtype, torch.float32)

        def placed(tensor: Tensor) -> Tensor:
            return tensor.to(like.device, dtype)

        self.measured: Filter
        if isinstance(spectrum, Damped) or len(gains) > 1 or not bool(((gains == 0) | (gains == 1)).all()):
            turn = placed(rule.turn(spectrum.values)[..., 0]) if isinstance(rule, Soft) else None
            self.measured = _dense(placed(spectrum.filter if isinstance(spectrum, Damped) else spectrum.operator(gains)), turn)
        else:
            of_vectors = passes[0, -spectrum.vectors.shape[-1] :]
            if self.rank < self.free:
                self.measured = _without(placed(spectrum.vectors[..., ~of_vectors]))
            else:
                self.measured = _within(placed(spectrum.vectors[..., of_vectors]), placed(spectrum.values[passes]))

    def __call__(self, update: Tensor) -> Tensor:
        """Filter ``update``, (groups, out, dim)."""
        return self.measured(update)[0]


def _dense(matrix: Tensor, turn: Tensor | None) -> Filter:
    """D = U P. Of the soft rule P = a (M + a)^-1, so M P = a (I - P), and tr(D M D^T) is a times the inner product of D and U - D."""

    def apply(update: Tensor) -> tuple[Tensor, Tensor | None]:
        allowed = update @ matrix
        return allowed, None if turn is None else (turn * ((update - allowed) * allowed).sum((-2, -1))).sum()

    return apply


def _without(protected: Tensor) -> Filter:
    """D = U - (U B) B^T, B the protected eigenvectors."""

    def apply(update: Tensor) -> tuple[Tensor, Tensor | None]:
        return update - (update @ protected) @ protected.mT, None

    return apply


def _within(free: Tensor, values: Tensor) -> Filter:
    """D = (U N) N^T, N the free eigenvectors with these values; tr(D M D^T) is the sum of the values times the squares of U N."""

    def apply(update: Tensor) -> tuple[Tensor, Tensor | None]:
        parts = update @ free
        return parts @ free.mT, (parts.square() * values).sum()

    return apply
