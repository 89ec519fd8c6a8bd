"""All uses of the callback, on modules that do not know it."""

from __future__ import annotations

import copy
import json

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, Subset, TensorDataset

from pgu_lightning import ForgetRequest, PGUCallback, PGUMixin, RetainSpace, collect
from pgu_lightning.objectives import Margin
from pgu_lightning.projection import Hard
from pgu_lightning.settings import Settings
from pgu_lightning.statistics import fingerprint
from pgu_lightning.stopping import Epochs
from tests.helpers.toys import CLASSES, Data, HostileModule, ManualModule, Module, accuracy, blobs, network, trainer

CLASS = ForgetRequest(classes=[2])
TRAIN = blobs(160)
IS_FORGET = TRAIN.tensors[1] == 2


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained module, and its checkpoint and retain space as a plain fit leaves them."""
    folder = tmp_path_factory.mktemp("trained")
    L.seed_everything(0, verbose=False)
    module, callback = Module(), PGUCallback()
    fit = trainer(15, [callback])
    fit.fit(module, datamodule=Data())
    fit.save_checkpoint(folder / "model.ckpt")
    return module, folder


@pytest.fixture
def module(trained):
    return copy.deepcopy(trained[0])


@pytest.fixture
def space_file(trained, tmp_path):
    path = tmp_path / "model.retain.safetensors"
    path.write_bytes((trained[1] / "model.retain.safetensors").read_bytes())
    return path


def loader(dataset, batch_size=32):
    return DataLoader(dataset, batch_size, shuffle=True)


def forgotten(module, report):
    assert report.outcome.fulfilled, report.outcome
    assert accuracy(module, TRAIN, IS_FORGET) == report.models["unlearned"]["forget_accuracy"] == 0
    assert accuracy(module, TRAIN, ~IS_FORGET) >= 0.97


def test_learning_leaves_the_exact_statistics_beside_the_checkpoint(trained):
    module, folder = trained
    assert accuracy(module, TRAIN) > 0.97
    saved = RetainSpace.load(folder / "model.retain.safetensors")
    again = collect(module, DataLoader(TRAIN, 7))
    assert saved.provenance.samples == 160
    for key, gram in saved.grams.items():
        torch.testing.assert_close(gram.matrix, again.grams[key].matrix, rtol=1e-6, atol=1e-6)


def test_learning_is_not_changed_by_the_callback():
    weights = []
    for callbacks in ([], [PGUCallback()]):
        L.seed_everything(1, verbose=False)
        module = Module()
        trainer(3, callbacks).fit(module, datamodule=Data())
        weights.append(fingerprint(module))
    assert weights[0] == weights[1]


def test_unlearns_from_the_file_on_a_datamodule(module, space_file):
    before = {name: value.clone() for name, value in module.state_dict().items()}
    callback = PGUCallback(CLASS, retain_space=space_file)
    trainer(100, [callback]).fit(module, datamodule=Data())
    forgotten(module, callback.report)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"net.0.weight", "net.5.weight", "net.7.weight"}  # biases and normalisation are as they were
    assert callback.report.frozen == {"net.1": "normalisation parameters are not moved"}
    assert callback.report.request.size == 40


def test_unlearns_on_plain_loaders_and_without_the_retained_data(module, space_file):
    callback = PGUCallback(ForgetRequest(everything=True, kind="class"), retain_space=space_file)
    forget = Subset(TRAIN, torch.arange(160)[IS_FORGET].tolist())
    trainer(100, [callback]).fit(module, loader(forget), DataLoader(blobs(80, seed=1), 32))
    forgotten(module, callback.report)
    assert callback.report.request.classes == (2,)


def test_the_forget_set_alone_gives_what_the_whole_set_gives(trained, space_file):
    weights = []
    forget = Subset(TRAIN, torch.arange(160)[IS_FORGET].tolist())
    for request, data in ((CLASS, TRAIN), (ForgetRequest(everything=True, kind="class"), forget)):
        module = copy.deepcopy(trained[0])
        callback = PGUCallback(request, retain_space=RetainSpace.load(space_file))
        trainer(100, [callback]).fit(module, loader(data), DataLoader(blobs(80, seed=1), 32))
        weights.append(module.net[5].weight.detach())
    torch.testing.assert_close(*weights)


def test_the_retained_samples_are_not_read(module, space_file):
    class Guarded(torch.utils.data.Dataset):
        targets = TRAIN.tensors[1]

        def __len__(self):
            return 160

        def __getitem__(self, index):
            assert IS_FORGET[index], "a retained sample was read"
            return TRAIN[index]

    callback = PGUCallback(CLASS, retain_space=space_file)
    trainer(100, [callback]).fit(module, loader(Guarded()), DataLoader(blobs(80, seed=1), 32))
    forgotten(module, callback.report)


def test_works_without_validation_data_and_says_so(module, space_file):
    callback = PGUCallback(CLASS, retain_space=space_file)
    trainer(100, [callback]).fit(module, loader(TRAIN))
    assert callback.report.outcome.fulfilled
    assert "no validation data" in " ".join(callback.report.outcome.notes)


def test_samples_without_validation_data_are_refused_before_anything_changes(module, space_file):
    before, file = fingerprint(module), space_file.read_bytes()
    callback = PGUCallback(ForgetRequest(indices=[1, 5, 9]), retain_space=space_file)
    with pytest.raises(ValueError, match="needs validation data"):
        trainer(5, [callback]).fit(module, loader(TRAIN))
    assert (fingerprint(module), space_file.read_bytes()) == (before, file)


def test_samples_come_down_to_validation_accuracy(module, space_file):
    callback = PGUCallback(ForgetRequest(indices=range(0, 160, 5)), retain_space=space_file)
    trainer(150, [callback]).fit(module, datamodule=Data())
    report = callback.report
    assert report.models["unlearned"]["forget_accuracy"] <= report.models["original"]["validation_accuracy"] + 0.1
    assert report.request.kind == "samples"


@pytest.mark.parametrize("kind", [Module, ManualModule, HostileModule])
def test_learns_then_switches_in_one_fit(kind, tmp_path):
    L.seed_everything(0, verbose=False)
    module = kind()
    callback = PGUCallback(CLASS, switch_at_epoch=15)
    fit = trainer(120, [callback, LearningRateMonitor()], logger=CSVLogger(tmp_path), log_every_n_steps=1)
    fit.fit(module, datamodule=Data())
    forgotten(module, callback.report)
    assert fit.current_epoch == 15 + callback.report.outcome.epochs
    assert callback.space.provenance.samples == 120
    assert module.steps in (0, 15 * 5)  # the module's own step ran in the first phase only


@pytest.mark.parametrize("kind", [Module, ManualModule, HostileModule])
def test_what_was_replaced_is_given_back(kind):
    L.seed_everything(0, verbose=False)
    module = kind()
    kept = dict(vars(module))
    clip = None if kind is ManualModule else 1.0
    fit = trainer(60, [PGUCallback(CLASS, switch_at_epoch=10)], limit_train_batches=4, gradient_clip_val=clip)
    fit.fit(module, datamodule=Data())
    assert {name for name in vars(module).keys() - kept.keys() if not name.startswith("_")} <= {"outs"}
    assert module.training_step.__func__ is kind.training_step
    assert module.configure_optimizers.__func__ is kind.configure_optimizers
    assert (fit.limit_train_batches, fit.val_check_interval, fit.log_every_n_steps) == (4, 1.0, 50)
    assert fit.gradient_clip_val == clip
    assert isinstance(fit.fit_loop._data_source.instance, Data)
    trainer(1).fit(module, datamodule=Data())  # and it trains as before


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_what_was_replaced_is_given_back_after_an_error(module, space_file, error):
    class Breaks(L.Callback):
        def on_train_batch_end(self, *args):
            raise error

    before = space_file.read_bytes()
    fit = trainer(5, [PGUCallback(CLASS, retain_space=space_file), Breaks()])
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        fit.fit(module, datamodule=Data())
    assert "training_step" not in vars(module)
    assert "configure_optimizers" not in vars(module)
    assert space_file.read_bytes() == before


def test_early_stopping_ends_learning_but_not_the_run():
    L.seed_everything(0, verbose=False)
    module = Module()
    stopping = EarlyStopping("val_loss", patience=2, min_delta=10.0)  # stops at the third epoch
    callback = PGUCallback(CLASS, switch_at_epoch=50)
    fit = trainer(200, [stopping, callback])
    fit.fit(module, datamodule=Data())
    assert callback.report.outcome.epochs >= 1
    assert fit.current_epoch < 50 + callback.report.outcome.epochs


def test_early_stopping_does_not_end_unlearning(module, space_file):
    callback = PGUCallback(CLASS, retain_space=space_file)
    trainer(100, [EarlyStopping("val_loss", patience=0, min_delta=10.0), callback]).fit(module, datamodule=Data())
    forgotten(module, callback.report)


@pytest.mark.parametrize("monitor", ["val_loss", None])
def test_the_best_checkpoint_is_one_that_has_forgotten(tmp_path, monitor):
    L.seed_everything(0, verbose=False)
    module = Module()
    checkpoint = ModelCheckpoint(tmp_path, monitor=monitor, save_last=True)
    callback = PGUCallback(CLASS, switch_at_epoch=15)
    trainer(120, [callback, checkpoint], enable_checkpointing=True).fit(module, datamodule=Data())
    for path in (checkpoint.best_model_path, checkpoint.last_model_path):
        best = Module()
        best.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        assert fingerprint(best) == fingerprint(module)
        assert accuracy(best, TRAIN, IS_FORGET) == 0


def test_statistics_lie_beside_checkpoints_of_the_final_weights_only(tmp_path):
    L.seed_everything(0, verbose=False)
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(3, [PGUCallback(), checkpoint], enable_checkpointing=True).fit(Module(), datamodule=Data())
    assert {path.name for path in tmp_path.glob("*.safetensors")} == {"epoch=2.retain.safetensors"}


def test_a_removed_checkpoint_takes_its_statistics_along(tmp_path):
    fit = trainer(2, [PGUCallback()])
    fit.fit(Module(), datamodule=Data())
    fit.save_checkpoint(tmp_path / "a.ckpt")
    assert (tmp_path / "a.retain.safetensors").exists()
    fit.strategy.remove_checkpoint(tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_fulfilled_request_leaves_no_trace_in_the_file(module, space_file):
    retained = collect(module, DataLoader(Subset(TRAIN, torch.arange(160)[~IS_FORGET].tolist()), 64))
    trainer(100, [PGUCallback(CLASS, retain_space=space_file)]).fit(module, datamodule=Data())
    reduced = RetainSpace.load(space_file)
    for key, gram in retained.grams.items():
        error = (reduced.grams[key].matrix - gram.matrix).norm() / gram.matrix.norm()
        assert error < 1e-6
    assert reduced.provenance.samples == 120
    assert b'"ids"' not in space_file.read_bytes()
    reduced.check(module)
    with pytest.raises(ValueError, match="Already forgotten"):
        trainer(5, [PGUCallback(CLASS, retain_space=space_file)]).fit(module, datamodule=Data())


def test_a_request_that_is_not_fulfilled_leaves_the_file_and_says_so(module, space_file):
    before = space_file.read_bytes()
    callback = PGUCallback(CLASS, retain_space=space_file, settings=Settings(trust_radius=1e-6))
    trainer(2, [callback]).fit(module, datamodule=Data())
    assert not callback.report.outcome.fulfilled
    assert "train again" in " ".join(callback.report.outcome.notes)
    assert space_file.read_bytes() == before


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, 0.5, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, 0.05, weight_decay=0.1),
        lambda parameters: torch.optim.RMSprop(parameters, 0.02),
    ],
    ids=["sgd", "adamw", "rmsprop"],
)
@pytest.mark.parametrize(
    "options",
    [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, {"precision": "bf16-mixed"}],
    ids=["plain", "accumulate", "clip", "bf16"],
)
def test_nothing_leaks_into_protected_directions(module, space_file, optimizer, options):
    """Invariant 1 through the callback, for a hard rule."""
    original = {name: value.clone() for name, value in module.state_dict().items()}
    settings = Settings(
        rule=Hard(0.9, "energy"),
        objective=Margin(),
        optimizer=optimizer,
        trust_radius=None,
        anchor=0.0,
        stop=Epochs(8),
        batch_size=16,
    )
    trainer(8, [PGUCallback(CLASS, retain_space=space_file, settings=settings)], **options).fit(module, datamodule=Data())
    retained = collect(module_with(original), DataLoader(Subset(TRAIN, torch.arange(160)[~IS_FORGET].tolist()), 64))
    for name, gram in retained.grams.items():
        values, vectors = torch.linalg.eigh(gram.matrix[0])
        share = values.flip(0).cumsum(0) / values.sum()
        rank = int((share < 0.9).sum()) + 1
        protected = vectors[:, -rank:]
        change = (module.state_dict()[f"{name}.weight"] - original[f"{name}.weight"]).double().flatten(1)
        assert change.norm() > 1e-2
        assert (change @ protected).norm() <= 1e-6 * change.norm()


def module_with(state):
    module = Module()
    module.load_state_dict(state)
    return module


def test_a_module_that_needs_a_say(space_file, trained):
    class Says(PGUMixin, Module):
        def __init__(self):
            super().__init__()
            self.asked = set()

        def unlearning_outputs(self, batch):
            self.asked.add("outputs")
            return self(batch["image"]), batch["label"]

        def unlearning_loss(self, logits, target):
            self.asked.add("loss")
            return torch.nn.functional.softplus(logits.gather(1, target[:, None]) - logits.mean(1, keepdim=True)).mean()

        def configure_unlearning_optimizer(self, parameters):
            self.asked.add("optimizer")
            return torch.optim.SGD(parameters, lr=0.1)

        def row_mask(self, batch):
            self.asked.add("mask")

        def validation_step(self, batch, batch_idx):
            pass

    def as_dict(items):
        return {"image": torch.stack([x for x, _ in items]), "label": torch.stack([y for _, y in items])}

    module = Says()
    module.load_state_dict(trained[0].state_dict())
    callback = PGUCallback(CLASS, retain_space=space_file)
    trainer(60, [callback]).fit(module, DataLoader(TRAIN, 32, collate_fn=as_dict), DataLoader(blobs(80, seed=1), 32, collate_fn=as_dict))
    assert module.asked == {"outputs", "loss", "optimizer", "mask"}
    assert accuracy(module, TRAIN, IS_FORGET) < 0.1


def test_a_compiled_module(space_file, trained):
    module = copy.deepcopy(trained[0])
    module.net = torch.compile(module.net, backend="eager")
    callback = PGUCallback(CLASS, retain_space=space_file)
    trainer(100, [callback]).fit(module, datamodule=Data())
    forgotten(module, callback.report)


def test_a_wholly_compiled_module():
    class Silent(Module):  # self.log inside a compiled step raises in this Lightning, with or without us
        def training_step(self, batch, batch_idx):
            x, y = batch
            return torch.nn.functional.cross_entropy(self(x), y)

    L.seed_everything(0, verbose=False)
    module = Silent()
    callback = PGUCallback(CLASS, switch_at_epoch=15)
    trainer(120, [callback]).fit(torch.compile(module, backend="eager"), DataLoader(TRAIN, 32, shuffle=True))
    assert accuracy(module, TRAIN, IS_FORGET) == 0
    assert accuracy(module, TRAIN, ~IS_FORGET) > 0.95


def test_layers_that_configure_model_makes_are_found():
    class Later(Module):
        def configure_model(self):
            if not hasattr(self, "net"):
                self.net = network()

        def __init__(self):
            super().__init__()
            del self.net

    L.seed_everything(0, verbose=False)
    module, callback = Later(), PGUCallback()
    trainer(15, [callback]).fit(module, datamodule=Data())
    pgu = PGUCallback(CLASS, retain_space=callback.space)
    trainer(100, [pgu]).fit(module, datamodule=Data())
    forgotten(module, pgu.report)
    with pytest.raises(ValueError, match="other weights"):
        trainer(100, [PGUCallback(CLASS, retain_space=callback.space)]).fit(Later(), datamodule=Data())


def poisoned():
    """Class 0's first ten are labelled 1."""
    x, y = TRAIN.tensors
    wrong = y.clone()
    wrong[torch.arange(0, 40, 4)] = 1
    return TensorDataset(x, wrong)


