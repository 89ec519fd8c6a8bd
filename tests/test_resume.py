"""A fit that goes on from a checkpoint ends where an uninterrupted one ends."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler

from pgu_lightning import ForgetRequest, PGUCallback, RetainSpace, collect
from pgu_lightning.records import Report
from pgu_lightning.settings import Settings
from pgu_lightning.statistics import fingerprint
from pgu_lightning.stopping import Epochs
from tests.helpers.processes import run_script
from tests.helpers.toys import CLASSES, FEATURES, blobs, trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create the checkpoint"),
]

LEARN = 3  # epochs, in a fit that learns and unlearns
REQUESTS = {
    "class": ForgetRequest(classes=[2]),
    "samples": ForgetRequest(indices=range(0, 160, 4)),
    "poison": ForgetRequest(indices=range(0, 160, 4), kind="poison"),
}


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.5, momentum=0.9)


def decay(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


SETTINGS = Settings(optimizer=momentum, scheduler=decay, batch_size=16, stop=Epochs(4))  # three steps an epoch


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
        return DataLoader(data, 40, sampler=DistributedSampler(data, 1, 0), num_workers=self.workers)

    def val_dataloader(self):
        return DataLoader(blobs(80, seed=1), 80, num_workers=self.workers)


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
    for one, other in zip(ours.curve, theirs.curve, strict=True):
        assert dataclasses.asdict(other) == pytest.approx(dataclasses.asdict(one), abs=1e-6)
    for key, gram in callback.space.grams.items():
        torch.testing.assert_close(resumed.space.grams[key].matrix, gram.matrix)


def separate(learned, kind="class", settings=SETTINGS):
    return lambda: PGUCallback(REQUESTS[kind], retain_space=RetainSpace.load(learned / "model.retain.safetensors"), settings=settings)


def switching(settings=SETTINGS):
    return PGUCallback(REQUESTS["class"], switch_at_epoch=LEARN, settings=settings)


BEFORE_THE_END = Dies(0, None)


@pytest.mark.parametrize(
    ("kind", "dies"),
    [
        ("class", Dies(1)),
        ("samples", BEFORE_THE_END),
        pytest.param("samples", Dies(2), marks=pytest.mark.slow),
        pytest.param("poison", Dies(3), marks=pytest.mark.slow),
    ],
    ids=["class after an epoch", "samples before the report", "samples after two", "poison after three"],
)
def test_a_fit_that_unlearns(learned, tmp_path, kind, dies):
    make = separate(learned, kind)
    module, callback = module_of(learned), make()
    fit(module, callback, tmp_path / "whole", 50)
    same(module, callback, *interrupted(module_of(learned), make, tmp_path / "killed", 50, dies))
    assert callback.report.outcome.epochs == 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A fit that learned and unlearned without interruption."""
    module, callback = seeded(), switching()
    fit(module, callback, tmp_path_factory.mktemp("whole"), 50)
    return module, callback


@pytest.mark.parametrize(
    "dies", [Dies(LEARN - 1), Dies(LEARN), Dies(LEARN + 2), BEFORE_THE_END], ids=["learning", "between", "unlearning", "at the end"]
)
def test_a_fit_that_learns_and_unlearns(whole, tmp_path, dies):
    same(*whole, *interrupted(seeded(), switching, tmp_path, 50, dies))


def test_manual_optimization(tmp_path):
    module, callback = seeded(ManualMlp), switching()
    fit(module, callback, tmp_path / "whole", 50)
    same(module, callback, *interrupted(seeded(ManualMlp), switching, tmp_path / "killed", 50, Dies(LEARN + 2), ManualMlp))


@pytest.mark.parametrize(
    ("every", "dies", "options"),
    [
        (1, Dies(LEARN, 2), {}),  # in the first epoch after the switch
        (1, Dies(LEARN + 2, 1), {}),
        (1, Dies(LEARN + 2, 2), {}),
        (1, Dies(LEARN + 3, 0), {}),  # saved in the last step of an epoch
        (None, Dies(LEARN + 3, 1), {"check_val_every_n_epoch": 2}),  # saved at the end of validation, inside the epoch
    ],
    ids=["first", "one step", "two steps", "last step", "validation"],
)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_checkpoint_from_the_middle_of_an_epoch(whole, tmp_path, every, dies, options, workers):
    same(*whole, *interrupted(seeded(), switching, tmp_path, 50, dies, every=every, data=Data(workers), **options))


