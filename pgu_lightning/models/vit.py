from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ViT(nn.Module):
    """A small vision transformer (Dosovitskiy et al., arXiv 2010.11929) with pre-norm blocks; the mean over the tokens is classified.

    Args:
        shape: (C, H, W) of one image; H and W are multiples of ``patch``.
        num_classes: Number of logits.
        patch: Side of the square patches that become tokens.
        width: Numbers a token.
        depth: Blocks.
        heads: Attention heads; ``width`` is a multiple.
        dropout: Probability to drop a value after attention and in the feed-forward part.

    Raises:
        ValueError: If the patches do not tile the image.

    Example:
        >>> ViT((1, 28, 28), 10, patch=7).position.shape
        torch.Size([1, 16, 48])
    """

    def __init__(
        self, shape: Sequence[int], num_classes: int, patch: int = 4, width: int = 48, depth: int = 2, heads: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, height, breadth = shape
        if height % patch or breadth % patch:
            raise ValueError(f"patches of {patch} x {patch} do not tile images of {height} x {breadth}: choose another patch")
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, height // patch * (breadth // patch), width))
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True)
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes), of images, (N, C, H, W)."""
        tokens = self.embed(images).flatten(2).mT + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))
