"""Right-multiplication of a layer's update by P = V diag(gains) V^T."""

from __future__ import annotations

import torch
from torch import Tensor

from pgu_lightning.projection.rules import Rule
from pgu_lightning.projection.spectrum import Spectrum


class Projector:
    """Removes from an update what would change the layer's response to the retained data.

    For a hard rule this is the solution of: the update nearest to D, subject to D U = 0, with U the protected eigenvectors. The cheaper
    of ``(D N) N^T`` and ``D - (D U) U^T`` is used, N being the free ones.

    Args:
        spectrum: Decomposed Gram matrix of the retained data.
        rule: Eigenvalues to gains.
        like: A tensor whose device and floating type the projector shall have.

    Attributes:
        dim: Input dimension of a group.
        rank: Directions of which less than half passes, over all groups.
        free: The other directions.
        clamped: As in the spectrum.

    Example:
        >>> from pgu_lightning.projection.rules import Hard
        >>> from pgu_lightning.statistics.gram import Gram
        >>> gram = Gram(torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))[None], rows=1)
        >>> Projector(Spectrum.of(gram), Hard(1.0))(torch.tensor([[[3.0, 4.0]]])).abs().tolist()
        [[[0.0, 4.0]]]
    """

    def __init__(self, spectrum: Spectrum, rule: Rule, like: Tensor | None = None) -> None:
        like = torch.empty(0) if like is None else like
        gains, vectors = rule(spectrum.values), spectrum.vectors
        passes = gains > 0.5
        self.dim = gains.shape[-1]
        self.rank, self.free = int((~passes).sum()), int(passes.sum())
        self.clamped = spectrum.clamped
        dtype = torch.promote_types(like.dtype, torch.float32)
        self._basis: Tensor | None = None
        if len(gains) == 1 and bool(((gains == 0) | (gains == 1)).all()):
            self._complement = self.rank < self.free
            self._basis = vectors[..., passes[0] != self._complement].to(like.device, dtype)
        else:
            self._dense = ((vectors * gains[:, None, :]) @ vectors.mT).to(like.device, dtype)

    def __call__(self, update: Tensor) -> Tensor:
        """Filter ``update``, (groups, out, dim)."""
        if self._basis is None:
            return update @ self._dense
        inside = (update @ self._basis) @ self._basis.mT
        return update - inside if self._complement else inside
