"""Whole runs of the application on few epochs of real digits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import wandb
from omegaconf import OmegaConf

from pgu_lightning.app.experiment import run
from pgu_lightning.app.forget import samples
from pgu_lightning.data import Digits
from pgu_lightning.evaluation import Scores
from pgu_lightning.records import Report
from pgu_lightning.statistics import RetainSpace
from tests.app.test_configs import composed
from tests.helpers.metrics import documented, known
from tests.helpers.wandb_file import history, read_records, summary

# wandb keeps several values for a table, a chart's table or a histogram
MEDIA = re.compile(r"^(comparison|layers|worst/\w+|charts/\w+?|charts/loss/\w+?|histograms/\w+/\w+)(_table)?/\w+$")
FAST = ("model.epochs=4", "logger=none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One cache for all runs of this file."""
    return tmp_path_factory.mktemp("runs")


def report_of(folder, name, *overrides):
    output = folder / name
    output.mkdir()
    config = composed(*FAST, *overrides, tmp_path=folder)
    OmegaConf.update(config, "output_dir", str(output))
    return run(config, output), output


def accuracy(checkpoint, images, targets):
    """From the saved file alone, with the arithmetic of nobody else."""
    from pgu_lightning.models import SmallCNN

    network = SmallCNN((1, 8, 8), 10)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    network.eval()
    with torch.no_grad():
        return float((network(images).argmax(1) == targets).float().mean())


def test_a_class(folder):
    report, output = report_of(folder, "class")
    assert {path.name for path in output.iterdir()} == {
        "original.ckpt", "unlearned.ckpt", "retain.safetensors", "report.json", "report.html", "config.yaml", ".lock",
    }  # fmt: skip
    content = json.loads((output / "report.json").read_text())
    assert content["schema"] == 1
    assert content["seed"] == 0
    assert content["request"] == {"kind": "class", "size": report.request.size, "digest": report.request.digest, "classes": [3]}
    assert content["method"]["name"] == "pgu"
    assert content["method"]["uses_retain_data"] is False
    assert content["models"].keys() == {"original", "unlearned", "retrained"}
    names = {"forget_accuracy", "retain_accuracy", "test_accuracy", "forget_test_accuracy", "mia_auc"}
    assert all(metrics.keys() == names for metrics in content["models"].values())
    gaps = [abs(content["models"]["unlearned"][name] - content["models"]["retrained"][name]) for name in names]
    assert content["average_gap"] == pytest.approx(sum(gaps) / 5)
    assert {"dim", "rank", "free"} <= next(iter(content["layers"].values())).keys()
    assert content["interference"]["measured"].keys() == content["interference"]["layers"].keys()
    for name, measured in content["interference"]["measured"].items():
        assert measured["own"] == pytest.approx(content["interference"]["layers"][name], rel=1e-3)
    assert content["seconds"].keys() == {"train", "collect", "unlearn", "retrain"}
    assert len(content["examples"]) == 12
    assert Report.load(output / "report.json") == report

    data = Digits()
    data.setup()
    x, y = torch.stack([data.train[i][0] for i in range(len(data.train))]), data.train.targets
    for model in ("original", "unlearned"):
        for metric, chosen in (("forget_accuracy", y == 3), ("retain_accuracy", y != 3)):
            assert accuracy(output / f"{model}.ckpt", x[chosen], y[chosen]) == pytest.approx(content["models"][model][metric], abs=1e-6)


def test_the_saved_statistics_are_those_of_the_retained_data(folder):
    space = RetainSpace.load(folder / "class" / "retain.safetensors")
    assert space.provenance.samples == 1200 - Report.load(folder / "class" / "report.json").request.size


