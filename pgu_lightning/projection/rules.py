"""How much of an update may pass along each eigenvector of what is retained: eigenvalues in, gains in [0, 1] out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rule = Callable[[Tensor], Tensor]
"""Maps eigenvalues, (groups, dim) ascending and >= 0, to gains of the same shape."""

NOISE = 2e-7
"""Eigenvalues below this share of the largest are rounding: float32 products of 5 to 16,384 rows put up to 8e-8 there."""


@dataclass(frozen=True)
class Hard:
    """Nothing passes along the leading eigenvectors, everything along the rest (Hoang et al., WACV 2024, section 4).

    The leading ones are the fewest that hold ``retained_variance`` of the spectrum, at least one; with 1 all that the data reaches.

    Attributes:
        retained_variance: Share of the spectrum to protect, in (0, 1].
        spectrum: What the share is taken of: ``"energy"``, the eigenvalues (as in gradient projection memory), or ``"singular"``, their
            square roots (as in the published code). At the same share ``"singular"`` protects far more directions.

    Example:
        >>> Hard(0.9)(torch.tensor([[0.0, 1.0, 9.0]])).tolist(), Hard(0.9, "singular")(torch.tensor([[0.0, 1.0, 9.0]])).tolist()
        ([[1.0, 1.0, 0.0]], [[1.0, 0.0, 0.0]])
    """

    retained_variance: float = 0.95
    spectrum: Literal["energy", "singular"] = "energy"

    def __post_init__(self) -> None:
        if not 0 < self.retained_variance <= 1:
            raise ValueError(f"retained_variance must lie in (0, 1], got {self.retained_variance}")
        if self.spectrum not in ("energy", "singular"):
            raise ValueError(f'spectrum must be "energy" or "singular", got {self.spectrum!r}')

    def __call__(self, values: Tensor) -> Tensor:
        """Gains of 0 and 1."""
        reached = values > NOISE * values.amax(-1, keepdim=True)
        mass = torch.where(reached, values if self.spectrum == "energy" else values.sqrt(), 0.0)
        leading = mass.flip(-1).cumsum(-1)
        # A direction is protected if those ahead of it do not yet hold the share.
        ahead = leading - mass.flip(-1)
        short = ahead < self.retained_variance * leading[..., -1:] * (1 - 1e-12)
        return (~(short.flip(-1) & reached)).to(values.dtype)


@dataclass(frozen=True)
class Soft:
    """The component along an eigenvector with eigenvalue w is multiplied by a / (w + a), a = damping * mean(w).

    This is the step that lowers the forget loss most for a given interference; the hard rule is its crude limit. In a group
    of one dimension there is no other eigenvalue to weigh w against: nothing passes if w > 0, and everything otherwise.

    Attributes:
        damping: Where the filter turns, relative to the mean eigenvalue; > 0.

    Example:
        >>> Soft(0.5)(torch.tensor([[0.0, 4.0]])).tolist()
        [[1.0, 0.20000000298023224]]
    """

    damping: float = 0.01

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise ValueError(f"damping must be above 0, got {self.damping}")

    def turn(self, values: Tensor) -> Tensor:
        """The eigenvalue a at which half passes, (groups, 1)."""
        return self.damping * values.mean(-1, keepdim=True) * (values.shape[-1] > 1)

    def __call__(self, values: Tensor) -> Tensor:
        """Gains in [0, 1]."""
        turn = self.turn(values)
        return torch.where(values > 0, turn / (values + turn).clamp(min=torch.finfo(values.dtype).tiny), 1.0)
