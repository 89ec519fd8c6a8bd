"""What a layer multiplies its weight with, by layer type.

``rows`` and ``as_matrix`` write a layer as a matrix product: output rows = input rows @ weight^T, group by group. ``rows`` is all that a
custom layer must register; ``moment`` may be registered too where rows^T rows can be had without forming the rows.

The layer's output is these rows, or a fixed linear function of them: a transposed convolution adds up the products of overlapping taps, an
embedding the groups, one a token. So an update that leaves the products alone leaves the output alone.

Example:
    >>> layer = torch.nn.Conv2d(2, 4, 3, padding=1)
    >>> x = torch.randn(5, 2, 6, 6)
    >>> product = rows(layer, x) @ as_matrix(layer, layer.weight).mT + layer.bias  # (1, 5 * 36, 4)
    >>> torch.allclose(product.view(5, 36, 4).mT.reshape(5, 4, 6, 6), layer(x), atol=1e-5)
    True
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

MAX_ROWS = 2048
"""Rows of one float32 product or sum: more of them lose digits (1e-5 at 260,000 rows), fewer are bound by memory."""


@singledispatch
def rows(layer: nn.Module, x: Tensor) -> Tensor:
    """The rows that ``layer`` multiplies with its weight.

    Args:
        layer: The layer.
        x: Its input.

    Returns:
        (groups, rows, dim).

    Raises:
        TypeError: If the layer's type is not registered.
    """
    raise TypeError(f"{type(layer).__name__} is not a layer whose input rows are known: register it with `rows.register`")


@singledispatch
def as_matrix(layer: nn.Module, weight: Tensor) -> Tensor:
    """A view of ``weight`` (or of a change of it) as (groups, out, dim), matching ``rows``; writing to it writes to ``weight``."""
    return weight.view(1, weight.shape[0], -1)


@singledispatch
def weight_of(layer: nn.Module) -> Any:
    """The parameter that ``as_matrix`` is a view of; something else where the layer has none of its own."""
    return layer.weight


def one_row_each(layer: nn.Module, weight: Tensor) -> bool:
    """Whether ``weight[i]`` is row i of the only group's matrix, so that some of them can be filtered without the others."""
    empty = torch.empty(weight.shape, device="meta")
    matrix = as_matrix(layer, empty)
    return matrix.shape[:2] == (1, len(empty)) and matrix.stride(1) == empty.stride(0)


_ADDS_TO_EACH_ROW = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def bias_of(layer: nn.Module) -> nn.Parameter | None:
    """The bias that is added to each output row, so that it is the weight's column for an input of one; None where there is none.

    That of a transposed convolution is added after the products of overlapping taps are, that of attention's in-projection to as many rows
    as queries and keys have each.
    """
    kind = next(kind for kind in type(layer).__mro__ if kind in rows.registry)
    bias = layer.bias if kind in _ADDS_TO_EACH_ROW else None
    return bias if isinstance(bias, nn.Parameter) else None


def geometry(layer: Any) -> Hashable | None:
    """What besides its input says which rows a layer has: layers that agree in it have the same of the same input. None: who knows."""
    kind = next(kind for kind in type(layer).__mro__ if kind in rows.registry)
    if kind not in _ADDS_TO_EACH_ROW:
        return None
    names = ("in_channels", "groups", "kernel_size", "stride", "padding", "dilation", "padding_mode")
    own = [layer.in_features] if kind is nn.Linear else [getattr(layer, name) for name in names]
    return kind, bias_of(layer) is not None, *own


def row_sum(layer: Any, x: Tensor) -> Tensor:
    """The sum of ``rows(layer, x)``, (groups, dim) in float64, of a layer that has a ``bias_of``."""
    if isinstance(layer, nn.Linear):
        return sum_rows(rows(layer, x))
    # Patches are linear in the input, whatever the padding: the patches of the sum are few.
    x = x[None] if x.dim() == len(layer.kernel_size) + 1 else x
    return rows(layer, sum_rows(x[None])).sum(1)


def sum_rows(every: Tensor) -> Tensor:
    """The sum over the second dimension, in float64: in float32 over a bounded number of rows, since converting them all costs more."""
    total = torch.zeros_like(every[:, 0], dtype=torch.float64)
    for chunk in every.split(MAX_ROWS, 1):
        total += chunk.sum(1)
    return total


def supported(layer: nn.Module) -> bool:
    """Whether ``rows`` knows this layer: its type is registered, or it inherits a registered type's very forward."""
    known = [kind for kind in rows.registry if kind is not object and kind is not nn.Module and isinstance(layer, kind)]
    # A convolution computes in a second method, and either may have been replaced on the instance alone.
    own = {part: vars(layer).get(part, getattr(type(layer), part, None)) for part in ("forward", "_conv_forward")}
    return any(all(getattr(kind, part, None) is method for part, method in own.items()) for kind in known)


@rows.register
def _(layer: nn.Linear, x: Tensor) -> Tensor:
    return x.reshape(1, -1, layer.in_features)


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    spatial = len(layer.kernel_size)
    if x.dim() == spatial + 1:
        x = x[None]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, list(layer._reversed_padding_repeated_twice), mode=mode)
    for axis in range(spatial):
        kernel, stride, dilation = layer.kernel_size[axis], layer.stride[axis], layer.dilation[axis]
        x = x.unfold(2 + axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    batch, channels = x.shape[:2]
    x = x.reshape(batch, layer.groups, channels // layer.groups, *x.shape[2:])  # (batch, groups, channels, *positions, *kernel)
    order = [1, 0, *range(3, 3 + spatial), 2, *range(3 + spatial, 3 + 2 * spatial)]
    dim = channels // layer.groups * torch.Size(layer.kernel_size).numel()
    return x.permute(order).reshape(layer.groups, -1, dim)


def _grouped(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, weight: Tensor) -> Tensor:
    return weight.view(layer.groups, weight.shape[0] // layer.groups, -1)


for _convolution in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
    rows.register(_convolution, _patches)
    as_matrix.register(_convolution, _grouped)


def _pixels(layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, x: Tensor) -> Tensor:
    """The channels of each input position: all taps multiply the same vector."""
    if x.dim() == len(layer.kernel_size) + 1:
        x = x[None]
    each = layer.in_channels // layer.groups
    x = x.unflatten(1, (layer.groups, each))  # (batch, groups, channels of a group, *positions)
    return x.movedim(2, -1).movedim(1, 0).reshape(layer.groups, -1, each)


def _transposed(layer: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d, weight: Tensor) -> Tensor:
    return weight.view(layer.groups, weight.shape[0] // layer.groups, -1).mT  # (groups, out x taps, channels of a group)


for _transposed_convolution in (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    rows.register(_transposed_convolution, _pixels)
    as_matrix.register(_transposed_convolution, _transposed)


# An embedding multiplies its weight with one-hot vectors, whose Gram is diagonal: each token is a group with one input.


@rows.register
def _(layer: nn.Embedding, x: Tensor) -> Tensor:
    return F.one_hot(x.reshape(-1).long(), layer.num_embeddings).T[..., None].to(layer.weight.dtype)


@as_matrix.register
def _(layer: nn.Embedding, weight: Tensor) -> Tensor:
    return weight.view(*weight.shape, 1)
