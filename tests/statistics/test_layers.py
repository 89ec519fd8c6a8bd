"""What a layer multiplies its weight with, against loops over every output position and tap."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pgu_lightning.statistics import Gram, conv, moment
from pgu_lightning.statistics.layers import as_matrix, bias_of, row_sum, rows, supported
from pgu_lightning.statistics.moment import second_moment
from tests import oracles

TYPES = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@st.composite
def convolutions(draw, dimensions=(1, 2, 2, 3)):
    """A layer, its input, and the oracle's rows."""
    axes = draw(st.sampled_from(dimensions))
    per_axis = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * axes))  # noqa: E731
    kernel, dilation, stride, extra = per_axis(1, 3), per_axis(1, 2), per_axis(1, 3), per_axis(0, 2)
    groups, each, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    padding = draw(st.sampled_from(["same", "valid", "numbers", "one number"]))
    reach = [dilation[axis] * (kernel[axis] - 1) for axis in range(axes)]
    size = [max(reach[axis] + 1, 3) + extra[axis] for axis in range(axes)]
    if padding == "same":
        stride = (1,) * axes
        before, after = [total // 2 for total in reach], [total - total // 2 for total in reach]
    elif padding == "valid":
        before = after = [0] * axes
    else:
        padding = per_axis(0, 2) if padding == "numbers" else draw(st.integers(0, 2))
        before = after = [padding] * axes if isinstance(padding, int) else list(padding)
    layer = TYPES[axes](groups * each, groups * outputs, kernel, stride, padding, dilation, groups, draw(st.booleans()), mode)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    batch = draw(st.sampled_from([None, 1, 2]))
    x = torch.randn(*([] if batch is None else [batch]), groups * each, *size, generator=generator)
    if draw(st.booleans()):
        layer, x = layer.double(), x.double()
    out = [(size[axis] + before[axis] + after[axis] - reach[axis] - 1) // stride[axis] + 1 for axis in range(axes)]
    batched = x[None] if batch is None else x
    return layer, x, oracles.convolution_rows(batched.numpy(), kernel, stride, before, out, mode, dilation, groups)


def close(found, expected, tolerance):
    assert found.shape == expected.shape
    assert np.abs(found.numpy() - expected).max() <= tolerance * max(np.abs(expected).max(), 1e-30)


@given(convolutions())
@settings(deadline=None, max_examples=200)
def test_rows_of_a_convolution_are_its_patches(case):
    layer, x, expected = case
    np.testing.assert_array_equal(rows(layer, x).numpy(), expected)


@given(convolutions())
@settings(deadline=None, max_examples=200)
def test_second_moment_of_a_convolution(case):
    layer, x, expected = case
    matrix, count = second_moment(layer, x)
    assert matrix.dtype == torch.float64
    assert count == expected.shape[1]
    close(matrix, oracles.gram(expected), 1e-12 if x.dtype == torch.float64 else 1e-6)


@given(convolutions([2]), st.integers(1, 99))
@settings(deadline=None, max_examples=100)
def test_second_moment_by_shifts_alone_of_inputs_of_two_sizes(case, seed):
    layer, x, expected = case
    generator = torch.Generator().manual_seed(seed)
    other = torch.randn(*x.shape[:-2], x.shape[-2] + 1, x.shape[-1] + 2, generator=generator, dtype=x.dtype)
    total = moment.moment(layer)
    with patch.object(conv, "_CALL", 0), patch.object(conv, "_COPY", 1e9):
        total.add(x)
        total.add(other)
    matrix, count = total.result()
    every = np.concatenate([expected, rows(layer, other).double().numpy()], 1)
    assert count == every.shape[1]
    close(matrix, oracles.gram(every), 1e-12 if x.dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("batches", [[5, 3], [1024, 1, 2000, 7], [3000]])
def test_rows_that_wait_and_rows_that_do_not(batches):
    """In blocks of 128 columns; the inputs are overwritten as soon as they were given."""
    total, every = moment.moment(nn.Linear(300, 2)), []
    for count in batches:
        x = torch.randn(count, 300)
        every.append(x.clone())
        total.add(x)
        x.fill_(9)
    matrix, count = total.result()
    assert count == sum(batches)
    close(matrix, oracles.gram(torch.cat(every).numpy()[None]), 1e-6)
    assert torch.equal(matrix, matrix.mT)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1)])
