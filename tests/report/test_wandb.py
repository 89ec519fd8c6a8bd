"""What an offline run leaves on the disk, read back."""

import base64
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import wandb
from lightning.pytorch.loggers import WandbLogger

from pgu_lightning.records import Report
from pgu_lightning.report.wandb import LIVE_METRICS, STEP, _log_artifacts, define_metrics, log_report
from tests.helpers.wandb_file import history, read_records, summary
from tests.report.sample import hostile, minimal, rich


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where wandb writes everything, also what it would keep in the user's home."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield tmp_path
    wandb.teardown()


def records_of(folder, report, files=None):
    run = wandb.init(project="test", settings=wandb.Settings(silent=True, console="off"))
    log_report(run, report, files)
    return finish(run, folder)


def finish(run, folder):
    run.finish()
    wandb.teardown()  # finish does not wait until the service has written the file
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return read_records(path)


def artifacts(records, kind):
    return [record.artifact for record in records if record.WhichOneof("record_type") == "artifact" and record.artifact.type == kind]


def table(folder, key):
    (path,) = folder.glob(f"wandb/offline-run-*/files/media/table/{key}_[0-9]*.table.json")
    return json.loads(path.read_text())


def test_the_final_figures(folder):
    report = rich()
    shown = summary(records_of(folder, report))
    expected = {
        **{f"final/{model}/{metric}": value for model, metrics in report.models.items() for metric, value in metrics.items()},
        **{f"seconds/{stage}": value for stage, value in report.seconds.items()},
        "final/average_gap": report.average_gap,
        "final/floor": report.floor,
        "final/interference": report.interference.total,
        "outcome/fulfilled": True,
        "outcome/reason": report.outcome.reason,
        "outcome/steps": 48,
        "request/kind": "class",
        "request/size": 1234,
        "request/digest": report.request.digest,
    }
    assert {name: value for name, value in shown.items() if name.split("/")[0] in ("final", "seconds", "outcome", "request")} == expected


def test_tables_and_histograms(folder):
    report = rich()
    (row,) = history(records_of(folder, report))
    for model, sets in report.histograms.items():
        for name, histogram in sets.items():
            assert row[f"histograms/{model}/{name}/values"] == list(histogram.counts)
            assert row[f"histograms/{model}/{name}/bins"] == pytest.approx(histogram.edges, rel=1e-6)
    comparison, layers = table(folder, "comparison"), table(folder, "layers")
    assert comparison["columns"] == ["measured", "original", "unlearned", "retrained", "gap"]
    models = report.models
    assert comparison["data"][0] == [
        "accuracy on the forget set",
        *(models[model]["forget_accuracy"] for model in ("original", "unlearned", "retrained")),
        models["unlearned"]["forget_accuracy"] - models["retrained"]["forget_accuracy"],
    ]
    assert comparison["data"][-1] == ["relearn steps", None, 0.333, None, None]
    assert len(comparison["data"]) == 6
    assert layers["columns"] == ["layer", "inputs", "protected", "free", "clamped", "interference", "frozen because"]
    assert layers["data"] == [
        *(
            [name, layer.dim, layer.rank, layer.free, layer.clamped, report.interference.layers[name], None]
            for name, layer in report.layers.items()
        ),
        *([name, None, None, None, None, None, reason] for name, reason in report.frozen.items()),
    ]


def test_the_worst_samples_by_digest_and_by_id_where_asked(folder):
    report = rich()
    named = report.worst["remembered"][0]
    named = report.replace(worst={"remembered": (dataclasses.replace(named, id="person 17"),), "damaged": report.worst["damaged"]})
    records_of(folder, named)
    remembered, damaged = table(folder, "worst/remembered"), table(folder, "worst/damaged")
    assert remembered["columns"] == ["sample", "label", "original", "unlearned", "retrained"]
    assert remembered["data"] == [["person 17", "Trouser (1)", 0.99876, 0.31234, 0.0123]]
    assert damaged["data"] == [["c1b2c3d4e5f60718", "Pullover (2)", 0.97, 0.41, 0.95]]


def test_the_charts(folder):
    report = rich()
    records_of(folder, report)
    lines = {}
    for step, name, value in table(folder, "charts/accuracy_table")["data"]:
        lines.setdefault(name, []).append((step, value))
    assert lines == {
        "forget": [(point.step, point.forget_accuracy) for point in report.curve],
        "validation": [(point.step, point.validation_accuracy) for point in report.curve],
        "retain": [(0, 0.99876), (48, 0.97531)],
        "forget, retrained model": [(0, 0.0), (48, 0.0)],
    }
    for model, sets in report.histograms.items():
        rows = table(folder, f"charts/loss/{model}_table")["data"]
        for name, histogram in sets.items():
            shares = [value for _, line, value in rows if line == name]
            assert shares == pytest.approx([count / sum(histogram.counts) for count in histogram.counts])
            places = [10**place for place, line, _ in rows if line == name]
            assert all(low < place < high for low, place, high in zip(histogram.edges, places, histogram.edges[1:], strict=False))


