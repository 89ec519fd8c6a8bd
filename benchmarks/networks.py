"""The networks that the benchmarks of speed take, and the shapes of their images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from pgu_lightning.models import ResNet18, SmallCNN, SmallVGG, ViT

CLASSES = 10
NETWORKS: dict[str, tuple[Callable[[tuple[int, int, int], int], nn.Module], tuple[int, int, int]]] = {
    "SmallCNN": (SmallCNN, (1, 8, 8)),
    "SmallVGG": (SmallVGG, (3, 32, 32)),
    "ResNet-18": (partial(ResNet18, small_stem=True), (3, 64, 64)),
    "ViT-S": (partial(ViT, patch=8, width=384, depth=12, heads=6), (3, 64, 64)),  # the sizes of Touvron et al., arXiv 2012.12877
}