def learnt_wrong(data):
    module, callback = Module(), PGUCallback()
    trainer(25, [callback]).fit(module, loader(data), DataLoader(blobs(80, seed=1), 80))
    return module, callback.space


def test_corrected_labels_are_learnt_while_the_wrong_ones_are_forgotten():
    data, validation = poisoned(), DataLoader(blobs(80, seed=1), 80)
    module, space = learnt_wrong(data)
    wrong = torch.zeros(160, dtype=torch.bool).index_fill(0, torch.arange(0, 40, 4), True)
    found = {}
    for corrected in (None, [0] * 10):
        model = copy.deepcopy(module)
        callback = PGUCallback(ForgetRequest(indices=range(0, 40, 4), kind="poison", corrected=corrected), retain_space=space)
        trainer(60, [callback]).fit(model, loader(data), validation)
        found[corrected is None] = accuracy(model, TRAIN, wrong)
        assert callback.report.outcome.fulfilled, callback.report.outcome
    report = callback.report
    assert report.corrected_accuracy["unlearned"] == found[False] >= 0.9
    assert report.corrected_accuracy["original"] == pytest.approx(accuracy(module, TRAIN, wrong))
    assert report.method.settings["anchor"] == "0.0"
    assert found[False] >= found[True]


def test_corrected_labels_that_the_model_does_not_have_are_refused_before_anything_changes():
    data = poisoned()
    module, space = learnt_wrong(data)
    before = fingerprint(module)
    callback = PGUCallback(ForgetRequest(indices=[0, 4], kind="poison", corrected=[0, 4]), retain_space=space)
    with pytest.raises(ValueError, match=r"has the labels \[4\], and the model has 4 classes"):
        trainer(5, [callback]).fit(module, loader(data))
    assert fingerprint(module) == before


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="Exactly one"):
        PGUCallback(CLASS)
    with pytest.raises(ValueError, match="Exactly one"):
        PGUCallback(CLASS, retain_space="a", switch_at_epoch=3)
    with pytest.raises(ValueError, match="give forget="):
        PGUCallback(retain_space="a")
    with pytest.raises(ValueError, match="at least 1"):
        PGUCallback(CLASS, switch_at_epoch=0)


