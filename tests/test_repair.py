"""The next step where the stop rule is not met: which samples it reads, what it says, and that it helps."""

from __future__ import annotations

import copy
import re

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from pgu_lightning import ForgetRequest, PGUCallback, RetainSpace
from pgu_lightning.projection import Hard
from pgu_lightning.repair import retained
from pgu_lightning.settings import Settings
from pgu_lightning.statistics import fingerprint
from tests.helpers.toys import Data, Module, accuracy, blobs, trainer

TRAIN, VALIDATION = blobs(160), blobs(80, seed=1)
CLASS, IS_FORGET = ForgetRequest(classes=[2]), blobs(160).tensors[1] == 2
HELD_BACK = Settings(rule=Hard(1.0), preflight=False)  # nothing passes


class Watched(Dataset):
    """Notes which samples are read."""

    targets = TRAIN.tensors[1]

    def __init__(self):
        self.read = set()

    def __len__(self):
        return 160

    def __getitem__(self, index):
        self.read.add(int(index))
        return TRAIN[index]


@pytest.fixture(scope="module")
def trained():
    L.seed_everything(0, verbose=False)
    module, callback = Module(), PGUCallback()
    trainer(15, [callback]).fit(module, datamodule=Data())
    return module, callback.space


def unlearn(trained, repair, epochs=3, data=TRAIN, request=CLASS, settings=HELD_BACK, space=None, callbacks=(), **options):
    module = copy.deepcopy(trained[0])
    callback = PGUCallback(request, retain_space=space or trained[1], settings=settings, repair=repair)
    trainer(epochs, [*callbacks, callback]).fit(module, DataLoader(data, 32), DataLoader(VALIDATION, 80), **options)
    return module, callback.report


def test_it_comes_after_a_stop_rule_that_was_not_met(trained):
    _, alone = unlearn(trained, None, epochs=25)
    assert not alone.outcome.fulfilled
    assert (alone.method.uses_retain_data, alone.method.retain_samples) == (False, None)
    assert "`repair=`" in " ".join(alone.outcome.notes)

    data = Watched()
    module, report = unlearn(trained, 30, epochs=25, data=data)
    assert report.outcome.fulfilled
    assert accuracy(module, TRAIN, IS_FORGET) == report.models["unlearned"]["forget_accuracy"] == 0
    assert accuracy(module, TRAIN, ~IS_FORGET) >= 0.95
    assert (report.method.uses_retain_data, report.method.retain_samples) == (True, 30)
    assert len(data.read & set((~IS_FORGET).nonzero().flatten().tolist())) == 30
    assert "repaired with 30 retained samples, unprojected" in " ".join(report.outcome.notes)
    assert len(report.curve) > 26


def test_it_does_not_come_after_one_that_was(trained):
    data = Watched()
    _, report = unlearn(trained, 0.5, epochs=100, data=data, settings=Settings())
    assert report.outcome.fulfilled
    assert (report.method.uses_retain_data, report.method.retain_samples) == (False, None)
    assert all(IS_FORGET[index] for index in data.read)


def test_what_does_not_help_is_said(trained):
    """One pass more is not enough: the best model is kept, and the next step is another."""
    _, report = unlearn(trained, 30, epochs=1)
    assert not report.outcome.fulfilled
    assert report.method.retain_samples == 30
    assert "Give more retained data to repair it with" in " ".join(report.outcome.notes)


def test_the_retained_samples_may_come_as_a_dataset(trained):
    forget = TensorDataset(*(part[IS_FORGET] for part in TRAIN.tensors))
    given = TensorDataset(*(part[~IS_FORGET][:30] for part in TRAIN.tensors))
    everything = ForgetRequest(everything=True, kind="class")
    module, report = unlearn(trained, DataLoader(given, 7), epochs=25, data=forget, request=everything)
    assert report.method.retain_samples == 30
    assert report.outcome.fulfilled
    assert accuracy(module, TRAIN, ~IS_FORGET) >= 0.95


def test_a_request_that_is_fulfilled_by_a_repair_leaves_the_file(trained, tmp_path):
    path = tmp_path / "model.retain.safetensors"
    trained[1].save(path)
    module, _ = unlearn(trained, 30, epochs=25, space=path)
    assert RetainSpace.load(path).provenance.samples == 120
    RetainSpace.load(path).check(module)


def test_killed_while_unlearning_or_repairing(trained, tmp_path):
    """What comes after the last save is done again, to the same weights."""

    class Saves(L.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "killed.ckpt")

    whole, report = unlearn(trained, 30, epochs=4, callbacks=[Saves()])
    again, other = unlearn(trained, 30, epochs=4, ckpt_path=tmp_path / "killed.ckpt")
    assert report.method.retain_samples == 30
    assert fingerprint(whole) == fingerprint(again)
    assert [point.step for point in report.curve] == [point.step for point in other.curve]


def test_a_number_is_a_random_part_of_the_retained_samples():
    split = CLASS.split(TRAIN)
    for given, count in ((7, 7), (0.1, 12), (1, 1), (120, 120)):
        positions = retained(given, split).positions
        assert len(positions.unique()) == count
        assert not IS_FORGET[positions].any()
        assert torch.equal(positions, retained(given, split).positions)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (121, ValueError, "repair=121 is 121 retained samples, and the training loader has 120."),
        (0, ValueError, "repair=0 is 0 retained samples"),
        (-3, ValueError, "repair=-3 is -3 retained samples"),
        (0.001, ValueError, "repair=0.001 is 0 retained samples"),
        (True, TypeError, "or a number, got bool"),
        ("all", TypeError, "got str"),
        (Stream(), TypeError, "can only be iterated over"),
        (TensorDataset(torch.empty(0, 3)), ValueError, "repair= has no samples"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(trained, given, error, message):
    with pytest.raises(error, match=re.escape(message)):
        unlearn(trained, given)


def test_a_number_needs_a_training_loader_with_retained_samples(trained):
    forget = TensorDataset(*(part[IS_FORGET] for part in TRAIN.tensors))
    with pytest.raises(ValueError, match="the training loader has none: give them as a dataset"):
        unlearn(trained, 5, data=forget, request=ForgetRequest(everything=True, kind="class"))
    with pytest.raises(ValueError, match="say how to forget"):
        PGUCallback(repair=5)
