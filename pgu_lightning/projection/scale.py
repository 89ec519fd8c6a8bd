"""The learnable scale inside the retained space, with which poisoned labels are unlearned (Hoang et al., WACV 2024; after TRGP, ICLR 2022).

Published: beside the projected weight W a matrix Q is trained, the identity at the start, and the layer computes with

    W' = W + W B (Q - I) B^T,    B the protected eigenvectors, (dim, k).

Projected updates leave W B alone, so it is W0 B for good, W0 being the weight at the start, and dL/dQ = (W0 B)^T G B with G the gradient at
W'. A step of -lr r dL/dQ therefore adds r W0 B (W0 B)^T U B B^T to W', where U = -lr G is what the optimizer did to W'. That is the same
path without a parametrization or a parameter more: the model is plain at any time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pgu_lightning.projection.rules import Rule
from pgu_lightning.projection.spectrum import Spectrum


@dataclass(frozen=True)
class Scale:
    """How the retained space is scaled.

    Exact for SGD, with momentum too, since it is linear in the gradients: the weights are those that training Q would give. With any other
    optimizer, or weight decay, it is the same linear map of what that optimizer did to the weight; Q has no moments or decay of its own.

    Attributes:
        ratio: Learning rate of Q over that of the weights; > 0.
        last: Of a linear layer only so many protected eigenvectors are scaled, those with the smallest eigenvalues; of other layers all.
    """

    ratio: float = 0.1
    last: int = 400

    def __post_init__(self) -> None:
        if not self.ratio > 0:
            raise ValueError(f"ratio must be above 0, got {self.ratio}: without a scale say scale=None")
        if self.last < 1:
            raise ValueError(f"last must be at least 1, got {self.last}")

    def of(self, spectrum: Spectrum, rule: Rule, layer: nn.Module, like: Tensor) -> ScaledSpace:
        """The part of ``layer``'s retained space that is scaled.

        Args:
            spectrum: Of the retained data.
            rule: A hard one: what it protects (gain 0) is the retained space.
            layer: Its kind decides whether ``last`` counts.
            like: A tensor whose device and floating type the space shall have.
        """
        protected = rule(spectrum.values)[:, -spectrum.vectors.shape[-1] :] == 0  # (groups, r), ascending
        # Groups may protect different numbers: what one of them does not is a column of zeros there.
        basis = (spectrum.vectors * protected[:, None, :])[..., protected.any(0)]
        if isinstance(layer, nn.Linear):
            basis = basis[..., : self.last]
        return ScaledSpace(basis.to(like.device, torch.promote_types(like.dtype, torch.float32)), self.ratio)


@dataclass(frozen=True)
class ScaledSpace:
    """What of a layer's retained space is scaled, and how fast.

    Attributes:
        basis: B, (groups, dim, k).
        ratio: Learning rate of Q over that of the weights.

    Example:
        >>> space = ScaledSpace(torch.tensor([[[1.0], [0.0]]]), ratio=0.1)
        >>> [round(value, 4) for value in space(torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[2.0, 5.0]]])).flatten().tolist()]
        [1.2, 0.0]
    """

    basis: Tensor
    ratio: float

    def __call__(self, update: Tensor, original: Tensor) -> Tensor:
        """What the step of Q adds to the weight.

        Args:
            update: What the optimizer did, unfiltered, (groups, out, dim).
            original: The weight at the start, (groups, out, dim).
        """
        response = original @ self.basis  # (groups, out, k)
        return self.ratio * response @ (response.mT @ (update @ self.basis)) @ self.basis.mT
