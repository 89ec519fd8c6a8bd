"""The Gram matrix of a convolution without its patch matrix.

The patches of a k x k convolution repeat each pixel k^2 times, and its Gram matrix has a block of channels x channels for each pair of
taps: the sum over output positions of x[position + tap]^T x[position + other tap]. With stride 1 this depends on how far the taps lie
apart, but for lines at the border that one of them does not reach: 13 blocks, not 81, are products of the whole image for k = 3. Lines of
zero padding add nothing. Positions are laid out (height, width, batch), so that the pixels which a line sends to a tap are consecutive
rows of one matrix. Sums over a whole image are the gradient of a weight, which is faster where the border is a small part.

With stride s pixels fall into s planes a side, by their position modulo s, and the same holds within and between planes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, product

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.grad import conv2d_weight

from pgu_lightning.statistics.layers import MAX_ROWS, rows
from pgu_lightning.statistics.moment import RowMoment, block, moment

Pair = tuple[int, int]  # two taps of one axis

_MAX_ELEMENTS = 2**22
"""Elements that are laid out anew or unfolded at a time (16 MiB in float32)."""

# What things cost, in multiply-adds of a large product: measured on a CPU by `benchmarks/gram.py`, where only the order decides.
_COPY = 64  # unfolding an element
_CALL = 300_000  # starting a product
_GRADIENT = 1.8  # times as many multiply-adds in the gradient of a weight


@dataclass(frozen=True)
class _Run:
    """Consecutive lines of one plane, and those of another that they are multiplied with, for all pairs of taps that see both.

    Attributes:
        pairs: The pairs of taps.
        planes: Position modulo stride of the two.
        start: First line of the first, in its plane.
        shift: So much later the second one begins, in its plane.
        lines: How many.
    """

    pairs: tuple[Pair, ...]
    planes: Pair
    start: int
    shift: int
    lines: int


@lru_cache(maxsize=1024)
def _runs(taps: int, stride: int, dilation: int, before: int, size: int, out: int) -> tuple[_Run, ...]:
    """What has to be multiplied along one axis, each product once; lines beyond the ``size`` real ones are zeros and left out."""
    places = [divmod(dilation * tap - before, stride) for tap in range(taps)]  # line of the first output, plane
    spans: dict[tuple[int, int, int], dict[Pair, range]] = defaultdict(dict)
    for i, j in product(range(taps), repeat=2):
        (line, plane), (other_line, other_plane) = places[i], places[j]
        low = max(0, -line, -other_line)
        high = min(out, _lines(size, stride, plane) - line, _lines(size, stride, other_plane) - other_line)
        if low < high:
            spans[plane, other_plane, other_line - line][i, j] = range(line + low, line + high)
    found = []
    for (plane, other_plane, shift), by_pair in spans.items():
        ends = sorted({end for span in by_pair.values() for end in (span.start, span.stop)})
        for start, stop in pairwise(ends):
            pairs = tuple(pair for pair, span in by_pair.items() if start in span)
            if pairs:
                found.append(_Run(pairs, (plane, other_plane), start, shift, stop - start))
    return tuple(found)


def _lines(size: int, stride: int, plane: int) -> int:
    return -(-(size - plane) // stride)


class ConvMoment(RowMoment):
    """The sum for a convolution: by shifts where that is cheaper, else by rows, of a bounded number of samples at a time."""

    def __init__(self, layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, place: torch.device | None = None) -> None:
        super().__init__(layer, place)
        self._conv = layer
        self._blocks: dict[tuple[tuple[Pair, ...], tuple[Pair, ...]], Tensor] = {}

    def add(self, x: Tensor) -> None:
        """See ``Moment``."""
        layer = self._conv
        x = x[None] if x.dim() == len(layer.kernel_size) + 1 else x
        taps, positions = torch.Size(layer.kernel_size).numel(), torch.Size(_output(layer, x)).numel()
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and len(x) and self._add_by_shifts(layer, x, positions):
            return
        for part in x.split(max(1, _MAX_ELEMENTS // (positions * taps * layer.in_channels))):
            self.add_rows(rows(layer, part))

    def _add_by_shifts(self, layer: nn.Conv2d, x: Tensor, positions: int) -> bool:
        """Add the products of ``x`` if they are cheaper by shifts; whether they were."""
        out, (before, _) = _output(layer, x), _padding(layer)
        if layer.padding_mode != "zeros":
            x, before = F.pad(x, list(layer._reversed_padding_repeated_twice), mode=layer.padding_mode), [0, 0]
        height, width = (
            _runs(*axis) for axis in zip(layer.kernel_size, layer.stride, layer.dilation, before, x.shape[2:], out, strict=True)
        )
        batch = min(len(x), max(1, min(_MAX_ELEMENTS // x[0].numel(), 4 * MAX_ROWS // positions)))
        dim = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        by_rows = batch * positions * dim * (_COPY + (dim + min(dim, block(dim))) / 2)
        lines, columns = (sum(run.lines for run in axis) for axis in (height, width))
        # About half of all pairs of runs are on or above the diagonal.
        if by_rows <= (batch * lines * columns * layer.in_channels**2 + lines * len(width) * _CALL) / 2:
            return False
        products = [(h, w) for h in height for w in width if (h.pairs[0][0], w.pairs[0][0]) <= (h.pairs[0][1], w.pairs[0][1])]
        if not products:  # no tap sees anything but padding
            return False
        by_shift: dict[tuple[Pair, Pair, int, int], list[tuple[_Run, _Run]]] = defaultdict(list)
        for h, w in sorted(products, key=lambda runs: runs[0].lines * runs[1].lines):
            by_shift[h.planes, w.planes, h.shift, w.shift].append((h, w))
        for part in x.split(batch):
            self._add_products(part.contiguous(memory_format=torch.channels_last), list(by_shift.values()))
        self._count += positions * len(x)
        return True

    def _add_products(self, x: Tensor, by_shift: list[list[tuple[_Run, _Run]]]) -> None:
        planes = _Planes(x, self._conv.stride)
        whole = _whole(self._conv, x) if self._whole_is_cheaper(x, by_shift) else {}
        for members in by_shift:
            shifts = members[0][0].shift, members[0][1].shift
            covered = sum(h.lines * w.lines for h, w in members)
            rest = whole.get(shifts) if covered == (x.shape[2] - shifts[0]) * (x.shape[3] - abs(shifts[1])) else None
            # The largest part is what is left of the whole.
            for h, w in members if rest is None else members[:-1]:
                part = planes.product(h, w)
                self._add_block(h, w, part)
                rest = rest if rest is None else rest - part
            if rest is not None:
                self._add_block(*members[-1], rest)

    def _whole_is_cheaper(self, x: Tensor, by_shift: list[list[tuple[_Run, _Run]]]) -> bool:
        layer = self._conv
        pixels = [[h.lines * w.lines for h, w in members] for members in by_shift]
        border = sum(sum(some[:-1]) for some in pixels)
        weights = layer.kernel_size[0] * (2 * layer.kernel_size[-1] - 1)
        return set(layer.stride) == {1} and weights * x[0, 0].numel() / _GRADIENT + border < sum(map(sum, pixels))

    def _add_block(self, h: _Run, w: _Run, block: Tensor) -> None:
        block = block.to(self._place or block.device, torch.float64)
        key = h.pairs, w.pairs  # that see the same pixels at any size of the input
        self._blocks[key] = self._blocks[key].add_(block) if key in self._blocks else block

    def result(self) -> tuple[Tensor, int]:
        """See ``Moment``."""
        if not self._blocks:
            return super().result()
        layer = self._conv
        channels, (height, width) = layer.in_channels, layer.kernel_size
        some = next(iter(self._blocks.values()))
        if self._total is None and not self._waiting:
            self._total = some.new_zeros(1, channels * height * width, channels * height * width)
        matrix, count = super().result()
        by_tap = matrix.view(channels, height, width, channels, height, width)
        while self._blocks:
            (by_height, by_width), total = self._blocks.popitem()
            for (i, other_i), (j, other_j) in product(by_height, by_width):
                by_tap[:, i, j, :, other_i, other_j] += total
                if (i, j) != (other_i, other_j):
                    by_tap[:, other_i, other_j, :, i, j] += total.T
        return matrix, count


class _Planes(dict[Pair, Tensor]):
    """The pixels of an image by their position modulo stride: each plane as (height, width, batch, channels), made when it is asked for."""

    def __init__(self, x: Tensor, stride: tuple[int, ...]) -> None:
        super().__init__()
        self._x, self._stride = x, stride

    def __missing__(self, plane: Pair) -> Tensor:
        part = self._x[:, :, plane[0] :: self._stride[0], plane[1] :: self._stride[1]]
        self[plane] = part.permute(2, 3, 0, 1).contiguous()
        return self[plane]

    def product(self, h: _Run, w: _Run) -> Tensor:
        """The pixels of one plane with those of another, (channels, channels)."""
        one, other = (self[h.planes[which], w.planes[which]] for which in (0, 1))
        total: Tensor | None = None
        for line in range(h.start, h.start + h.lines):
            a = one[line, w.start : w.start + w.lines].flatten(0, 1)  # (pixels x batch, channels), as it lies in memory
            b = other[line + h.shift, w.start + w.shift : w.start + w.shift + w.lines].flatten(0, 1)
            total = a.T @ b if total is None else total.addmm_(a.T, b)
        assert total is not None
        return total


def _whole(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> dict[Pair, Tensor]:
    """Sums over the whole image of x[pixel]^T x[pixel + shift], by shift, for all that lie on or behind a pixel's own line.

    That is the gradient of a convolution's weight where the output's gradient is the input again: libraries have a fast form of it, on a
    CPU nearly twice as fast as matrix products of as many numbers.
    """
    (height, width), (down, across) = tuple(layer.kernel_size), tuple(layer.dilation)
    padded = F.pad(x, [0, 0, 0, down * (height - 1)]).contiguous(memory_format=torch.channels_last)
    size = (layer.in_channels, layer.in_channels, height, 2 * width - 1)
    sums = conv2d_weight(padded, size, x, 1, (0, across * (width - 1)), layer.dilation)
    shifts = product(range(height), range(2 * width - 1))
    return {(down * i, across * (j - width + 1)): sums[:, :, i, j] for i, j in shifts}


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[list[int], list[int]]:
    """In front of and behind each axis."""
    both = layer._reversed_padding_repeated_twice
    return both[::2][::-1], both[1::2][::-1]


def _output(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> list[int]:
    """Output positions along each axis."""
    axes = zip(x.shape[2:], *_padding(layer), layer.dilation, layer.kernel_size, layer.stride, strict=True)
    return [(size + before + behind - dilation * (kernel - 1) - 1) // stride + 1 for size, before, behind, dilation, kernel, stride in axes]


for _convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    moment.register(_convolution, ConvMoment)
