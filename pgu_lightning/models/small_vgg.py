from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class SmallVGG(nn.Module):
    """The small VGG of the PGU paper (Hoang et al., arXiv 2312.04095): blocks of two 3 x 3 convolutions with BatchNorm, then linear layers.

    Each block ends with 2 x 2 max-pooling and dropout.

    Args:
        shape: (C, H, W) of one image; each block halves H and W.
        num_classes: Number of logits.
        widths: Channels of the blocks.
        hidden: Widths of the hidden linear layers.
        dropout: Probability to drop a value after each block and each hidden layer.

    Raises:
        ValueError: If the image is too small for that many blocks.

    Example:
        >>> SmallVGG((3, 32, 32), 10).classifier[1].in_features  # 512 channels of 4 x 4
        8192
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        widths: Sequence[int] = (128, 256, 512),
        hidden: Sequence[int] = (256,),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        shrink = 2 ** len(widths)
        if min(height, width) < shrink:
            raise ValueError(
                f"{len(widths)} blocks need images of at least {shrink} x {shrink} pixels, got {height} x {width}: use fewer widths"
            )
        blocks: list[nn.Module] = []
        for inputs, outputs in pairwise([channels, *widths]):
            blocks += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            blocks += [nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout)]
        self.features = nn.Sequential(*blocks)
        flat = widths[-1] * (height // shrink) * (width // shrink)
        linear: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise([flat, *hidden]):
            linear += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
        self.classifier = nn.Sequential(*linear, nn.Linear([flat, *hidden][-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes), of images, (N, C, H, W)."""
        return self.classifier(self.features(images))
