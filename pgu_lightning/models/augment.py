from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad


class CropFlip(nn.Module):
    """The usual augmentation of small images: each is shifted by up to ``padding`` pixels, zeros moving in, and mirrored half of the time.

    Args:
        padding: Largest shift in each direction, in pixels.

    Example:
        >>> CropFlip(4)(torch.ones(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(self, padding: int = 4) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, images: Tensor) -> Tensor:
        """Another random view of each image, (N, C, H, W)."""
        count, _, height, width = images.shape
        crops = pad(images, (self.padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # (N, C, shifts, shifts, H, W), a view
        sample = torch.arange(count, device=images.device)
        down, right = torch.randint(2 * self.padding + 1, (2, count), device=images.device)
        cropped = crops[sample, :, down, right]
        mirrored = torch.rand(count, 1, 1, 1, device=images.device) < 0.5
        return torch.where(mirrored, cropped.flip(3), cropped)
