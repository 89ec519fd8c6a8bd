from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn


class AllCNN(nn.Module):
    """All-CNN-C (Springenberg et al., arXiv 1412.6806): convolutions only, two of them with stride 2, then the mean over all positions.

    No normalisation; all 3 x 3 convolutions are padded.

    Args:
        shape: (C, H, W) of one image.
        num_classes: Number of logits.
        width: Factor on the paper's 96 and 192 channels.
        dropout: Probability to drop a value after the two strided convolutions; .5 in the paper.
    """

    def __init__(self, shape: Sequence[int], num_classes: int, width: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        narrow, wide = round(96 * width), round(192 * width)
        outputs = [narrow, narrow, narrow, wide, wide, wide, wide, wide, num_classes]
        strided, pointwise = (2, 5), (7, 8)
        layers: list[nn.Module] = []
        for index, (source, target) in enumerate(pairwise([shape[0], *outputs])):
            kernel = 1 if index in pointwise else 3
            convolution = nn.Conv2d(source, target, kernel, stride=2 if index in strided else 1, padding=kernel // 2)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.ReLU()]
            if index in strided:
                layers.append(nn.Dropout(dropout))
        self.features = nn.Sequential(*layers[:-1])  # no ReLU on the logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes), of images, (N, C, H, W)."""
        return self.features(images).mean(dim=(2, 3))
