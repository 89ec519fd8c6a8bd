"""Class forgetting in closed form: the formulas against NumPy, and whole runs on real digits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import ForgetRequest, collect
from pgu_lightning.methods import ClosedForm, Job
from pgu_lightning.methods.closed_form import discriminating
from pgu_lightning.projection import Spectrum
from pgu_lightning.statistics import Gram, RetainSpace, fingerprint
from tests import oracles
from tests.app.test_configs import composed
from tests.app.test_experiment import report_of
from tests.helpers.toys import Data, Module, trainer


def rows(groups: int, count: int, dim: int, rank: int) -> torch.Tensor:
    return torch.randn(groups, count, rank, dtype=torch.float64) @ torch.randn(groups, rank, dim, dtype=torch.float64)


def gram(rows: torch.Tensor) -> Gram:
    return Gram(rows.mT @ rows, rows.shape[1])


@pytest.mark.parametrize("alphas", [(1.0, 1.0), (100.0, 3.0), (0.5, 1000.0)])
@pytest.mark.parametrize(("groups", "rank"), [(1, 9), (3, 4)])
def test_the_formula(alphas, groups, rank):
    weight = torch.randn(groups, 5, 9, dtype=torch.float64)
    retain, forget = gram(rows(groups, 40, 9, rank)), gram(rows(groups, 7, 9, rank))
    found = weight - discriminating(weight, Spectrum.of(retain), Spectrum.of(forget), *alphas)
    wanted = oracles.class_removed(weight.numpy(), retain.matrix.numpy(), forget.matrix.numpy(), *alphas)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-9)


def test_what_is_forgotten_is_seen_as_its_shared_part_alone():
    weight, retain, forget = torch.randn(1, 5, 12, dtype=torch.float64), rows(1, 40, 12, 4), rows(1, 20, 12, 3)
    new = weight - discriminating(weight, Spectrum.of(gram(retain)), Spectrum.of(gram(forget)), 1e9, 1e9)
    shared = torch.from_numpy(np.linalg.pinv(retain[0].numpy()) @ retain[0].numpy())  # the orthogonal projector on the retain space
    np.testing.assert_allclose((forget @ new.mT).numpy(), (forget @ shared @ weight.mT).numpy(), atol=1e-5)


def test_empty_statistics_change_nothing():
    weight, nothing = torch.randn(1, 5, 4, dtype=torch.float64), Spectrum.of(Gram(torch.zeros(1, 4, 4, dtype=torch.float64), 3))
    assert not discriminating(weight, Spectrum.of(gram(rows(1, 8, 4, 4))), nothing, 3.0, 3.0).any()


@pytest.fixture
def job(tmp_path):
    """A class of a toy task, with a model that knows it."""
    data, module = Data(), Module()
    data.setup()
    trainer(8).fit(module, datamodule=data)
    module.eval()
    collect(module, data.train_dataloader()).save(tmp_path / "retain.safetensors")
    request = ForgetRequest(classes=[2])
    split = request.split(data.train)
    return Job(
        module, Module, data, request, split, tmp_path / "retain.safetensors", lambda **given: trainer(**{"max_epochs": 1} | given), 8, 0
    )


def test_the_best_of_the_grid_is_kept_and_the_statistics_are_reduced(job):
    full, before = RetainSpace.load(job.retain_space), {name: value.clone() for name, value in job.module.state_dict().items()}
    forget = collect(job.module, DataLoader(job.split.forget, 32))
    module, report = ClosedForm("closed_form", [10, 100, 1000], [1, 3]).unlearn(job)
    alphas = report.method.settings["retain_alpha"], report.method.settings["forget_alpha"]
    assert alphas in report.method.settings["tried"]
    assert len(report.method.settings["tried"]) == 6
    energy = change = 0.0
    for name, layer in full.protected.items():
        weight, matrices = before[f"{name}.weight"].reshape(layer.shape), (full.grams[name].matrix - forget.grams[name].matrix).numpy()
        wanted = oracles.class_removed(weight.numpy(), matrices, forget.grams[name].matrix.numpy(), *alphas)
        found = module.state_dict()[f"{name}.weight"].reshape(layer.shape)
        np.testing.assert_allclose(found.numpy(), wanted, atol=1e-5)
        parts = oracles.response((found - weight).numpy(), matrices), oracles.response(weight.numpy(), matrices)
        assert report.interference.layers[name] == pytest.approx(parts[0] / parts[1], rel=1e-4)
        assert report.layers[name].dim == layer.shape[-1]
        assert report.layers[name].rank + report.layers[name].free == layer.shape[0] * layer.shape[-1]
        change, energy = change + parts[0], energy + parts[1]
    assert report.interference.total == pytest.approx(change / energy, rel=1e-4)
    others = {name for name in before if not torch.equal(before[name], module.state_dict()[name])}
    assert others == {f"{name}.weight" for name in full.protected}

    assert report.models["original"]["forget_accuracy"] > 0.9
    assert report.models["unlearned"]["forget_accuracy"] == 0
    assert report.outcome.fulfilled
    reduced = RetainSpace.load(job.retain_space)
    assert reduced.provenance.samples == full.provenance.samples - len(job.split.forget)
    assert reduced.belongs_to(fingerprint(module))


def test_a_grid_that_does_not_forget_is_not_fulfilled_and_leaves_the_statistics_alone(job):
    before = job.retain_space.read_bytes()
    _, report = ClosedForm("closed_form", [10], [1e-9]).unlearn(job)
    assert not report.outcome.fulfilled
    assert "not fulfilled" in report.outcome.notes[0]
    assert report.models["unlearned"] == report.models["original"]
    assert job.retain_space.read_bytes() == before


def test_other_requests_are_refused(job):
    request = ForgetRequest(indices=range(5))
    samples = dataclasses.replace(job, request=request, split=request.split(job.data.train))
    with pytest.raises(ValueError, match="forgets whole classes, this request is of kind 'samples'"):
        ClosedForm("closed_form", [10], [1]).unlearn(samples)


def test_validation_data_is_asked_for(job, monkeypatch):
    monkeypatch.setattr(job.data, "val_dataloader", lambda: [])
    with pytest.raises(ValueError, match="no validation data"):
        ClosedForm("closed_form", [10], [1]).unlearn(job)
    gone = TensorDataset(torch.zeros(3, 3, 2, 2), torch.full((3,), 2))
    monkeypatch.setattr(job.data, "val_dataloader", lambda: DataLoader(gone))
    with pytest.raises(ValueError, match="no validation sample of a class that stays"):
        ClosedForm("closed_form", [10], [1]).unlearn(job)


@pytest.mark.parametrize("grid", [([], [1]), ([1], []), ([1, 0], [1]), ([1], [-2])])
def test_scales_are_above_zero(grid):
    with pytest.raises(ValueError, match="scales above 0"):
        ClosedForm("closed_form", *grid)


def test_digits(tmp_path):
    report, _ = report_of(tmp_path, "run", "method=closed_form", "reference=false", "model.epochs=8")
    original, unlearned = report.models["original"], report.models["unlearned"]
    assert original["forget_accuracy"] > 0.95
    assert unlearned["forget_accuracy"] < 0.02
    assert unlearned["forget_test_accuracy"] < 0.05
    assert unlearned["retain_accuracy"] > original["retain_accuracy"] - 0.03
    assert unlearned["test_accuracy"] > original["test_accuracy"] - 0.05
    assert report.method.name == instantiate(composed("method=closed_form", tmp_path=tmp_path).method).name
    assert report.seconds["unlearn"] > 0