def test_the_original_and_the_reference_are_trained_once(folder):
    before = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.ckpt")}
    assert len(before) == 2
    report_of(folder, "again", "method=pgu_paper", "method.epochs=2")
    assert {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.ckpt")} == before


@pytest.mark.parametrize("change", ["seed=1", "model.epochs=5", "data.batch_size=32", "model.optimizer.lr=0.001", "data.poison=3"])
def test_another_recipe_is_another_model(folder, change):
    before = set((folder / "cache").glob("original-*"))
    report_of(folder, change.replace("=", "-"), change, "reference=false", "method.epochs=1")
    assert len(set((folder / "cache").glob("original-*.lock")) - before) == 1


def test_samples_without_a_reference(folder):
    asked = ("forget=samples", "forget.size=0.05", "reference=false", "examples=0", "measure_interference=false")
    report, _ = report_of(folder, "samples", *asked)
    assert report.interference.measured == {}
    assert (report.request.kind, report.request.size) == ("samples", 60)
    assert report.models.keys() == {"original", "unlearned"}
    assert report.average_gap is None
    assert report.examples == ()


def test_poison_and_the_floor(folder):
    report, _ = report_of(folder, "poison", "forget=poison", "floor=true")
    assert (report.request.kind, report.request.size) == ("poison", 200)
    assert report.models["unlearned"]["forget_accuracy"] < report.models["original"]["forget_accuracy"]
    assert report.floor is not None
    assert report.models.keys() == {"original", "unlearned", "retrained"}


def test_corrected_labels(folder):
    report, output = report_of(folder, "corrected", "forget=poison", "forget.corrected=true", "method.epochs=12")
    data = Digits(poison=200)
    data.setup()
    images = torch.stack([data.train[index][0] for index in data.poisoned.tolist()])
    assert report.corrected_accuracy.keys() == {"original", "unlearned", "retrained"}
    for model in ("original", "unlearned"):
        expected = accuracy(output / f"{model}.ckpt", images, data.clean_targets)
        assert report.corrected_accuracy[model] == pytest.approx(expected, abs=1e-6)
    assert report.corrected_accuracy["unlearned"] > 0.95
    names = report.models["unlearned"].keys()
    gaps = [abs(report.models["unlearned"][name] - report.models["retrained"][name]) for name in names]
    assert "corrected_accuracy" not in names  # an average over the models' figures is the gap
    assert report.average_gap == pytest.approx(sum(gaps) / len(gaps))
    assert report.config["forget"]["corrected"] is True
    assert "accuracy on corrected labels" in (output / "report.html").read_text()


def test_corrected_labels_do_not_leave_the_run(folder):
    asked = (
        "~forget.classes",
        "+forget.indices=[1017]",
        "+forget.kind=poison",
        "+forget.corrected=[7]",
        "reference=false",
        "method.epochs=1",
    )
    report, output = report_of(folder, "corrected-list", *asked)
    assert report.config["forget"].keys() == {"_target_", "kind"}
    assert "curve" in json.loads((output / "report.json").read_text())


def test_a_repair_where_the_stop_rule_is_not_met(folder):
    asked = ("forget=poison", "forget.size=100", "method.epochs=1", "repair=0.1")
    report, output = report_of(folder, "repair", *asked, "reference=false")
    assert (report.method.uses_retain_data, report.method.retain_samples) == (True, 110)
    assert report.outcome.epochs == 2
    assert "It read 110 samples of the retained training data too." in (output / "report.html").read_text()
    with pytest.raises(ValueError, match="needs a method that can be repaired, such as method=pgu"):
        report_of(folder, "no-repair", "method=retrain", "repair=0.1")
    with pytest.raises(ValueError, match=r"repair=5000.* is 5000 retained samples, and the training loader has"):
        report_of(folder, "too-many", "repair=5000")
    with pytest.raises(ValueError, match="repair=-1: expected float, 0 or more or null"):
        report_of(folder, "negative", "repair=-1")


def test_only_a_preflight(folder, capsys):
    report, output = report_of(folder, "preflight", "preflight=only")
    names = {path.name for path in output.iterdir() if path.name[0] != "."}
    assert names == {"original.ckpt", "retain.safetensors", "report.json", "report.html", "config.yaml"}
    content = json.loads((output / "report.json").read_text())
    assert content["models"].keys() == {"original"}
    assert content["preflight"]["layers"].keys() == content["layers"].keys()
    assert all(0 < layer["survives"] < 1 for layer in content["preflight"]["layers"].values())
    assert sum(layer["share"] for layer in content["preflight"]["layers"].values()) == pytest.approx(1)
    assert (report.outcome.fulfilled, report.outcome.steps) == (False, 0)
    assert RetainSpace.load(output / "retain.safetensors").provenance.samples == 1200
    shown = capsys.readouterr().out
    assert "Before unlearning" in shown
    assert shown.index("of the forget gradient of") < shown.index("accuracy on the forget set")


def test_the_preflight_is_shown_first_or_left_out(folder, capsys):
    report, _ = report_of(folder, "with", "reference=false", "method.epochs=1")
    assert report.preflight is not None
    assert capsys.readouterr().out.count("Before unlearning") == 1
    report, _ = report_of(folder, "without", "reference=false", "method.epochs=1", "preflight=false")
    assert report.preflight is None
    assert "Before unlearning" not in capsys.readouterr().out


def test_a_method_that_does_not_project_has_no_preflight(folder):
    with pytest.raises(ValueError, match=r"preflight=only needs a method that projects.*Retrain does not"):
        report_of(folder, "none", "method=retrain", "preflight=only")
    with pytest.raises(ValueError, match='preflight="maybe": expected bool or only'):
        report_of(folder, "maybe", "preflight=maybe")


def test_retraining_is_a_method_too(folder):
    report, _ = report_of(folder, "retrain", "method=retrain")
    assert report.method.uses_retain_data
    assert report.outcome is None
    assert report.models["unlearned"]["forget_accuracy"] == 0


def test_a_bad_request_is_refused_before_any_work(folder):
    with pytest.raises(ValueError, match="No sample has the label 12"):
        report_of(folder, "bad", "forget.classes=[12]")
    assert [path.name for path in (folder / "bad").iterdir()] == [".lock"]
    with pytest.raises(ValueError, match=r"forget.size=1200"):
        report_of(folder, "bad2", "forget=samples", "forget.size=1200")


def test_ids_do_not_leave_the_run(folder):
    _, output = report_of(folder, "ids", "~forget.classes", "+forget.indices=[1017,1018,1019,1020]", "reference=false")
    text = (output / "report.json").read_text() + (output / "report.html").read_text()
    assert not re.search(r"(?<![\d.])10(17|18|19|20)(?![\d])", text)


def test_random_samples_are_a_function_of_the_seed():
    data = Digits()
    data.setup()
    assert samples(data, 0.1, 0) == samples(data, 120, 0) != samples(data, 0.1, 1)
    assert [len(request.indices) for request in samples(data, 5, 0, requests=2)] == [5, 5]
    assert len(Scores.concatenate([])) == 0


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_offline_wandb_runs_hold_every_documented_metric_and_no_other(folder, monkeypatch):
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(folder / name))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()
    logged, kinds = set(), []
    runs = {
        "pgu": ("floor=true",),
        "finetune": ("method=finetune", "method.epochs=1", "reference=false"),
        "corrected": ("forget=poison", "forget.corrected=true", "method.epochs=2"),
        "row": ("forget=samples", "forget.size=20", "forget.requests=2", "reference=false"),
    }
    for name, overrides in runs.items():
        _, output = report_of(folder, f"wandb-{name}", "logger=wandb", *overrides)
        wandb.teardown()  # finish does not wait until the service has written the file
        records = [record for file in output.rglob("*.wandb") for record in read_records(file)]
        rows = [*history(records), summary(records)]
        keys = {MEDIA.sub(r"\1", key) for row in rows for key in row}
        logged |= {key for key in keys if not key.startswith("_")}
        kinds += [record.artifact.type for record in records if record.WhichOneof("record_type") == "artifact"]
    names = documented()
    assert [metric for metric in logged if not known(metric, names)] == []
    assert [name for name in names if not any(known(metric, [name]) for metric in logged)] == []
    assert {kind: kinds.count(kind) for kind in ("model", "retain-space", "report")} == {"model": 10, "retain-space": 5, "report": 5}


