"""Eigenvalues and eigenvectors of a Gram matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pgu_lightning import distributed
from pgu_lightning.statistics.gram import Gram

Key = TypeVar("Key")


@dataclass(frozen=True)
class Spectrum:
    """M = V diag(values) V^T, group by group.

    A Gram matrix that came of a subtraction need not be positive: eigenvalues below zero are set to zero, since no data can have them, and
    the share of the mass that went is reported.

    Attributes:
        values: (groups, dim), ascending, >= 0, float64.
        vectors: (groups, dim, dim), eigenvectors in columns.
        clamped: Summed size of the eigenvalues below zero over the summed size of all, in [0, 1].

    Example:
        >>> matrix = torch.diag(torch.tensor([3.0, -1.0], dtype=torch.float64))[None]
        >>> spectrum = Spectrum.of(Gram(matrix, rows=4))
        >>> spectrum.values.tolist(), spectrum.clamped
        ([[0.0, 3.0]], 0.25)
    """

    values: Tensor
    vectors: Tensor
    clamped: float

    @classmethod
    def of(cls, gram: Gram) -> Spectrum:
        """Decompose ``gram``.

        Raises:
            ValueError: If the matrix has values that are not finite.
        """
        _check(gram)
        return cls._clamped(*torch.linalg.eigh(gram.matrix))

    @classmethod
    def of_all(cls, grams: Mapping[Key, Gram]) -> dict[Key, Spectrum]:
        """Decompose matrices that all processes have alike; the work is shared out by its cost, groups * dim^3.

        Args:
            grams: Sums over all processes, by any key.

        Returns:
            Their spectra, the same on every process to the bit.

        Raises:
            ValueError: If a matrix has values that are not finite.
        """
        for gram in grams.values():
            _check(gram)
        matrices = [gram.matrix for gram in grams.values()]
        parts = distributed.spread(
            [len(matrix) * matrix.shape[-1] ** 3 for matrix in matrices],
            lambda task: torch.linalg.eigh(matrices[task]),
            lambda task: (torch.empty(matrices[task].shape[:2], dtype=matrices[task].dtype), torch.empty_like(matrices[task])),
        )
        return {name: cls._clamped(*part) for name, part in zip(grams, parts, strict=True)}

    @classmethod
    def _clamped(cls, values: Tensor, vectors: Tensor) -> Spectrum:
        mass = float(values.abs().sum())
        clamped = float(values.clamp(max=0).abs().sum()) / mass if mass else 0.0
        return cls(values.clamp(min=0), vectors, clamped)

    @property
    def matrix(self) -> Tensor:
        """V diag(values) V^T, the Gram matrix without what was clamped, (groups, dim, dim)."""
        return (self.vectors * self.values[:, None, :]) @ self.vectors.mT


def _check(gram: Gram) -> None:
    if not bool(gram.matrix.isfinite().all()):
        raise ValueError("the Gram matrix has values that are not finite")