def test_a_fit_that_moves_biases(learned, tmp_path):
    make = separate(learned, settings=dataclasses.replace(SETTINGS, bias="augment"))
    module, callback = module_of(learned), make()
    start = module.net[3].bias.detach().clone()
    fit(module, callback, tmp_path / "whole", 50)
    assert not torch.equal(module.net[3].bias, start)
    assert callback.report.layers["net.3"].dim == 17
    same(module, callback, *interrupted(module_of(learned), make, tmp_path / "killed", 50, Dies(2)))


def test_the_epochs_have_run_out(learned, tmp_path):
    """Lightning has nothing left to train then, and calls no hook of its own accord."""
    make = separate(learned, settings=dataclasses.replace(SETTINGS, stop=Epochs(50)))
    module, callback = module_of(learned), make()
    fit(module, callback, tmp_path / "whole", 2)
    same(module, callback, *interrupted(module_of(learned), make, tmp_path / "killed", 2, BEFORE_THE_END))
    assert not callback.report.outcome.fulfilled


def test_more_epochs_for_a_request_that_is_not_fulfilled(learned, tmp_path):
    make = separate(learned)
    module, callback = module_of(learned), make()
    fit(module, callback, tmp_path / "whole", 50)
    short, again, resumed = make(), Mlp(), make()
    fit(module_of(learned), short, tmp_path / "short", 2)
    assert not short.report.outcome.fulfilled
    fit(again, resumed, tmp_path / "short", 50, resume=tmp_path / "short" / "last.ckpt")
    assert resumed.report.outcome.epochs == 4
    assert len(resumed.report.curve) == len(callback.report.curve)


def test_killed_while_collecting_after_learning(tmp_path):
    whole, callback = seeded(), PGUCallback()
    fit(whole, callback, tmp_path / "whole", 3)
    again, _ = interrupted(seeded(), PGUCallback, tmp_path / "killed", 3, BEFORE_THE_END)
    assert fingerprint(again) == fingerprint(whole)
    for folder in ("whole", "killed"):
        names = {path.name for path in (tmp_path / folder).glob("*.safetensors")}
        assert names == {"epoch=2-step=12.retain.safetensors", "last.retain.safetensors"}
    for key, gram in callback.space.grams.items():
        assert torch.equal(RetainSpace.load(tmp_path / "killed" / "last.retain.safetensors").grams[key].matrix, gram.matrix)


# A run that has ended


@pytest.fixture
def fulfilled(learned, tmp_path):
    """A fit that fulfilled its request, with everything that it left in a folder."""
    file = tmp_path / "given.safetensors"
    file.write_bytes((learned / "model.retain.safetensors").read_bytes())
    module, callback = module_of(learned), PGUCallback(REQUESTS["class"], retain_space=file, settings=SETTINGS)
    fit(module, callback, tmp_path / "run", 50)
    return module, callback, file


@pytest.mark.parametrize("written", [True, False], ids=["whole", "killed before the last file"])
def test_a_run_that_has_ended_gives_its_result_again(learned, fulfilled, tmp_path, written):
    module, callback, file = fulfilled
    reduced = RetainSpace.load(file)
    if not written:
        file.write_bytes((learned / "model.retain.safetensors").read_bytes())
    again, resumed = Mlp(), PGUCallback(REQUESTS["class"], retain_space=file, settings=SETTINGS)
    fit(again, resumed, tmp_path / "run", 50, resume=tmp_path / "run" / "last.ckpt")
    assert fingerprint(again) == fingerprint(module)
    assert resumed.report == callback.report
    for space in (RetainSpace.load(file), resumed.space):
        assert space.provenance == reduced.provenance
        assert all(torch.equal(gram.matrix, reduced.grams[key].matrix) for key, gram in space.grams.items())


def test_the_checkpoint_of_a_fulfilled_request_does_not_hold_the_original(learned, fulfilled, tmp_path):
    original = torch.load(learned / "model.pt", weights_only=True)["net.1.weight"]

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        for part in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
            yield from tensors(part)

    for path in (tmp_path / "run").glob("*.ckpt"):
        found = list(tensors(torch.load(path, weights_only=True)))
        assert found
        assert not any(value.shape == original.shape and torch.equal(value, original) for value in found)


# Refused