def test_worst_samples_are_named_only_where_asked(folder):
    report, output = report_of(folder, "unnamed", "forget=samples", "forget.size=0.05", "reference=false")
    assert len(report.worst["remembered"]) == 10
    assert all(sample.id is None for samples in report.worst.values() for sample in samples)
    named, _ = report_of(folder, "named", "forget=samples", "forget.size=0.05", "reference=false", "show_ids=true", "worst=3")
    assert [sample.digest for sample in named.worst["remembered"]] == [sample.digest for sample in report.worst["remembered"][:3]]
    names = [sample.id for sample in named.worst["remembered"]]
    data = Digits()
    data.setup()
    assert set(names) <= {str(data.train.ids[position]) for position in samples(data, 0.05, 0)[0].indices}
    assert all(f'"{name}"' not in (output / "report.json").read_text() for name in names)


def test_killing_unlearning_leaves_what_was_there(folder, tmp_path):
    places = [f"cache={folder / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}"]
    never_ends = ["method.settings.trust_radius=1e-9", "method.epochs=100000"]
    command = [sys.executable, "-m", "pgu_lightning", "model.epochs=4", "logger=csv", *places, *never_ends]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("run/csv/*/metrics.csv")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    (cached,) = (path.parent for path in (folder / "cache").glob("original-*/key.json") if _is_plain(path))
    assert (tmp_path / "run" / "original.ckpt").read_bytes() == (cached / "model.ckpt").read_bytes()
    assert (tmp_path / "run" / "retain.safetensors").read_bytes() == (cached / "model.retain.safetensors").read_bytes()
    assert not list(tmp_path.glob("run/*.tmp"))
    assert not (tmp_path / "run" / "unlearned.ckpt").exists()


