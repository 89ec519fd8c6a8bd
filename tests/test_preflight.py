"""What is said before the first step, against the formulas in NumPy; and that only what cannot work is refused."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import ForgetRequest, PGUCallback, collect
from pgu_lightning.evaluation import Scores
from pgu_lightning.preflight import accuracy_error, advise, chosen, what_survives
from pgu_lightning.projection import Hard, Projector, Soft, Spectrum, UpdateGuard
from pgu_lightning.records import Preflight, PreflightLayer
from pgu_lightning.settings import Settings
from pgu_lightning.statistics import Gram, fingerprint
from pgu_lightning.stopping import Epoch
from tests import oracles
from tests.helpers.toys import Data, Module, blobs, trainer

GROUPS = {"linear": 1, "conv": 1, "grouped": 2}
TRAIN = blobs(160)


def problem(rule, rank=4):
    """Three layers, statistics of rank ``rank`` and gradients in float64 NumPy, and the guard on them."""
    generator = np.random.default_rng(0)
    modules = {"linear": nn.Linear(20, 10), "conv": nn.Conv2d(2, 6, 3), "grouped": nn.Conv1d(6, 8, 3, groups=2)}
    dims = {"linear": 20, "conv": 18, "grouped": 9}
    matrices = {
        name: oracles.gram(generator.normal(size=(groups, 60, rank)) @ generator.normal(size=(groups, rank, dims[name])))
        for name, groups in GROUPS.items()
    }
    spectra = {name: Spectrum.of(Gram(torch.from_numpy(matrices[name]), 60)) for name in modules}
    projectors = {name: Projector(spectrum, rule, modules[name].weight) for name, spectrum in spectra.items()}
    guard = UpdateGuard(modules, projectors, {name: spectrum.matrix for name, spectrum in spectra.items()})
    gradient = {name: torch.from_numpy(generator.normal(size=tuple(layer.weight.shape))).float() for name, layer in modules.items()}
    return modules, matrices, guard, gradient


def as_matrix(name, tensor):
    array = tensor.detach().double().numpy()
    return array.reshape(GROUPS[name], array.shape[0] // GROUPS[name], -1)


def filter_of(matrix, rule):
    """P of one group, from the definition of the rule."""
    values, vectors = np.linalg.eigh(matrix)
    values = values.clip(min=0)
    if isinstance(rule, Soft):
        gains = rule.damping * values.mean() / (values + rule.damping * values.mean())
    else:
        leading = np.cumsum(values[::-1])  # the fewest that hold the share are protected
        protected = int(np.searchsorted(leading, rule.retained_variance * leading[-1])) + 1
        gains = np.arange(len(values)) < len(values) - protected
    return vectors @ np.diag(gains) @ vectors.T


@pytest.mark.parametrize("rule", [Hard(0.8), Soft(0.01)], ids=["hard", "soft"])
@pytest.mark.parametrize("radius", [0.01, 1e6], ids=["radius", "length of the weights"])
def test_the_figures_follow_the_formulas(rule, radius):
    modules, matrices, guard, gradient = problem(rule)
    found = what_survives(gradient, guard, radius)
    total = dict.fromkeys(("before", "after", "moved", "energy", "weights"), 0.0)
    moved = {}
    for name, layer in modules.items():
        before = as_matrix(name, gradient[name])
        after = np.stack([part @ filter_of(matrix, rule) for part, matrix in zip(before, matrices[name], strict=True)])
        weight = as_matrix(name, layer.weight)
        assert found.layers[name].survives == pytest.approx(np.linalg.norm(after) / np.linalg.norm(before), rel=1e-5)
        moved[name] = np.einsum("gij,gjk,gik->", after, matrices[name], after)
        total["before"] += (before**2).sum()
        total["after"] += (after**2).sum()
        total["energy"] += np.einsum("gij,gjk,gik->", weight, matrices[name], weight)
        total["weights"] += (weight**2).sum()
    total["moved"] = sum(moved.values())
    assert found.survives == pytest.approx(math.sqrt(total["after"] / total["before"]), rel=1e-5)
    longest = total["moved"] / total["energy"] * total["weights"] / total["after"]
    assert found.interference == pytest.approx(min(radius**2, longest), rel=1e-3)  # float32 products
    shares = {name: layer.share for name, layer in found.layers.items()}
    assert shares == pytest.approx({name: part / total["moved"] for name, part in moved.items()}, rel=1e-3)


def test_looking_changes_nothing():
    modules, _, guard, gradient = problem(Soft())
    before = {name: value.clone() for name, value in gradient.items()}, {name: fingerprint(layer) for name, layer in modules.items()}
    what_survives(gradient, guard, 0.01)
    assert all(torch.equal(gradient[name], before[0][name]) for name in gradient)
    assert {name: fingerprint(layer) for name, layer in modules.items()} == before[1]


def scores(count, right, label=0):
    """``right`` of ``count`` answers are right."""
    logits = torch.tensor([[2.0, 0.0, 0.0]]).repeat(count, 1)
    target = torch.tensor([0] * right + [1] * (count - right))
    found = Scores.of(logits, target)
    return dataclasses.replace(found, label=torch.full((count,), label))


def figures(survives=0.1, clamped=0.0, free=5):
    return Preflight({"conv1": PreflightLayer(9, free, survives, 1.0, clamped)}, 0, survives, 1e-4)


def start(validation, gone=()):
    return Epoch(0, scores(5000, 5000), validation, 3, gone=gone)


def test_nothing_speaks_against_a_good_start():
    found = advise(figures(), "samples", Settings(), start(scores(400, 300)))
    assert (found.warnings, found.refusal, found.samples) == ((), None, 2000)
    assert found.accuracy_error == pytest.approx(np.sqrt(0.75 * 0.25 / 400))


def test_the_standard_error_is_that_of_repeated_draws():
    draws = np.random.default_rng(0).binomial(50, 0.8, size=20_000) / 50
    assert accuracy_error(scores(50, 40)) == pytest.approx(draws.std(), rel=0.02)


@pytest.mark.parametrize(
    ("changes", "kind", "validation", "gone", "words"),
    [
        ({"clamped": 0.09}, "class", scores(200, 150, label=2), (2,), r"conv1 0\.090.*collect them again"),
        ({}, "samples", scores(64, 48), (), r"64 validation samples: its standard error is 0\.054"),
        ({}, "samples", scores(64, 64), (), r"64 validation samples: they are all alike.*at least 100"),
        ({}, "class", scores(200, 150), (2,), r"no validation sample with label 2.*membership trace"),
        ({}, "class", None, (1, 2), r"no validation sample with label 1, 2"),
        ({"survives": None}, "poison", scores(200, 150), (), r"no gradient.*Margin\(\)"),
    ],
    ids=["clamped", "little validation", "all right", "none of the class", "none at all", "no gradient"],
)
def test_each_warning_says_what_to_do(changes, kind, validation, gone, words):
    found = advise(figures(**changes), kind, Settings(), start(validation, gone))
    assert found.refusal is None
    (warning,) = found.warnings
    assert re.search(words, warning)


def test_refuses_where_nothing_passes():
    found = advise(figures(survives=0.0, free=0), "poison", Settings(rule=Hard(1.0)), start(scores(200, 150)))
    assert "no layer has a free direction. Use the rule Soft()" in found.refusal
    found = advise(figures(survives=3e-7), "poison", Settings(rule=Hard(1.0)), start(scores(200, 150)))
    assert "5 directions are free (9 inputs), and the forget set uses none" in found.refusal


def test_statistics_that_earlier_requests_have_used_up():
    def advice(drift, **changes):
        return advise(figures(**changes), "samples", Settings(), start(scores(400, 300)), drift)

    assert (advice(0.2).warnings, advice(0.2).refusal) == ((), None)
    assert "by 0.30 of its size" in advice(0.3).warnings[0]
    assert advice(0.3).refusal is None
    assert "Collect again over the retained data at the present weights" in advice(1.2).refusal
    assert "0.40 of a layer's statistics is less than nothing" in advice(0.1, clamped=0.4).refusal
    assert advice(0.0, clamped=0.4).refusal is None  # a first request: warned of, as before


def test_looks_at_few_samples_of_many_evenly():
    assert chosen(7).tolist() == list(range(7))
    many = chosen(4500)
    assert len(many) == len(set(many.tolist())) == 2000
    assert many[0] == 0
    assert many[-1] >= 4497
    assert int(many.diff().max()) == 3


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    module = Module()
    trainer(10).fit(module, datamodule=Data())
    return module, collect(module, DataLoader(TRAIN, 32))


def unlearn(trained, settings, request=None, data=None, epochs=3):
    module = copy.deepcopy(trained[0])
    callback = PGUCallback(request or ForgetRequest(classes=[2]), retain_space=trained[1], settings=settings)
    fit = trainer(epochs, [callback])
    fit.fit(module, datamodule=data or Data())
    return module, callback


@pytest.mark.parametrize("batch_size", [500, 7], ids=["one batch", "several"])
def test_the_gradient_is_that_of_the_forget_loss(trained, batch_size):
    """Against autograd over the whole forget set at once, in the model's eval mode."""
    module, callback = unlearn(trained, Settings(batch_size=batch_size, preflight="only"))
    x, y = TRAIN.tensors
    module.eval()
    logits = module(x[y == 2])
    others = logits[:, [0, 1, 3]].logsumexp(1)
    loss = F.softplus(logits[:, 2] - others).mean()
    layers = {"net.0": module.net[0], "net.5": module.net[5], "net.7": module.net[7]}
    retained = collect(trained[0], DataLoader(TensorDataset(x[y != 2], y[y != 2]), 120))
    found = torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
    for (name, layer), gradient in zip(layers.items(), found, strict=True):
        matrix = gradient.double().numpy().reshape(layer.weight.shape[0], -1)
        expected = np.linalg.norm(matrix @ filter_of(retained.grams[name].matrix[0].numpy(), Soft())) / np.linalg.norm(matrix)
        assert callback.preflight.layers[name].survives == pytest.approx(expected, rel=1e-3)