def test_what_cannot_work_is_refused_before_work_is_spent(module, space_file, tmp_path):
    with pytest.raises(ValueError, match="max_epochs=3 counts both phases"):
        trainer(3, [PGUCallback(CLASS, switch_at_epoch=3)]).fit(module, datamodule=Data())
    with pytest.raises(ValueError, match="max_steps"):
        trainer(30, [PGUCallback(CLASS, switch_at_epoch=3)], max_steps=10).fit(module, datamodule=Data())
    with pytest.raises(FileNotFoundError, match="There is no retain space"):
        trainer(3, [PGUCallback(CLASS, retain_space=tmp_path / "none")]).fit(module, datamodule=Data())
    with pytest.raises(ValueError, match="No sample has the label 7"):
        trainer(3, [PGUCallback(ForgetRequest(classes=[7]), retain_space=space_file)]).fit(module, datamodule=Data())
    with pytest.raises(ValueError, match="matches no layer"):
        trainer(3, [PGUCallback(layers=["head.*"])]).fit(module, datamodule=Data())
    with pytest.raises(ValueError, match="other weights"):
        trainer(3, [PGUCallback(CLASS, retain_space=space_file)]).fit(Module(), datamodule=Data())
    with pytest.raises(ValueError, match="holds 160 samples, the training loader has 80"):
        trainer(3, [PGUCallback(CLASS, retain_space=space_file)]).fit(module, loader(blobs(80)), DataLoader(blobs(80, seed=1), 32))
    with pytest.raises(TypeError, match="one torch DataLoader"):
        trainer(3, [PGUCallback(CLASS, retain_space=space_file)]).fit(module, {"a": loader(TRAIN)}, DataLoader(blobs(80, seed=1), 32))