def test_a_run_in_the_folder_of_a_killed_one_begins_unlearning_anew(folder, tmp_path):
    whole, output = report_of(folder, "whole", "reference=false")
    (tmp_path / "cut").mkdir()
    for name, content in {"unlearned.ckpt": b"half", ".holder": b"process 1 on a machine", "report.json": b"{"}.items():
        (tmp_path / "cut" / name).write_bytes(content)
    (tmp_path / "cut" / "retain.safetensors").write_bytes((output / "retain.safetensors").read_bytes())  # reduced already
    config = composed(*FAST, "reference=false", tmp_path=folder)
    OmegaConf.update(config, "output_dir", str(tmp_path / "cut"))
    report = run(config, tmp_path / "cut")
    assert (report.models, report.outcome) == (whole.models, whole.outcome)
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {path.name for path in output.iterdir()}


def _is_plain(path: Path) -> bool:
    key = json.loads(path.read_text())
    data = Digits(batch_size=64)
    data.setup()
    lr = composed(tmp_path=path.parent).model.optimizer.lr
    found = (key["seed"], key["model"]["epochs"], key["batch_size"], key["data"], key["model"]["optimizer"]["lr"])
    return found == (0, 4, 64, data.digest(), lr)


def test_requests_one_after_the_other(folder):
    report, output = report_of(folder, "sequence", "forget=classes", "forget.requests=2", "method.epochs=20")
    first, second = (Report.load(output / f"request-{number}" / "report.json") for number in (1, 2))
    assert Report.load(output / "report.json") == report
    assert report.models == second.models
    assert [stage.request.classes for stage in report.stages] == [(0,), (1,)]
    assert [stage.models for stage in report.stages] == [first.models, second.models]
    assert [stage.average_gap for stage in report.stages] == [first.average_gap, second.average_gap]
    assert report.stages[1].free == {name: layer.free for name, layer in second.layers.items()}

    data = Digits()
    data.setup()
    zero, rest = data.train.targets == 0, data.test.targets > 1
    images, targets = data.train.images, data.train.targets
    earlier = second.earlier[0].models
    assert earlier.keys() == {"original", "unlearned", "retrained"}
    assert earlier["unlearned"]["forget_accuracy"] == pytest.approx(accuracy(output / "unlearned.ckpt", images[zero], targets[zero]))
    assert second.models["unlearned"]["test_accuracy"] == pytest.approx(
        accuracy(output / "unlearned.ckpt", data.test.images[rest], data.test.targets[rest])
    )
    assert (output / "request-2" / "original.ckpt").read_bytes() == (output / "request-1" / "unlearned.ckpt").read_bytes()
    assert (output / "original.ckpt").read_bytes() == (output / "request-1" / "original.ckpt").read_bytes()
    # the second reference saw neither class
    retrained = earlier["retrained"]["forget_accuracy"]
    assert retrained == second.models["retrained"]["forget_accuracy"] == 0


def test_a_sequence_is_refused_whole(folder):
    with pytest.raises(ValueError, match="fewer than all together"):
        report_of(folder, "too many", "forget=classes", "forget.requests=10")
    assert not list((folder / "too many").glob("*.ckpt"))


def test_an_attack_trained_on_other_models(folder):
    report, _ = report_of(folder, "attack", "forget=first", "forget.size=4", "attack_models=2", "method.epochs=2")
    assert report.trained_attack.keys() == {"original", "unlearned", "retrained"}
    assert all(0 <= share <= 1 for share in report.trained_attack.values())
    assert len(list((folder / "cache").glob("reference-*/key.json"))) >= 5  # two of each kind, and the reference