def test_products_of_a_convolution_by_shifts_are_few(kernel, stride):
    """15 of 81 blocks for a kernel of 3, and those at the border: multiplications are counted."""
    layer, x, done = nn.Conv2d(32, 32, kernel, stride, kernel // 2), torch.randn(64, 32, 16, 16), 0

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal done
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default):
                one, other = args[-2:]
                done += one.shape[0] * one.shape[1] * other.shape[1]
            if function is torch.ops.aten.convolution_backward.default:
                done += args[0][:, 0].numel() * args[2].numel()
            return function(*args, **kwargs or {})

    with Counting(), torch.no_grad():
        second_moment(layer, x)
    positions = 64 * (16 // stride) ** 2
    assert done <= {(3, 1): 19, (3, 2): 36, (5, 1): 70}[kernel, stride] * positions * 32**2


def with_ones(expected):
    """Rows, (groups, rows, dim), with a one behind each."""
    return np.concatenate([expected, np.ones((*expected.shape[:2], 1))], -1)


@given(convolutions())
@settings(deadline=None, max_examples=100)
def test_the_gram_of_a_convolution_and_its_bias(case):
    layer, x, expected = case
    gram = Gram(*second_moment(layer, x), row_sum(layer, x)).augmented()
    close(gram.matrix, oracles.gram(with_ones(expected)), 1e-12 if x.dtype == torch.float64 else 1e-6)


@given(convolutions([2]), st.integers(1, 7), st.integers(1, 200))
@settings(deadline=None, max_examples=40)
def test_second_moment_in_pieces(case, max_rows, max_elements):
    """Bounded products and bounded unfolding give what one product gives."""
    layer, x, expected = case
    with (
        patch.object(moment, "MAX_ROWS", max_rows),
        patch.object(conv, "MAX_ROWS", max_rows),
        patch.object(conv, "_MAX_ELEMENTS", max_elements),
        patch.object(conv, "_CALL", 0),
    ):
        matrix, count = second_moment(layer, x)
    assert count == expected.shape[1]
    close(matrix, oracles.gram(expected), 1e-6)


@given(convolutions())
@settings(deadline=None, max_examples=40)
def test_rows_times_weight_is_the_layer(case):
    layer, x, _ = case
    found = rows(layer, x) @ as_matrix(layer, layer.weight).mT  # (groups, batch x positions, out of a group)
    output = layer(x)
    expected = output[None] if x.dim() == len(layer.kernel_size) + 1 else output
    expected = expected.movedim(1, -1).flatten(0, -2)  # (batch x positions, out)
    found = found.movedim(0, 1).flatten(1)
    if layer.bias is not None:
        found = found + layer.bias
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@st.composite
def transposed_convolutions(draw):
    """A layer, its input, and its options by axis."""
    axes = draw(st.sampled_from([1, 2, 2, 3]))
    per_axis = lambda low, high: draw(st.tuples(*[st.integers(low, high)] * axes))  # noqa: E731
    kernel, dilation, stride, size = per_axis(1, 3), per_axis(1, 2), per_axis(1, 3), per_axis(2, 3)
    groups, each, outputs = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = tuple(min(draw(st.integers(0, 2)), (d * (k - 1) + s) // 2) for k, d, s in zip(kernel, dilation, stride, strict=True))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    layer = TRANSPOSED[axes](groups * each, groups * outputs, kernel, stride, padding, extra, groups, draw(st.booleans()), dilation)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    batch = draw(st.sampled_from([None, 1, 2]))
    x = torch.randn(*([] if batch is None else [batch]), groups * each, *size, generator=generator)
    return layer.double(), x.double(), (stride, padding, extra, dilation, groups)


@given(transposed_convolutions())
@settings(deadline=None, max_examples=100)
def test_a_transposed_convolution_is_its_products_scattered(case):
    """The oracle scatters the products of channels and taps; with the identity for products it scatters those of ``rows``."""
    layer, x, options = case
    spatial, groups = len(layer.kernel_size), layer.groups
    batched = x[None] if x.dim() == spatial + 1 else x
    products = rows(layer, x) @ as_matrix(layer, layer.weight.detach()).mT  # (groups, batch x positions, out of a group x taps)
    batch, _, *size = batched.shape
    wide = products.view(groups, batch, -1, products.shape[-1]).permute(1, 0, 3, 2).reshape(batch, -1, *size)
    taps = torch.Size(layer.kernel_size).numel()
    each = products.shape[-1] // taps
    scatter = torch.eye(each * taps).view(each * taps, each, *layer.kernel_size)
    found = oracles.transposed_output(wide.numpy(), scatter.repeat(groups, *[1] * (spatial + 1)).numpy(), *options)
    bias = 0 if layer.bias is None else layer.bias.detach().view(-1, *[1] * spatial).numpy()
    expected = layer(x).detach().numpy()
    np.testing.assert_allclose((found + bias).reshape(expected.shape), expected, atol=1e-10)
    np.testing.assert_allclose(
        (oracles.transposed_output(batched.numpy(), layer.weight.detach().numpy(), *options) + bias).reshape(expected.shape),
        expected,
        atol=1e-10,
    )
    matrix, count = second_moment(layer, x)
    assert count == rows(layer, x).shape[1]
    close(matrix, oracles.gram(rows(layer, x).numpy()), 1e-12)


@given(transposed_convolutions(), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_what_the_channels_do_not_reach_leaves_a_transposed_convolution_as_it_is(case, seed):
    layer, x, _ = case
    with torch.no_grad():
        each = layer.in_channels // layer.groups
        axis = torch.randn(layer.groups, each, generator=torch.Generator().manual_seed(seed)).double()
        axis = axis / axis.norm(dim=1, keepdim=True)  # no channel vector has a part along it
        channels = x.movedim(-len(layer.kernel_size) - 1, -1).unflatten(-1, (layer.groups, each))
        channels -= (channels * axis).sum(-1, keepdim=True) * axis  # in place: x is another view of it
        before = layer(x)
        update = torch.randn_like(as_matrix(layer, layer.weight))
        as_matrix(layer, layer.weight.data).add_((update @ axis[..., None]) * axis[:, None])
        torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-12)


@given(st.lists(st.integers(0, 3), min_size=0, max_size=2), st.integers(1, 6), st.integers(1, 3), st.sampled_from([None, 0]))
@settings(deadline=None, max_examples=40)
def test_embedding(leading, tokens, features, padding_idx):
    """One-hot rows, one group a token; the groups add up to the output."""
    layer, x = nn.Embedding(tokens, features, padding_idx, scale_grad_by_freq=True), torch.randint(tokens, leading)
    hot = np.array([[[float(x[place] == token)] for place in np.ndindex(*leading)] for token in range(tokens)]).reshape(tokens, -1, 1)
    for ids in (x, x.int()):
        np.testing.assert_array_equal(rows(layer, ids).numpy(), hot)
        matrix, count = second_moment(layer, ids)
        assert count == x.numel()
        np.testing.assert_array_equal(matrix.numpy(), oracles.gram(hot))
    products = rows(layer, x) @ as_matrix(layer, layer.weight).mT  # (tokens, places, features)
    assert torch.equal(products.sum(0).view(*leading, features), layer(x))


@given(st.lists(st.integers(1, 4), max_size=3), st.integers(1, 5), st.integers(1, 4), st.booleans())
@settings(deadline=None, max_examples=30)
def test_linear(leading, features, outputs, bias):
    """Also of one unbatched vector, and of sequences."""
    layer, x = nn.Linear(features, outputs, bias), torch.randn(*leading, features)
    expected = np.array([x[place].numpy() for place in np.ndindex(*leading)])[None]
    np.testing.assert_array_equal(rows(layer, x).numpy(), expected)
    matrix, count = second_moment(layer, x)
    assert count == expected.shape[1]
    close(matrix, oracles.gram(expected), 1e-6)
    close(Gram(matrix, count, row_sum(layer, x)).augmented().matrix, oracles.gram(with_ones(expected)), 1e-6)
    product = rows(layer, x) @ as_matrix(layer, layer.weight).mT
    product = product + layer.bias if bias else product
    torch.testing.assert_close(product[0].view(*leading, outputs), layer(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3), (1, 3, 5)),
        (nn.Conv1d(4, 6, 3, groups=2), (2, 3, 6)),
        (nn.Conv2d(2, 3, (2, 3)), (1, 3, 12)),
        (nn.Conv3d(3, 3, 2, groups=3), (3, 1, 8)),
        (nn.Embedding(5, 3), (5, 3, 1)),
    ],
    ids=lambda value: str(value),
)
def test_as_matrix_is_a_view_that_writes_through(layer, shape):
    weight = torch.zeros_like(layer.weight)
    matrix = as_matrix(layer, weight)
    assert matrix.shape == shape
    matrix.copy_(torch.arange(matrix.numel()).view(shape))
    assert weight.flatten().tolist() == list(range(weight.numel()))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 9, 2)),
        (nn.ConvTranspose2d(2, 3, (2, 3)), (1, 18, 2)),
        (nn.ConvTranspose3d(2, 1, 1), (1, 1, 2)),
    ],
    ids=lambda value: str(value),
)
def test_as_matrix_of_a_transposed_convolution_writes_through(layer, shape):
    weight = torch.zeros_like(layer.weight)
    matrix = as_matrix(layer, weight)
    assert matrix.shape == shape
    matrix.copy_(torch.arange(matrix.numel()).view(shape))
    groups, outputs, each = shape
    expected = [
        [group * outputs * each + out * each + channel for out in range(outputs)] for group in range(groups) for channel in range(each)
    ]
    assert weight.flatten(1).tolist() == expected


