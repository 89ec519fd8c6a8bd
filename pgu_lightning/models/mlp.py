from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class MLP(nn.Module):
    """A multilayer perceptron with ReLU.

    Args:
        shape: (C, H, W) of one image.
        num_classes: Number of logits.
        hidden: Widths of the hidden layers.

    Example:
        >>> MLP((1, 28, 28), 10, hidden=(300,)).layers[1]
        Linear(in_features=784, out_features=300, bias=True)
    """

    def __init__(self, shape: Sequence[int], num_classes: int, hidden: Sequence[int] = (256, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise([math.prod(shape), *hidden]):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes), of images, (N, C, H, W)."""
        return self.layers(images)
