"""Measured interference against plain NumPy, and against what the statistics say."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import collect
from pgu_lightning.app.responses import measured_interference
from pgu_lightning.statistics.layers import as_matrix, weight_of
from tests import oracles


class Sums(nn.Module):
    """Attention over the columns of an image, in a layer whose fast path would pass over its parts."""

    def __init__(self):
        super().__init__()
        self.body = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.body(x.flatten(1, 2)).mean(1))


def moved(model, names, scale=0.1):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name in names:
                parameter += scale * torch.randn_like(parameter)
    return other


def loader(samples=37, batch_size=10):
    return DataLoader(TensorDataset(torch.randn(samples, 2, 3, 8), torch.arange(samples) % 4), batch_size)


def test_against_numpy():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(72, 4))
    data = loader()
    other = moved(model, ("0.weight", "3.weight", "3.bias"))
    found = measured_interference(model, other, data, ["0", "3"])

    x = data.dataset.tensors[0].double().numpy()
    before, after = ({name: value.double().numpy() for name, value in one.state_dict().items()} for one in (model, other))
    patches = oracles.convolution_rows(x, [3, 3], [1, 1], [1, 1], [3, 8], "zeros", [1, 1], 1)[0]
    old, new = (patches @ one["0.weight"].reshape(3, -1).T for one in (before, after))
    assert found["0"].own == pytest.approx(np.sum((new - old) ** 2) / np.sum(old**2), rel=1e-5)
    assert found["0"].with_inputs == pytest.approx(found["0"].own, rel=1e-6)  # the first layer's inputs are the data

    def head_inputs(product, bias):
        hidden = np.tanh((product + bias).reshape(37, 24, 3).transpose(0, 2, 1).reshape(37, 72))
        return np.concatenate([hidden, np.ones((37, 1))], 1)  # its bias moved too

    x_old, x_new = (head_inputs(product, before["0.bias"]) for product in (old, new))
    w_old, w_new = (np.concatenate([one["3.weight"], one["3.bias"][:, None]], 1) for one in (before, after))
    energy = np.sum((x_old @ w_old.T) ** 2)
    assert found["3"].own == pytest.approx(np.sum((x_old @ (w_new - w_old).T) ** 2) / energy, rel=1e-5)
    assert found["3"].with_inputs == pytest.approx(np.sum((x_new @ w_new.T - x_old @ w_old.T) ** 2) / energy, rel=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, groups=2), nn.ConvTranspose2d(4, 2, (1, 2)), nn.Flatten(), nn.Linear(8, 4)),
        Sums(),
    ],
    ids=["convolutions", "attention"],
)
def test_the_statistics_say_what_is_measured(model):
    data = loader()
    space = collect(model, data)
    other = moved(model, [f"{name}.weight" for name in space.protected] + ["body.self_attn.in_proj_weight"])
    found = measured_interference(model, other, data, list(space.protected))
    assert found.keys() == space.protected.keys()
    before, after = (dict(one.named_modules()) for one in (model, other))
    for name, info in space.protected.items():
        old, new = (as_matrix(part[name], weight_of(part[name]).detach()).double() for part in (before, after))
        gram = space.grams[info.gram]
        assert found[name].own == pytest.approx(gram.response(new - old) / gram.response(old), rel=1e-4)


def test_models_are_left_as_they_were():
    model = Sums().train()
    other = moved(model, ("head.weight",))
    before = {name: value.clone() for one in (model, other) for name, value in one.state_dict().items()}
    found = measured_interference(model, other, loader(), ["head", "body.linear1"])
    assert found["body.linear1"].own == found["body.linear1"].with_inputs == 0  # dropout is off in both
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert not any(module._forward_pre_hooks for one in (model, other) for module in one.modules())


def test_a_layer_without_a_response_is_left_out():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 4, bias=False))
    nn.init.zeros_(model[1].weight)
    assert measured_interference(model, moved(model, ("1.weight",)), loader(), ["1"]) == {}
