"""One request after the other on the same model and statistics."""

from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import ForgetRequest, PGUCallback, RetainSpace, collect
from pgu_lightning.settings import Settings
from pgu_lightning.stopping import AccuracyGap, Epochs
from tests.helpers.toys import Data, Module, accuracy, blobs, trainer

TRAIN, VALIDATION = blobs(160), blobs(80, seed=1)
LABEL = TRAIN.tensors[1]


@pytest.fixture(scope="module")
def trained():
    L.seed_everything(0, verbose=False)
    module, callback = Module(), PGUCallback()
    trainer(15, [callback]).fit(module, datamodule=Data())
    return module, callback.space


def request(module, space, request, settings=None, epochs=100):
    """The callback after one more request; its file is the only thing that goes from one to the next."""
    pgu = PGUCallback(request, retain_space=space, settings=settings)
    trainer(epochs, [pgu]).fit(module, datamodule=Data())
    return pgu


def test_three_classes_one_after_the_other(trained, tmp_path):
    module, path = copy.deepcopy(trained[0]), trained[1].save(tmp_path / "space.safetensors")
    for place, label in enumerate((2, 0)):
        report = request(module, path, ForgetRequest(classes=[label])).report
        assert report.outcome.fulfilled, report.outcome
        assert [past.request.classes for past in report.earlier] == [(2,), (0,)][:place]
    assert report.earlier[0].request.size == int((LABEL == 2).sum())
    assert report.earlier[0].models["original"]["forget_accuracy"] == 0
    assert report.earlier[0].models["unlearned"]["forget_accuracy"] == accuracy(module, TRAIN, LABEL == 2) == 0
    assert accuracy(module, TRAIN, (LABEL == 1) | (LABEL == 3)) >= 0.97
    # a class that is gone is not missed in the validation data
    assert report.models["original"]["validation_accuracy"] == pytest.approx(report.models["unlearned"]["validation_accuracy"], abs=0.03)
    kept = RetainSpace.load(path)
    assert [past.classes for past in kept.provenance.fulfilled] == [(2,), (0,)]
    assert kept.provenance.fulfilled[1].interference == report.interference.total > 0
    assert kept.provenance.samples == int(((LABEL == 1) | (LABEL == 3)).sum())


def test_the_statistics_of_the_first_layer_are_those_of_what_is_left(trained, tmp_path):
    """Its input is the data itself, whatever the weights: full minus both forget sets, exactly."""
    module, path = copy.deepcopy(trained[0]), trained[1].save(tmp_path / "space.safetensors")
    for positions in (range(0, 20), range(20, 50)):
        request(module, path, ForgetRequest(indices=positions), Settings(stop=Epochs(2)))
    left = collect(module, DataLoader(TensorDataset(*(part[50:] for part in TRAIN.tensors)), 16))
    found, expected = RetainSpace.load(path).grams["net.0"].matrix, left.grams["net.0"].matrix
    assert (found - expected).norm() <= 1e-6 * expected.norm()


def test_the_same_sample_is_not_asked_for_twice(trained, tmp_path):
    module, path = copy.deepcopy(trained[0]), trained[1].save(tmp_path / "space.safetensors")
    request(module, path, ForgetRequest(indices=range(20)), Settings(stop=Epochs(1)))
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match="earlier request: the samples at positions 19"):
        request(module, path, ForgetRequest(indices=[19, 20]))
    with pytest.raises(ValueError, match="nothing would be retained"):
        request(module, path, ForgetRequest(indices=range(20, 160)))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_forget_sets_without_the_data_they_come_from(trained, tmp_path):
    """Positions in a loader of the forget set alone say nothing of those in another one of the same length."""
    module, path = copy.deepcopy(trained[0]), trained[1].save(tmp_path / "space.safetensors")
    for start in (0, 20):
        part = TensorDataset(*(column[start : start + 20] for column in TRAIN.tensors))
        pgu = PGUCallback(ForgetRequest(everything=True), retain_space=path, settings=Settings(stop=Epochs(1)))
        trainer(5, [pgu]).fit(module, DataLoader(part, 10), DataLoader(VALIDATION, 40))
    assert [(past.request.size, dict(past.models)) for past in pgu.report.earlier] == [(20, {})]
    assert RetainSpace.load(path).provenance.samples == 120


def test_the_published_rule_counts_all_that_was_ever_asked_for(trained, tmp_path):
    module, path = copy.deepcopy(trained[0]), trained[1].save(tmp_path / "space.safetensors")
    request(module, path, ForgetRequest(indices=range(20)), Settings(stop=Epochs(1)))
    fits = {}
    for everything in (False, True):
        own, copied = copy.deepcopy(module), RetainSpace.load(path).save(tmp_path / f"{everything}.safetensors")
        fits[everything] = request(
            own, copied, ForgetRequest(indices=range(20, 40)), Settings(stop=AccuracyGap(-1.0, all_requests=everything)), epochs=1
        )
    points = fits[True].report.curve
    both = TensorDataset(*(column[:40] for column in TRAIN.tensors))
    mean = (points[0].forget_accuracy + points[0].earlier_accuracy) / 2
    assert mean == pytest.approx(accuracy(module, both))
