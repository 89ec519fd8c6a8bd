"""A fit that goes on from a checkpoint ends where an uninterrupted one ends."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

from pgu_lightning import ForgetRequest, PGUCallback, RetainSpace, collect
from pgu_lightning.objectives import Margin
from pgu_lightning.statistics import fingerprint
from pgu_lightning.stopping import Epochs
from pgu_lightning.unlearner import Settings
from tests.helpers.toys import CLASSES, FEATURES, blobs, trainer

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

LEARN = 6
REQUESTS = {
    "class": ForgetRequest(classes=[2]),
    "samples": ForgetRequest(indices=range(0, 160, 4)),
    "poison": ForgetRequest(indices=range(0, 160, 4), kind="poison"),
}


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def decay(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


SETTINGS = Settings(optimizer=momentum, scheduler=decay, batch_size=16, stop=Epochs(6))  # three steps an epoch


class Mlp(L.LightningModule):
    """Nothing in it depends on a random state, which Lightning does not restore."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.03)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3)}


class ManualMlp(Mlp):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


class Data(L.LightningDataModule):
    """Shuffled by the epoch's number, so that an epoch is the same in a fit that begins with it."""

    def __init__(self, workers=0):
        super().__init__()
        self.workers = workers

    def train_dataloader(self):
        data = blobs(160)
        return DataLoader(data, 32, sampler=DistributedSampler(data, 1, 0), num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(blobs(80, seed=1), 32, num_workers=self.workers)


def seeded(kind=Mlp):
    L.seed_everything(0, verbose=False)
    return kind()


class Dies(L.Callback):
    """Ends the fit where it is told to, as a kill would: nothing but its files is looked at afterwards."""

    def __init__(self, epoch: int, batch: int | None = 0):
        self.where = (epoch, batch)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.where:
            raise RuntimeError("killed")

    def on_train_end(self, trainer, module):
        if self.where[1] is None:
            raise RuntimeError("killed")


def fit(module, callback, folder, epochs, *, data=None, resume=None, dies=None, every=None, **options):
    """Train with a checkpoint an epoch, or after every so many steps."""
    checkpoints = ModelCheckpoint(folder, save_last=True, every_n_train_steps=every)
    callbacks = [*([dies] if dies else []), callback, checkpoints]
    used = trainer(epochs, callbacks, enable_checkpointing=True, **options)
    used.fit(module, datamodule=data or Data(), ckpt_path=resume)
    return used


def interrupted(module, make, folder, epochs, dies, kind=Mlp, **options):
    """Die once, then go on from ``last.ckpt`` with another callback and a fresh module; returns the two."""
    with pytest.raises(RuntimeError, match="killed"):
        fit(module, make(), folder, epochs, dies=dies, **options)
    again, callback = kind(), make()
    fit(again, callback, folder, epochs, resume=folder / "last.ckpt", **options)
    return again, callback


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A folder with a trained module's checkpoint and retain space."""
    folder = tmp_path_factory.mktemp("learned")
    module = seeded()
    trainer(12, [PGUCallback()]).fit(module, datamodule=Data())
    collect(module, DataLoader(blobs(160), 32)).save(folder / "model.retain.safetensors")
    torch.save(module.state_dict(), folder / "model.pt")
    return folder


def module_of(folder, kind=Mlp):
    module = kind()
    module.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    return module


def same(module, callback, again, resumed):
    for name, value in module.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=0, atol=1e-6, msg=name)
    ours, theirs = callback.report, resumed.report
    assert theirs.outcome == ours.outcome
    assert theirs.preflight == ours.preflight
    assert [dataclasses.asdict(point) for point in theirs.curve] == [pytest.approx(dataclasses.asdict(point), abs=1e-6) for point in ours.curve]
    for key, gram in callback.space.grams.items():
        torch.testing.assert_close(resumed.space.grams[key].matrix, gram.matrix)


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("dies", [Dies(1), Dies(4), Dies(0, None)], ids=["after an epoch", "after four", "before the report"])
def test_a_fit_that_unlearns(learned, tmp_path, kind, dies):
    def make():
        return PGUCallback(REQUESTS[kind], retain_space=RetainSpace.load(learned / "model.retain.safetensors"), settings=SETTINGS)

    module, callback = module_of(learned), make()
    fit(module, callback, tmp_path / "whole", 50)
    same(module, callback, *interrupted(module_of(learned), make, tmp_path / "killed", 50, dies))
    assert callback.report.outcome.epochs == 6