def test_artifacts_say_what_they_were_made_from(folder):
    files = {"original.ckpt": b"before", "retain.safetensors": b"space", "unlearned.ckpt": b"after"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    records = records_of(folder, rich(), folder)
    chain = [(name, kind) for kind in ("model", "retain-space", "report") for name in (one.name for one in artifacts(records, kind))]
    assert chain == [("original", "model"), ("unlearned", "model"), ("retain-space", "retain-space"), ("report", "report")]
    (original, unlearned), (space,), (report,) = (artifacts(records, kind) for kind in ("model", "retain-space", "report"))
    made_from = {one.name: json.loads(one.metadata)["made_from"] for one in (original, space, unlearned, report)}
    expected = []
    for one in (original, space, unlearned, report):
        assert made_from[one.name] == expected
        expected = [*expected, {"name": one.name, "digest": one.digest}]
    for one in (original, space, unlearned):
        (entry,) = one.manifest.contents
        assert base64.b64decode(entry.digest) == hashlib.md5(files[entry.path]).digest()
        assert (entry.ref, entry.local_path) == ((folder / entry.path).as_uri(), "")  # referred to, not uploaded


class Online:
    """A run on a server, as far as artifacts go."""

    id, offline = "run", False

    def __init__(self):
        self.used, self.logged = [], []

    def use_artifact(self, artifact):
        self.used.append(artifact.name)

    def log_artifact(self, artifact, aliases):
        self.logged.append((artifact.name, aliases))


def test_online_the_original_and_its_statistics_are_inputs(folder):
    for name in ("original.ckpt", "retain.safetensors", "unlearned.ckpt"):
        (folder / name).write_bytes(b"x")
    run = Online()
    _log_artifacts(run, rich(), folder)
    assert run.used == ["original", "retain-space"]
    assert run.logged == [("unlearned", ["run"]), ("report", ["run"])]


def test_the_artifact_holds_the_report_without_samples_and_configuration(folder):
    report = rich()
    (artifact,) = artifacts(records_of(folder, report), "report")
    staged = {entry.path: entry.local_path for entry in artifact.manifest.contents}
    assert staged.keys() == {"report.json", "report.html"}
    assert Report.load(staged["report.json"]) == report.replace(examples=(), config={})
    assert 'data-value="0.00123456"' in Path(staged["report.html"]).read_text(encoding="utf-8")


def test_no_picture_goes_to_wandb(folder):
    report = rich()
    records_of(folder, report)
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert report.request.digest.encode() in written
    for example in report.examples:
        assert example.image.partition(",")[2].encode() not in written
        assert example.digest.encode() not in written


def test_a_report_with_little_in_it(folder):
    records = records_of(folder, minimal())
    shown = summary(records)
    assert {name for name in shown if name.startswith(("final/", "seconds/", "outcome/"))} == {
        "final/original/forget_accuracy",
        "final/unlearned/forget_accuracy",
        "final/interference",
    }
    assert table(folder, "comparison")["data"] == [["accuracy on the forget set", 1.0, 0.25, None]]
    assert table(folder, "layers")["data"] == []
    assert not any(key.startswith("histograms/") for row in history(records) for key in row)
    assert len(artifacts(records, "report")) == 1
    assert not artifacts(records, "model")


def test_unusual_names(folder):
    report = hostile()
    evil = report.method.name
    assert summary(records_of(folder, report))[f"final/{evil}/{evil}"] == 0.5
    assert table(folder, "layers")["data"][0][0] == evil


def test_live_metrics_run_over_unlearning_steps_beside_lightnings_own_axis(folder):
    logger = WandbLogger(project="test", save_dir=folder, offline=True, settings=wandb.Settings(silent=True, console="off"))
    layers = ["features.0", "head"]
    define_metrics(logger.experiment, layers)
    names = list(dict.fromkeys(name.replace("<layer>", layer) for name in LIVE_METRICS for layer in layers))
    for step, value in ((0, 0.5), (4, 0.25), (8, 0.75)):
        logger.log_metrics({STEP: step, **dict.fromkeys(names, value)}, step=100 + step)
    records = finish(logger.experiment, folder)
    metrics = [record.metric for record in records if record.WhichOneof("record_type") == "metric"]
    assert {metric.name.replace("\\.", ".") for metric in metrics if metric.step_metric == STEP} == set(names)
    assert [(row[STEP], row["trainer/global_step"], row["forget/accuracy"]) for row in history(records)] == [
        (0, 100, 0.5),
        (4, 104, 0.25),
        (8, 108, 0.75),
    ]
    assert {name: summary(records)[name] for name in names} == {name: {"min": 0.25, "last": 0.75} for name in names}
    assert summary(records)[STEP] == 8
