from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class SmallCNN(nn.Module):
    """Blocks of a 3 x 3 convolution, BatchNorm, ReLU and 2 x 2 max-pooling, then a hidden linear layer.

    Args:
        shape: (C, H, W) of one image; each block halves H and W.
        num_classes: Number of logits.
        widths: Channels of the blocks.
        hidden: Width of the hidden linear layer.

    Raises:
        ValueError: If the image is too small for that many blocks.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, widths: Sequence[int] = (16, 32, 64), hidden: int = 128) -> None:
        super().__init__()
        channels, height, width = shape
        shrink = 2 ** len(widths)
        if min(height, width) < shrink:
            raise ValueError(
                f"{len(widths)} blocks need images of at least {shrink} x {shrink} pixels, got {height} x {width}: use fewer widths"
            )
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise([channels, *widths]):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.features = nn.Sequential(*blocks)
        flat = widths[-1] * (height // shrink) * (width // shrink)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes), of images, (N, C, H, W)."""
        return self.classifier(self.features(images))