def test_only_looking_leaves_everything_as_it_was(trained, tmp_path):
    path = tmp_path / "model.retain.safetensors"
    trained[1].save(path)
    before = path.read_bytes()
    module = copy.deepcopy(trained[0])
    callback = PGUCallback(ForgetRequest(classes=[2]), retain_space=path, settings=Settings(preflight="only"))
    trainer(50, [callback]).fit(module, datamodule=Data())
    assert fingerprint(module) == fingerprint(trained[0])
    assert path.read_bytes() == before
    assert callback.report.preflight is callback.preflight
    assert callback.report.models["unlearned"] == callback.report.models["original"]
    assert (callback.report.outcome.fulfilled, callback.report.outcome.steps) == (False, 0)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_looking_first_does_not_change_what_comes_of_it(trained):
    weights = [fingerprint(unlearn(trained, Settings(preflight=look))[0]) for look in (True, False)]
    assert weights[0] == weights[1] != fingerprint(trained[0])


def test_a_refused_request_changes_nothing(trained):
    module = copy.deepcopy(trained[0])
    callback = PGUCallback(ForgetRequest(classes=[2]), retain_space=trained[1], settings=Settings(rule=torch.zeros_like))
    with pytest.raises(ValueError, match=r"no layer has a free direction. Use the rule Soft\(\)"):
        trainer(3, [callback]).fit(module, datamodule=Data())
    assert fingerprint(module) == fingerprint(trained[0])
    assert callback.report is None
    assert callback.preflight.survives == 0


def test_few_validation_samples_are_warned_of(trained, caplog):
    with caplog.at_level(logging.WARNING, logger="pgu_lightning"):
        _, callback = unlearn(trained, Settings(), ForgetRequest(indices=[0, 5, 9]), epochs=1)
    assert "comes from 80 validation samples" in caplog.text
    assert callback.report.preflight.warnings == callback.preflight.warnings


def test_a_switch_cannot_only_look():
    with pytest.raises(ValueError, match="looks at a trained model"):
        PGUCallback(ForgetRequest(classes=[2]), switch_at_epoch=2, settings=Settings(preflight="only"))
    with pytest.raises(ValueError, match="preflight must be True, False"):
        Settings(preflight="maybe")