def test_a_batch_that_is_not_understood_is_noticed_at_the_first_step():
    class Odd(Module):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch[:2], batch_idx)

    module = Odd()
    with pytest.raises(TypeError, match="unlearning_outputs"):
        trainer(3, [PGUCallback()]).fit(module, loader(TensorDataset(*TRAIN.tensors, torch.zeros(160))))
    assert module.steps == 0


def test_a_fit_that_ends_before_the_switch_says_so():
    class Stops(L.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.fit_loop.max_epochs = 1

    with pytest.raises(RuntimeError, match="nothing was forgotten"):
        trainer(8, [PGUCallback(CLASS, switch_at_epoch=5), Stops()]).fit(Module(), datamodule=Data())


def test_a_learning_checkpoint_is_not_resumed_as_unlearning(trained, module, space_file):
    fit = trainer(3, [PGUCallback(CLASS, retain_space=space_file)])
    with pytest.raises(RuntimeError, match="load_from_checkpoint"):
        fit.fit(module, datamodule=Data(), ckpt_path=trained[1] / "model.ckpt", weights_only=True)


def test_live_metrics_are_logged_and_no_id_is(module, space_file, tmp_path):
    logger = CSVLogger(tmp_path)
    trainer(100, [PGUCallback(CLASS, retain_space=space_file)], logger=logger).fit(module, datamodule=Data())
    text = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text()
    header = set(text.split("\n", 1)[0].split(","))
    assert {"forget/accuracy", "forget/loss", "forget/mia_auc", "validation/accuracy", "validation/loss", "unlearning/step"} <= header
    assert {f"{what}/{layer}" for what in ("rank", "free", "interference") for layer in ("net.0", "net.5", "net.7")} <= header
    assert "interference/total" in header


def test_report_round_trip(module, space_file, tmp_path):
    callback = PGUCallback(CLASS, retain_space=space_file)
    trainer(100, [callback]).fit(module, datamodule=Data())
    callback.report.save(tmp_path / "report.json")
    assert type(callback.report).load(tmp_path / "report.json") == callback.report
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["schema"] == 1
    assert content["layers"]["net.0"]["dim"] == 12
    assert CLASSES == 4


def test_statistics_of_a_share_are_forgotten_from_by_position():
    settings = Settings(samples=0.5)
    learn = PGUCallback(settings=settings)
    trainer(1, [learn]).fit(module := Module(), DataLoader(blobs(40), 8))
    assert learn.space.provenance.share == 0.5
    with pytest.raises(ValueError, match=r"share of 0\.5 of the samples.*Give the whole training data"):
        trainer(1, [PGUCallback(ForgetRequest(everything=True), retain_space=learn.space)]).fit(module, DataLoader(blobs(8), 8))
    forget = PGUCallback(ForgetRequest(classes=[1]), retain_space=learn.space)  # the share is that of the statistics
    trainer(1, [forget]).fit(module, DataLoader(blobs(40), 8))
    assert forget.report is not None
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="a share above 0 and at most 1"):
            Settings(samples=wrong)
