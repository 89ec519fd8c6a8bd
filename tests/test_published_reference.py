"""PGU as published (Hoang et al., WACV 2024): the callback in a Trainer against float64 NumPy, on the three published architectures."""

from __future__ import annotations

import dataclasses

import lightning as L
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import ForgetRequest, PGUCallback, collect
from pgu_lightning.methods import exponential_decay
from pgu_lightning.models import AllCNN, Classifier, ResNet18, SmallVGG
from pgu_lightning.projection import Scale, rules
from pgu_lightning.stopping import Epochs
from tests import numpy_networks
from tests.helpers.toys import trainer

CLASSES, STEPS, LAST = 4, 20, 5
ARCHITECTURES = {  # ours at a tiny size; the oracle; the images' size; learning rates at the start and at the end
    "SmallVGG": (lambda: SmallVGG((3, 8, 8), CLASSES, widths=(4, 6), hidden=(12,)), numpy_networks.small_vgg(2), 8, 0.05, 0.01),
    "All-CNN": (lambda: AllCNN((3, 8, 8), CLASSES, width=0.06), numpy_networks.all_cnn(), 8, 0.1, 0.01),
    "ResNet-18": (lambda: ResNet18((3, 20, 20), CLASSES, widths=(4, 8, 15, 31)), numpy_networks.resnet18(), 20, 0.05, 0.01),
}
FORGET = {"class": {"classes": [1]}, "samples": {"indices": range(0, 60, 5)}, "poison": {"indices": range(0, 60, 5), "kind": "poison"}}
KINDS = {  # what is forgotten, the oracle's loss, how many columns a linear layer scales
    "class": ("class", numpy_networks.published_slope, None),
    "samples": ("samples", numpy_networks.published_slope, None),
    "poison": ("poison", numpy_networks.depoison_slope, LAST),
    "poison without scale": ("poison", numpy_networks.depoison_slope, None),
}


class Watch(L.Callback):
    """Takes down the first step's gradients, and the weights after it."""

    def __init__(self, names):
        self.names = names

    def weights(self, module):
        return {name: matrix(module.get_submodule(f"network.{name}").weight) for name in self.names}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if not hasattr(self, "gradient"):
            self.gradient = {name: matrix(module.get_submodule(f"network.{name}").weight.grad) for name in self.names}

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if not hasattr(self, "first"):
            self.first = self.weights(module)


def matrix(weight):
    return weight.detach().flatten(1).numpy().copy()


def in_use(make):
    """A network in float64 whose normalisation has seen data."""
    network = make().double().eval()
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for value, low, high in (
                (norm.weight, 0.7, 1.3),
                (norm.bias, -0.2, 0.2),
                (norm.running_mean, -0.2, 0.2),
                (norm.running_var, 0.5, 2),
            ):
                nn.init.uniform_(value, low, high)
    return Classifier(network, lambda parameters: torch.optim.SGD(parameters, 0.1), epochs=1).double()


def published(kind, last, start, end):
    """The settings of conf/method/pgu_paper.yaml, with the architecture's learning rates, for a number of steps that is given."""
    with initialize_config_module("pgu_lightning.conf", version_base="1.3"):
        settings = instantiate(compose("config", overrides=["method=pgu_paper"]).method.settings, _convert_="all")
    assert settings.scale_for(kind) == (Scale(0.1, 400) if kind == "poison" else None)
    return dataclasses.replace(
        settings,
        optimizer=lambda parameters: torch.optim.SGD(parameters, start),
        scheduler=lambda optimizer: exponential_decay(optimizer, end, STEPS),
        stop=Epochs(STEPS),
        scale=None if last is None else Scale(0.1, last),
    )


def close(found, expected):
    """To 1e-5 of each layer's norm; a layer that is protected whole stands still."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert np.linalg.norm(found[name] - value) <= 1e-5 * np.linalg.norm(value) + 1e-14, name


def difference(one, other, factor=1.0):
    return {name: (value - other[name]) * factor for name, value in one.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gradient_projected_gradient_and_twenty_steps(architecture, kind, monkeypatch):
    # Everything is float64 here: no small eigenvalue is rounding of float32.
    monkeypatch.setattr(rules, "NOISE", 1e-14)
    make, network, size, start, end = ARCHITECTURES[architecture]
    kind, slope, last = KINDS[kind]
    module = in_use(make)
    x, y = torch.randn(60, 3, size, size, dtype=torch.float64), torch.arange(60) % CLASSES
    state = {name: value.numpy().copy() for name, value in module.network.state_dict().items()}
    forget = (y == 1).numpy() if kind == "class" else np.isin(np.arange(60), FORGET[kind]["indices"])

    loader, watch = DataLoader(TensorDataset(x, y), 16), Watch([layer.name for layer in network.layers()])
    space, before = collect(module, loader), watch.weights(module)
    callback = PGUCallback(ForgetRequest(**FORGET[kind]), retain_space=space, settings=published(kind, last, start, end))
    trainer(STEPS, [callback, watch], precision="64-true").fit(module, loader)
    after = watch.weights(module)

    reference = numpy_networks.PublishedSteps(network, state, x[~forget].numpy(), 0.95, slope, last)
    assert {name.removeprefix("network."): layer.rank for name, layer in callback.report.layers.items()} == reference.ranks
    batch, expected = (x[forget].numpy(), y[forget].numpy()), []
    close(watch.gradient, reference.gradient(*batch))
    for step in range(STEPS):
        reference.step(*batch, start * (end / start) ** (step / STEPS))
        expected.append({name: reference.effective(name) for name in reference.weights})
    # What the first step takes, over its length, is the projected gradient, and with a scale what that adds.
    close(difference(before, watch.first, 1 / start), difference(before, expected[0], 1 / start))
    close(after, expected[-1])
    close(difference(after, before), difference(expected[-1], before))  # it is 1e-4 to 1e-2 of the weights
