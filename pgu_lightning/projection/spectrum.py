"""Eigenvalues of a Gram matrix, and of its eigenvectors what a rule needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pgu_lightning import distributed
from pgu_lightning.projection.rules import NOISE, Soft
from pgu_lightning.statistics.gram import Gram

Key = TypeVar("Key")

_NEGATIVE = 0.001  # of where the soft filter turns: eigenvalues below zero by less change no gain by more than this
_SPARE = 8  # columns beyond the rank, for the products that find a matrix' range
_THIN = 0.25  # of the columns: with more rows than that, the range is no cheaper than everything (`python -m benchmarks.decompose`)


@dataclass(frozen=True)
class Spectrum:
    """M = V diag(values) V^T, group by group.

    A Gram matrix that came of a subtraction need not be positive: eigenvalues below zero are set to zero, since no data can have them, and
    the share of the mass that went is reported.

    Attributes:
        values: (groups, dim), ascending, >= 0, float64.
        vectors: (groups, dim, r), eigenvectors in columns: of the last r values, where the others are 0 and r may be less than dim.
        clamped: Summed size of the eigenvalues below zero over the summed size of all, in [0, 1].
        matrix: The Gram matrix without what was clamped, (groups, dim, dim).

    Example:
        >>> matrix = torch.diag(torch.tensor([3.0, -1.0], dtype=torch.float64))[None]
        >>> spectrum = Spectrum.of(Gram(matrix, rows=4))
        >>> spectrum.values.tolist(), spectrum.clamped
        ([[0.0, 3.0]], 0.25)
    """

    values: Tensor
    vectors: Tensor
    clamped: float
    matrix: Tensor

    @classmethod
    def of(cls, gram: Gram) -> Spectrum:
        """Decompose ``gram``.

        Raises:
            ValueError: If the matrix has values that are not finite.
        """
        _check(gram)
        return cls._clamped(gram, *_eigen(gram))

    @classmethod
    def of_all(cls, grams: Mapping[Key, Gram], soft: Mapping[Key, Soft]) -> dict[Key, Spectrum | Damped]:
        """Decompose matrices that all processes have alike; the work is shared out by its cost, groups * dim^3.

        Args:
            grams: Sums over all processes, by any key.
            soft: The rule of those of which nothing but this rule's filter is needed.

        Returns:
            Their spectra, the same on every process to the bit; for a soft rule its filter, unless much had to be clamped.

        Raises:
            ValueError: If a matrix has values that are not finite.
        """
        for gram in grams.values():
            _check(gram)
        keys = list(grams)
        parts = distributed.spread(
            [grams[key].matrix.shape[0] * grams[key].dim ** 3 for key in keys],
            lambda task: _damped(grams[keys[task]], soft[keys[task]]) if keys[task] in soft else _eigen(grams[keys[task]]),
        )
        found: dict[Key, Spectrum | Damped] = {}
        for key, (values, square) in zip(keys, parts, strict=True):
            if key in soft and _is_positive(values, soft[key]):
                found[key] = Damped(values.clamp(min=0), square, _negative_share(values), grams[key].matrix)
            else:
                found[key] = cls._clamped(grams[key], values, square)
        return found

    def operator(self, gains: Tensor) -> Tensor:
        """V diag(gains) V^T, (groups, dim, dim), for gains of the eigenvalues, (groups, dim)."""
        known = self.vectors.shape[-1]
        if known == gains.shape[-1]:
            return (self.vectors * gains[:, None, :]) @ self.vectors.mT
        others = gains[:, :1]  # all that have the eigenvalue 0
        turned = (self.vectors * (gains[:, -known:] - others)[:, None, :]) @ self.vectors.mT
        return turned + others[..., None] * torch.eye(gains.shape[-1], dtype=gains.dtype)

    @classmethod
    def _clamped(cls, gram: Gram, values: Tensor, vectors: Tensor) -> Spectrum:
        of_vectors = values[:, values.shape[-1] - vectors.shape[-1] :]
        below = (of_vectors < 0).any(0)
        gone = vectors[..., below]
        matrix = gram.matrix - (gone * of_vectors[:, None, below].clamp(max=0)) @ gone.mT
        return cls(values.clamp(min=0), vectors, _negative_share(values), matrix)


@dataclass(frozen=True)
class Damped:
    """The filter of the soft rule, without eigenvectors: a (M + a)^-1 by Cholesky's method, in half a decomposition's time.

    Attributes:
        values: As of a ``Spectrum``.
        filter: a (M + a)^-1, (groups, dim, dim), float64.
        clamped: As of a ``Spectrum``: here it is rounding, and left in the matrix.
        matrix: The Gram matrix, (groups, dim, dim).
    """

    values: Tensor
    filter: Tensor
    clamped: float
    matrix: Tensor


def _eigen(gram: Gram) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors; of a matrix of few rows the eigenvectors of its range."""
    return _range(gram) or tuple(torch.linalg.eigh(gram.matrix))


def _damped(gram: Gram, rule: Soft) -> tuple[Tensor, Tensor]:
    """Eigenvalues and filter, or eigenvectors where the matrix is not positive."""
    found = _range(gram)
    values = torch.linalg.eigvalsh(gram.matrix) if found is None else found[0]
    if not _is_positive(values, rule):
        return found or tuple(torch.linalg.eigh(gram.matrix))
    if found is None:
        turn = rule.turn(values.clamp(min=0))[..., None]
        damped = gram.matrix + turn * torch.eye(gram.dim, dtype=values.dtype)
        return values, turn * torch.cholesky_inverse(torch.linalg.cholesky(damped))
    thin = Spectrum._clamped(gram, *found)
    return values, thin.operator(rule(thin.values))


def _is_positive(values: Tensor, rule: Soft) -> bool:
    """Whether the filter of the matrix as it is, is that of the matrix without what would be clamped."""
    turn = rule.turn(values.clamp(min=0))
    return bool(((turn > 0) & (values.amin(-1, keepdim=True) >= -_NEGATIVE * turn)).all())


def _range(gram: Gram) -> tuple[Tensor, Tensor] | None:
    """Eigenvalues, and eigenvectors of the range, of a matrix of far fewer rows than columns: exact up to rounding, or None.

    The range is that of a product with random columns (Halko, Martinsson and Tropp, SIAM Review 2011, algorithm 4.4). What is
    left outside is measured: a difference of Grams has more rows than it says if what was subtracted was not part of the whole.
    """
    groups, dim, rows = len(gram.matrix), gram.dim, gram.rows + _SPARE
    if rows > _THIN * dim:
        return None
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(groups, dim, rows, generator=generator, dtype=gram.matrix.dtype)
    for _ in range(2):
        basis = torch.linalg.qr(gram.matrix @ basis).Q
    small = basis.mT @ gram.matrix @ basis
    rest = gram.matrix - basis @ small @ basis.mT
    values, vectors = torch.linalg.eigh((small + small.mT) / 2)
    probe = torch.randn(groups, dim, _SPARE, generator=generator, dtype=gram.matrix.dtype)
    for _ in range(6):
        probe = rest @ torch.nn.functional.normalize(probe, dim=1)
    if bool((probe.norm(dim=1).amax(-1) > NOISE * values.abs().amax(-1)).any()):
        return None
    return torch.nn.functional.pad(values, (dim - rows, 0)), basis @ vectors


def _negative_share(values: Tensor) -> float:
    mass = float(values.abs().sum())
    return float(values.clamp(max=0).abs().sum()) / mass if mass else 0.0


def _check(gram: Gram) -> None:
    if not bool(gram.matrix.isfinite().all()):
        raise ValueError("the Gram matrix has values that are not finite")
