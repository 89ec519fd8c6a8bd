"""The order in which things happen in a fit that is taken over, and the parts of Lightning that this leans on."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LearningRateMonitor, StochasticWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch.utils.data import DataLoader

from pgu_lightning import ForgetRequest, PGUCallback, RetainSpace, collect
from pgu_lightning.settings import Settings
from pgu_lightning.stopping import Epochs
from pgu_lightning.takeover import Takeover, behind_averages, refuse_strategy
from pgu_lightning.unlearner import Unlearner
from pgu_lightning.unlearning_fit import UnlearningFit
from tests.helpers.toys import Data, Module, blobs, trainer

CLASS = ForgetRequest(classes=[2])


class Spy(Module):
    """Writes down which of its hooks are called, with what optimizer and on how many samples."""

    def __init__(self, log):
        super().__init__()
        self.events = log

    def training_step(self, batch, batch_idx):
        self.events.append("own step")
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        self.events.append("own optimizer")
        return super().configure_optimizers()

    def on_train_epoch_start(self):
        self.events.append("own epoch start")

    def on_before_optimizer_step(self, optimizer):
        self.events.append(f"own before {type(optimizer).__name__}")

    def on_train_epoch_end(self):
        self.events.append("own epoch end")

    def on_validation_epoch_end(self):
        if not self.trainer.sanity_checking:
            self.events.append("validation")


def spied(monkeypatch, log):
    """Let the pieces of unlearning write into the same log."""
    for name in ("enter", "begin", "before_step", "end_epoch", "finish"):
        original = getattr(UnlearningFit, name)

        def call(self, *args, _name=name, _original=original, **kwargs):
            log.append(_name)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(UnlearningFit, name, call)
    for place, words in (("unlearning_fit", "collect forget"), ("callback", "collect")):
        monkeypatch.setattr(
            f"pgu_lightning.{place}.collect", lambda *args, _words=words, **kwargs: log.append(_words) or collect(*args, **kwargs)
        )
    original_after = Unlearner.after_step
    monkeypatch.setattr(Unlearner, "after_step", lambda self: log.append("filter") or original_after(self))


LEARN = ["own epoch start", "own step", "own before Adam", "validation", "own epoch end"]
UNLEARN = ["before_step", "filter", "validation", "end_epoch"]


def test_order_in_a_fit_that_switches(monkeypatch):
    log: list[str] = []
    spied(monkeypatch, log)
    callback = PGUCallback(CLASS, switch_at_epoch=2, settings=Settings(stop=Epochs(2)))
    trainer(9, [callback], num_sanity_val_steps=0).fit(Spy(log), datamodule=Data(batch_size=160))
    # The module's on_train_epoch_start is called after the callbacks': by then it is no longer its own.
    assert log == ["own optimizer", *LEARN, *LEARN, "collect", "enter", "begin", *UNLEARN, *UNLEARN, "finish"]


def test_order_in_a_fit_that_only_unlearns(monkeypatch):
    log: list[str] = []
    module = Spy(log)
    space = collect(module, DataLoader(blobs(160), 64))
    spied(monkeypatch, log)
    callback = PGUCallback(CLASS, retain_space=space, settings=Settings(stop=Epochs(2)))
    trainer(9, [callback], num_sanity_val_steps=0).fit(module, datamodule=Data())
    assert log == ["enter", "begin", "collect forget", *UNLEARN, *UNLEARN, "finish"]


def test_order_in_a_fit_that_only_learns(monkeypatch):
    log: list[str] = []
    spied(monkeypatch, log)
    trainer(2, [PGUCallback()], num_sanity_val_steps=0).fit(Spy(log), datamodule=Data(batch_size=160))
    assert log == ["own optimizer", *LEARN, *LEARN, "collect"]


def test_undo_restores_what_was_there_and_removes_what_was_not():
    class Owner:
        value = 1

    owner, other = Owner(), Owner()
    other.value = 2
    takeover = Takeover(trainer(1), Module())
    for one in (owner, other):
        takeover.shadow(one, "value", 3)
        takeover.shadow(one, "value", 4)
        assert one.value == 4
    takeover.undo()
    takeover.undo()
    assert (vars(owner), vars(other)) == ({}, {"value": 2})


def test_unlearning_sees_only_the_forget_set_and_validation_data():
    seen = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            seen.append({name: part[1].unique().tolist() for name, part in batch.items()})
            assert not any(part.training for part in module.modules())

    module = Module()
    space = collect(module, DataLoader(blobs(160), 64))
    settings = Settings(stop=Epochs(3), batch_size=15)
    trainer(9, [Watch(), PGUCallback(CLASS, retain_space=space, settings=settings)]).fit(module, datamodule=Data())
    assert [batch["forget"] for batch in seen] == [[2]] * 9  # 40 samples, 15 at most: three batches an epoch
    assert set().union(*(batch["validation"] for batch in seen)) == {0, 1, 2, 3}


def test_dropout_is_active_only_if_asked_for():
    for dropout in (False, True):
        active = []

        class Watch(L.Callback):
            def on_train_batch_end(self, trainer, module, *args, _active=active):
                _active.append([type(part).__name__ for part in module.modules() if part.training])

        module = Module()
        space = collect(module, DataLoader(blobs(160), 64))
        callback = PGUCallback(CLASS, retain_space=space, settings=Settings(stop=Epochs(2), dropout=dropout))
        trainer(9, [callback, Watch()]).fit(module, datamodule=Data())
        assert active == [["Dropout"] if dropout else []] * 2


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_shard_flat_weights_are_refused(strategy):
    with pytest.raises(TypeError, match=r"ModelParallelStrategy\(data_parallel_size"):
        refuse_strategy(object.__new__(strategy))


def test_statistics_are_of_the_averaged_weights_wherever_the_callback_stands(tmp_path):
    module = Module()
    fit = trainer(3, [PGUCallback(), EMAWeightAveraging(decay=0.9)])
    fit.fit(module, datamodule=Data())
    fit.save_checkpoint(tmp_path / "model.ckpt")
    RetainSpace.load(tmp_path / "model.retain.safetensors").check(module)


def test_only_averages_are_waited_for():
    own, monitor, average, other = PGUCallback(), LearningRateMonitor(), EMAWeightAveraging(), StochasticWeightAveraging(0.1)
    assert behind_averages([own, monitor], own) == [own, monitor]
    assert behind_averages([average, own, monitor], own) == [average, own, monitor]
    assert behind_averages([own, average, other, monitor], own) == [average, other, own, monitor]


@pytest.mark.parametrize("how", [{"retain_space": "unread"}, {"switch_at_epoch": 2}])
@pytest.mark.parametrize("average", [EMAWeightAveraging(), StochasticWeightAveraging(0.1)], ids=lambda kind: type(kind).__name__)
def test_averages_are_refused_where_weights_are_forgotten(how, average):
    with pytest.raises(ValueError, match=f"{type(average).__name__} would mix weights from before"):
        trainer(9, [PGUCallback(CLASS, **how), average]).fit(Module(), datamodule=Data())


def test_gradients_that_are_not_finite_skip_the_step():
    class Breaks(Module):
        breaks = True

        def unlearning_loss(self, logits, target):
            return logits.sum() * (torch.nan if self.breaks else 1.0)

    module = Breaks()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    space = collect(module, DataLoader(blobs(160), 64))
    callback = PGUCallback(CLASS, retain_space=space, settings=Settings(stop=Epochs(2), optimizer=lambda p: torch.optim.AdamW(p, 0.1)))
    trainer(9, [callback]).fit(module, datamodule=Data())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert callback.report.outcome.skipped == 2
    assert "2 of 2 steps were skipped" in " ".join(callback.report.outcome.notes)


@pytest.mark.parametrize("switch", [None, 2])
def test_a_batch_is_told_apart_by_its_samples_positions(switch):
    seen = []

    class Records:
        aim = None

        def prepare(self, known): ...
        def look(self, forget): ...
        def refine(self, forget, validation): ...

        def __call__(self, logits, target, samples):
            seen.append((target.clone(), samples.clone()))
            return logits.square().mean()

        def __deepcopy__(self, memo):
            return self

    positions = torch.arange(3, 140, 4)[torch.randperm(30)] - torch.arange(30) % 3
    request = ForgetRequest(indices=positions.tolist())
    settings = Settings(objective=Records(), stop=Epochs(3), batch_size=8, trust_radius=None)
    module = Module()
    space = collect(module, DataLoader(blobs(160), 64)) if switch is None else None
    trainer(9, [PGUCallback(request, retain_space=space, switch_at_epoch=switch, settings=settings)]).fit(module, datamodule=Data())
    labels = blobs(160).tensors[1][positions.sort().values]
    assert len(seen) == 4 * (1 + 3)  # the preflight, then three epochs
    orders = [torch.cat([samples for _, samples in seen[4 * epoch : 4 * epoch + 4]]) for epoch in range(4)]
    assert all(sorted(order.tolist()) == list(range(30)) for order in orders)
    assert not torch.equal(orders[1], orders[2])
    for target, samples in seen:
        assert torch.equal(labels[samples], target)