@pytest.fixture(scope="module")
def saved(learned, tmp_path_factory):
    """Checkpoints from the middle of unlearning, in a fit of its own and in one that learned first, and one from learning."""
    folder = tmp_path_factory.mktemp("saved")
    for name, module, make, dies in (
        ("separate", module_of(learned), separate(learned), Dies(2)),
        ("switching", seeded(), switching, Dies(LEARN + 2)),
        ("learning", seeded(), PGUCallback, Dies(2)),
    ):
        with pytest.raises(RuntimeError, match="killed"):
            fit(module, make(), folder / name, 50, dies=dies)
    return folder


def refused(module, callback, path, message, data=None):
    before = fingerprint(module)
    with pytest.raises((RuntimeError, ValueError), match=message):
        trainer(50, [callback]).fit(module, datamodule=data or Data(), ckpt_path=path)
    assert "training_step" not in vars(module)
    return fingerprint(module) == before


def test_a_learning_checkpoint_is_not_resumed_as_unlearning(saved, learned):
    path = saved / "learning" / "last.ckpt"
    assert refused(module_of(learned), separate(learned)(), path, r"was not saved while unlearning.*load_from_checkpoint")


@pytest.mark.parametrize("form", ["separate", "switching"])
def test_another_request_is_not_resumed(saved, learned, form):
    path, space = saved / form / "last.ckpt", RetainSpace.load(learned / "model.retain.safetensors")
    others = [
        PGUCallback(),
        PGUCallback(ForgetRequest(classes=[1]), retain_space=space),
        PGUCallback(ForgetRequest(classes=[1]), switch_at_epoch=LEARN),
        PGUCallback(REQUESTS["samples"], retain_space=space),
        switching() if form == "separate" else separate(learned)(),  # the same request in the other form
    ]
    for callback in others:
        assert refused(module_of(learned), callback, path, "another request than this callback's.*load_from_checkpoint")


def test_another_retain_space_is_not_resumed(saved, learned, fulfilled, tmp_path):
    path = saved / "separate" / "last.ckpt"
    for space in (collect(module_of(learned), DataLoader(blobs(200), 32)), fulfilled[2], collect(Mlp(), DataLoader(blobs(160), 32))):
        callback = PGUCallback(REQUESTS["class"], retain_space=space, settings=SETTINGS)
        assert refused(module_of(learned), callback, path, "another retain space than this one|holds 200 samples")
    with pytest.raises(FileNotFoundError, match="There is no retain space"):
        fit(Mlp(), PGUCallback(REQUESTS["class"], retain_space=tmp_path / "gone.safetensors"), tmp_path, 50, resume=path)


def test_another_forget_set_is_not_resumed(saved, learned):
    class Others(Data):
        def train_dataloader(self):
            return DataLoader(blobs(160, seed=5), 32)

    refused(Mlp(), separate(learned)(), saved / "separate" / "last.ckpt", "The forget set is not the one of the checkpoint", Others())


# Killed


SCRIPT = Path(__file__).parent / "scripts" / "resume.py"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a whole run on so many processes leaves."""

    @functools.cache
    def run(devices):
        folder = tmp_path_factory.mktemp(f"{devices}")
        run_script(SCRIPT, str(devices), str(folder), "no", "no")
        return torch.load(folder / "0.pt", weights_only=True)

    return run


@pytest.mark.parametrize(
    ("devices", "phase"),
    [
        pytest.param(devices, phase, marks=[] if (devices, phase) in ((1, "collecting"), (2, "unlearning")) else pytest.mark.slow)
        for devices in (1, 2)
        for phase in ("learning", "collecting", "between", "unlearning", "saving")
    ],
)
def test_killed(uninterrupted, tmp_path, devices, phase):
    run_script(SCRIPT, str(devices), str(tmp_path), phase, "no", killed=True)
    assert not (tmp_path / "0.pt").exists()
    checkpoint = tmp_path / "last.ckpt"
    if phase == "saving":  # Lightning's own file is half written: the other one is whole
        assert checkpoint.stat().st_size == 1000
        checkpoint = max(tmp_path.glob("epoch=*.ckpt"), key=lambda path: path.stat().st_mtime)
    run_script(SCRIPT, str(devices), str(tmp_path), "no", str(checkpoint))
    whole = uninterrupted(devices)
    for rank in range(devices):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for part in ("state", "grams"):
            for name, value in whole[part].items():
                torch.testing.assert_close(found[part][name], value, rtol=1e-6, atol=1e-6)
        ours, theirs = (Report.from_json(result["report"], phase) for result in (whole, found))
        assert theirs.outcome == ours.outcome
        assert [point.step for point in theirs.curve] == [point.step for point in ours.curve]
