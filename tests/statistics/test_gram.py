"""Arithmetic of Gram matrices, and what a change of the weight does to a layer's output, known without the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pgu_lightning.statistics import Gram
from pgu_lightning.statistics.layers import as_matrix, rows
from pgu_lightning.statistics.moment import second_moment
from tests import oracles

LAYERS = {
    "linear": (lambda: nn.Linear(5, 4), (7, 5)),
    "tokens": (lambda: nn.Linear(3, 2), (2, 4, 3)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2), (3, 2, 8)),
    "conv2d": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 5, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2), (2, 4, 6, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 3, 2)),  # no taps overlap
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, padding="same"), (2, 2, 3, 4, 3)),
}


@pytest.fixture(params=LAYERS, ids=str)
def layer_and_input(request):
    make, shape = LAYERS[request.param]
    return make().double(), torch.randn(shape, dtype=torch.float64)


def test_arithmetic():
    one, other = (Gram(torch.randn(2, 3, 3, dtype=torch.float64), rows) for rows in (5, 3))
    assert (one + one).sums is None
    total, difference = one + other, one - other
    assert (total.rows, difference.rows, total.dim) == (8, 2, 3)
    np.testing.assert_array_equal(total.matrix.numpy(), one.matrix.numpy() + other.matrix.numpy())
    np.testing.assert_array_equal(difference.matrix.numpy(), one.matrix.numpy() - other.matrix.numpy())
    torch.testing.assert_close((total - other).matrix, one.matrix)
    first, second = (np.random.default_rng(seed).normal(size=(2, 7, 3)) for seed in (0, 1))
    one, other = (Gram(torch.from_numpy(oracles.gram(x)), 7, torch.from_numpy(x.sum(1))) for x in (first, second))
    both = np.concatenate([np.concatenate([first, second], 1), np.ones((2, 14, 1))], -1)
    np.testing.assert_allclose((one + other).augmented().matrix, oracles.gram(both), atol=1e-12)
    np.testing.assert_allclose((one + other - one).augmented().matrix, other.augmented().matrix, atol=1e-12)
    with pytest.raises(ValueError, match="not taken down"):
        Gram(one.matrix, 7).augmented()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_response_is_the_squared_output(layer_and_input):
    layer, x = layer_and_input
    gram = Gram(*second_moment(layer, x))
    weight = as_matrix(layer, layer.weight.detach())
    dense = sum(np.linalg.norm(w @ r.T) ** 2 for w, r in zip(weight.numpy(), rows(layer, x).numpy(), strict=True))
    assert gram.response(weight) == pytest.approx(dense, rel=1e-12)
    assert gram.response(weight) == pytest.approx(oracles.response(weight.numpy(), gram.matrix.numpy()), rel=1e-12)
    assert gram.response(weight.float()) == pytest.approx(dense, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_interference_is_the_measured_change_of_the_output(layer_and_input):
    """Invariant 3."""
    layer, x = layer_and_input
    gram = Gram(*second_moment(layer, x))
    with torch.no_grad():
        layer.bias.zero_()
        before, weight = layer(x), layer.weight.clone()
        layer.weight.add_(torch.randn_like(weight), alpha=0.1)
        measured = float((layer(x) - before).square().sum() / before.square().sum())
        known = gram.response(as_matrix(layer, layer.weight - weight)) / gram.response(as_matrix(layer, weight))
    assert known == pytest.approx(measured, rel=1e-10)
