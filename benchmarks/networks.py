"""The networks that the benchmarks of speed take, and the shapes of their images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from pgu_lightning.models import ResNet18, SmallCNN, SmallVGG

CLASSES = 10


class ViT(nn.Module):
    """A vision transformer with the sizes of ViT-S (Touvron et al., arXiv 2012.12877): 12 blocks, 384 wide, 6 heads."""

    def __init__(self, shape: tuple[int, int, int], num_classes: int, patch: int = 8, width: int = 384, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(shape[0], width, patch, stride=patch)
        block = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, num_classes), of images, (N, C, H, W)."""
        return self.head(self.blocks(self.patches(images).flatten(2).mT).mean(1))


NETWORKS: dict[str, tuple[Callable[[tuple[int, int, int], int], nn.Module], tuple[int, int, int]]] = {
    "SmallCNN": (SmallCNN, (1, 8, 8)),
    "SmallVGG": (SmallVGG, (3, 32, 32)),
    "ResNet-18": (partial(ResNet18, small_stem=True), (3, 64, 64)),
    "ViT-S": (ViT, (3, 64, 64)),
}
