"""The Gram matrix of a two-dimensional convolution without its patch matrix.

The patches of a k x k convolution repeat each pixel k^2 times. Here only the width is unfolded, k copies. The block of the Gram that
belongs to the height taps (i, j) is a sum over output rows o of Z[o + i]^T Z[o + j], Z[h] being the unfolded input row h: for stride 1 it
depends on j - i alone but for a few rows at the border. So k products of the size (k C)^2 do the work of k^2, and the blocks below the
diagonal are mirrored.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pgu_lightning.statistics.layers import MAX_ROWS, second_moment

_FORM_ROWS = second_moment.dispatch(object)
_MAX_ELEMENTS = 2**24
"""Elements of the unfolded input at a time (64 MiB in float32)."""


@second_moment.register
def _(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, int]:
    x = x[None] if x.dim() == 3 else x
    if layer.groups > 1 or layer.kernel_size[0] == 1 or not len(x):
        return _FORM_ROWS(layer, x)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, list(layer._reversed_padding_repeated_twice), mode=mode)
    batch = max(1, _MAX_ELEMENTS // (x[0].numel() * layer.kernel_size[1]))
    parts = [_blocks(layer, part) for part in x.split(batch)]
    height, width, channels = *layer.kernel_size, layer.in_channels
    total = torch.stack([blocks for blocks, _ in parts]).sum(0).view(height, height, channels, width, channels, width)
    dim = channels * height * width
    return total.permute(2, 0, 3, 4, 1, 5).reshape(1, dim, dim), sum(rows for _, rows in parts)


def _blocks(layer: nn.Conv2d, x: Tensor) -> tuple[Tensor, int]:
    """The Gram as (height tap, height tap, channels x width taps, channels x width taps) of a padded input, and the number of patches."""
    (taps, width), (stride, stride_w), (dilation, dilation_w) = layer.kernel_size, layer.stride, layer.dilation
    z = x.unfold(3, dilation_w * (width - 1) + 1, stride_w)[..., ::dilation_w]  # (batch, channels, height, out width, width taps)
    z = z.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2).contiguous()  # (height, batch x out width, channels x width taps)
    out = (len(z) - dilation * (taps - 1) - 1) // stride + 1
    blocks = z.new_zeros((taps, taps, z.shape[2], z.shape[2]), dtype=torch.float64)

    def product(start: int, stop: int, shift: int) -> Tensor:
        """Sum of Z[h]^T Z[h + shift] over h from start to stop, by stride."""
        one, other = z[start:stop:stride].flatten(0, 1), z[start + shift : stop + shift : stride].flatten(0, 1)
        pieces = zip(one.split(MAX_ROWS), other.split(MAX_ROWS), strict=True)
        return torch.stack([(a.T @ b).double() for a, b in pieces]).sum(0)

    for apart in range(taps):
        shift, last = dilation * apart, taps - 1 - apart
        low = dilation * last  # rows low .. out - 1 are common to all pairs of taps that lie so far apart
        if stride > 1 or low >= out:
            for i in range(last + 1):
                start = dilation * i
                blocks[i, i + apart] = product(start, start + stride * (out - 1) + 1, shift)
        else:
            common = product(low, out, shift)
            border = {h: product(h, h + 1, shift) for h in (*range(low), *range(out, out + low))}
            for i in range(last + 1):
                own = (border[h] for h in (*range(dilation * i, low), *range(out, out + dilation * i)))
                blocks[i, i + apart] = sum(own, common)
    for i in range(taps):
        for j in range(i):
            blocks[i, j] = blocks[j, i].T
    return blocks, out * z.shape[1]
