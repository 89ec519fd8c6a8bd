"""Nothing leaks and what is to be forgotten is, whatever precision, compilation and checkpointing of activations the trainer was given."""

from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from pgu_lightning import ForgetRequest, PGUCallback, collect
from pgu_lightning.projection import Hard
from pgu_lightning.settings import Settings
from tests.helpers.toys import Data, Module, accuracy, blobs, trainer

CLASS, TRAIN = ForgetRequest(classes=[2]), blobs(160)
IS_FORGET = TRAIN.tensors[1] == 2
OWN_STEPS = Settings(rule=Hard(0.9), optimizer=lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1), trust_radius=None, anchor=1.0)


class Checkpointed(nn.Module):
    """Forgets its activations and computes them again in the backward pass: every hook in it is called twice."""

    def __init__(self, net):
        super().__init__()
        self._checkpoint_wrapped_module = net

    def forward(self, x):
        return checkpoint(self._checkpoint_wrapped_module, x, use_reentrant=False)


def checkpointed(module):
    module.net = Checkpointed(module.net)
    return module


def compiled_before(module):
    module.net = torch.compile(module.net, backend="eager")
    return module


def compiled_after(module):
    """The callback's setup comes before configure_model."""
    module.configure_model = lambda: module.net.compile(backend="eager")
    return module


def scaled():
    """16-mixed needs CUDA only for its default gradient scaler."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))


CASES = {
    "32-true": ({}, lambda module: module),
    "bf16-mixed": ({"precision": "bf16-mixed"}, lambda module: module),
    "16-mixed": ({"plugins": scaled}, lambda module: module),
    "compiled before": ({}, compiled_before),
    "compiled after": ({}, compiled_after),
    "compiled, bf16-mixed": ({"precision": "bf16-mixed"}, compiled_before),
    "checkpointed": ({}, checkpointed),
    "accumulated": ({"accumulate_grad_batches": 2}, lambda module: module),
    "clipped by norm": ({"gradient_clip_val": 0.01}, lambda module: module),
    "clipped by value": ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, lambda module: module),
}


@pytest.fixture(scope="module")
def start():
    L.seed_everything(0, verbose=False)
    module = Module()
    trainer(15).fit(module, DataLoader(TRAIN, 32, shuffle=True))
    return module, collect(module, DataLoader(TRAIN, 64))


def unlearn(start, settings, options, prepare=lambda module: module):
    """The layers' weights before and after, and the callback."""
    module, space = copy.deepcopy(start[0]), start[1]
    plain = {name: module.get_submodule(f"net.{name}") for name in ("0", "5", "7")}
    before = {name: layer.weight.detach().clone() for name, layer in plain.items()}
    options = {name: value() if callable(value) else value for name, value in options.items()}
    callback = PGUCallback(CLASS, retain_space=space, settings=settings)
    trainer(100, [callback], **options).fit(prepare(module), datamodule=Data())
    return before, {name: layer.weight.detach() for name, layer in plain.items()}, callback, module


@pytest.mark.parametrize("case", CASES)
def test_the_optimizers_own_steps_do_not_leak(start, case):
    before, after, callback, module = unlearn(start, OWN_STEPS, *CASES[case])
    assert callback.report.outcome.fulfilled
    assert accuracy(module, TRAIN, IS_FORGET) == 0
    for name, old in before.items():
        assert (after[name] - old).norm() > 1e-2
        assert leak(callback.space, name, old, after[name]) <= 1e-6


def leak(space, name, before, after):
    """The share of a layer's change in the fewest leading eigenvectors that hold nine tenths of the energy."""
    values, vectors = torch.linalg.eigh(space.grams[f"net.{name}"].matrix[0])
    rank = int((values.flip(0).cumsum(0) / values.sum() < 0.9).sum()) + 1
    change = (after.double() - before.double()).flatten(1)
    return float((change @ vectors[:, -rank:]).norm() / change.norm())


@pytest.fixture(scope="module")
def usual(start):
    return unlearn(start, Settings(), {})


@pytest.mark.parametrize(
    ("case", "tolerance"),
    [("compiled before", 1e-5), ("compiled after", 1e-5), ("checkpointed", 1e-5), ("bf16-mixed", 0.05), ("16-mixed", 0.02)],
)
def test_the_default_ends_where_it_ends_in_float32(start, usual, case, tolerance):
    before, after, callback, _ = unlearn(start, Settings(), *CASES[case])
    assert callback.report.outcome.fulfilled
    for key, gram in usual[2].space.grams.items():  # collected in float32, each row once
        assert callback.space.grams[key].rows == gram.rows
        assert (callback.space.grams[key].matrix - gram.matrix).norm() <= 1e-6 * gram.matrix.norm()
    for name, weight in after.items():
        assert (weight - usual[1][name]).norm() <= tolerance * usual[1][name].norm(), case
        assert not torch.equal(weight, before[name])


def test_half_precision_weights_are_warned_of(start, caplog):
    """The module is float32 until the trainer converts it: only then does it have the weights that were collected at."""
    collected = PGUCallback()
    trained = copy.deepcopy(start[0])
    trainer(1, [collected], precision="bf16-true").fit(trained, datamodule=Data())
    module = Module()
    module.load_state_dict(trained.state_dict())
    before, after, callback, _ = unlearn((module, collected.space), OWN_STEPS, {"precision": "bf16-true"})
    assert "rounding alone" in caplog.text
    assert "rounding alone" in " ".join(callback.report.outcome.notes)
    leaks = {name: leak(callback.space, name, old, after[name]) for name, old in before.items()}
    assert max(leaks.values()) > 1e-3


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("case", ["32-true", "16-mixed", "accumulated"])
def test_a_step_whose_gradient_is_not_finite_is_skipped_and_the_next_is_not(start, case, broken):
    steps = 0

    class Breaks(L.Callback):
        def on_after_backward(self, trainer, pl_module):
            nonlocal steps
            steps += 1
            if steps == 1:
                pl_module.net[5].weight.grad[0, 0] = broken

    module = copy.deepcopy(start[0])
    settings = Settings(batch_size=15)
    callback = PGUCallback(CLASS, retain_space=start[1], settings=settings)
    options = {name: value() if callable(value) else value for name, value in CASES[case][0].items()}
    trainer(100, [callback, Breaks()], **options).fit(module, datamodule=Data())
    outcome = callback.report.outcome
    assert (outcome.fulfilled, outcome.skipped) == (True, 1)
    assert "1 of" in " ".join(outcome.notes)
    assert all(bool(value.isfinite().all()) for value in module.state_dict().values())