class OtherForward(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x)


class OtherConv(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight + 1, bias)


def patched():
    layer = nn.Linear(2, 2)
    layer.forward = lambda x: 2 * x
    return layer


class SameForward(nn.Conv2d):
    def __init__(self, channels):
        super().__init__(channels, channels, 3, padding=1)


@pytest.mark.parametrize(
    ("layer", "known"),
    [
        (nn.Linear(2, 2), True),
        (nn.Conv3d(2, 2, 1), True),
        (SameForward(2), True),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2), True),
        (OtherForward(2, 2), False),
        (OtherConv(2, 2, 1), False),
        (patched(), False),
        (nn.ConvTranspose2d(2, 2, 1), True),
        (nn.Bilinear(2, 2, 2), False),
        (nn.Embedding(2, 2), True),
        (nn.EmbeddingBag(2, 2), False),
        (nn.BatchNorm1d(2), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_supported(layer, known):
    assert supported(layer) is known


def test_rows_of_an_unknown_layer():
    with pytest.raises(TypeError, match="Bilinear is not a layer whose input rows are known: register it"):
        rows(nn.Bilinear(2, 2, 2), torch.ones(1, 2))


@pytest.mark.parametrize(("layer", "shape"), [(nn.Linear(2, 3), (0, 2)), (nn.Conv2d(1, 1, (1, 2)), (0, 1, 4, 4))], ids=["linear", "conv2d"])
def test_an_input_without_rows(layer, shape):
    matrix, count = second_moment(layer, torch.ones(shape))
    assert (matrix.tolist(), count) == ([[[0, 0], [0, 0]]], 0)


def test_a_custom_layer_needs_rows_only():
    class Doubling(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 2))

        def forward(self, x):
            return 2 * x @ self.weight.T

    rows.register(Doubling, lambda layer, x: 2 * x.reshape(1, -1, 2))
    layer, x = Doubling(), torch.tensor([[1.0, 2.0]])
    assert supported(layer)
    assert second_moment(layer, x)[0].tolist() == [[[4.0, 8.0], [8.0, 16.0]]]
    torch.testing.assert_close((rows(layer, x) @ as_matrix(layer, layer.weight).mT)[0], layer(x))


def test_only_a_bias_that_is_added_to_each_row_is_a_column():
    class Doubled(nn.Linear):
        """Its rows are registered, and may be anything."""

    rows.register(Doubled, lambda layer, x: 2 * x.reshape(1, -1, layer.in_features))
    linear = nn.Linear(2, 3)
    assert bias_of(linear) is linear.bias
    others = (nn.Linear(2, 3, bias=False), nn.ConvTranspose1d(2, 3, 2), nn.MultiheadAttention(2, 1), nn.Embedding(2, 3), Doubled(2, 3))
    assert [bias_of(layer) for layer in others] == [None] * 5
