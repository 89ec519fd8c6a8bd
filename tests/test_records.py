"""report.json: written whole, read back as it was, refused when it is something else."""

from __future__ import annotations

import json

import pytest

from pgu_lightning.records import (
    Answer,
    CurvePoint,
    Example,
    Histogram,
    Interference,
    LayerRecord,
    MeasuredLayer,
    MethodRecord,
    Outcome,
    Preflight,
    PreflightLayer,
    Report,
    RequestRecord,
    average_gap,
)

REPORT = Report(
    request=RequestRecord("class", 3, "d1", (1, 4)),
    method=MethodRecord("pgu", False, {"rule": "Soft(damping=0.01)", "steps": 3, "on": True, "nothing": None, "list": [1, 2]}),
    models={"original": {"forget_accuracy": 0.1 + 0.2}, "unlearned": {}},
    outcome=Outcome(True, "forget accuracy 0.000 ≤ 0", 4, 12, 1, ("a note", "zwölf")),
    preflight=Preflight({"conv": PreflightLayer(27, 18, None, 0.25, 0.125)}, 3, 1 / 7, 1e-4, 0.01, ("a warning",), "refused"),
    average_gap=1 / 3,
    floor=0.0,
    interference=Interference(1e-300, {"conv": 5e-324}, {"conv": MeasuredLayer(1 / 3, 5e-324)}),
    layers={"conv": LayerRecord(27, 9, 18, 0.125)},
    frozen={"norm": "BatchNorm2d is not a layer"},
    seconds={"train": 1.5},
    curve=(CurvePoint(0, 1.0, 0.01), CurvePoint(3, 0.0, 7.5, 0.9, 0.3, 0.5, 0.02, 1e-5)),
    histograms={"original": {"forget": Histogram((0.1, 1.0, 10.0), (3, 0))}},
    examples=(Example("d2", 3, "data:image/png;base64,AAAA", {"original": Answer(3, 0.75)}),),
    class_names=("zero", "one"),
    environment={"torch": "2.13"},
    config={"seed": 3, "data": {"name": "digits"}},
    seed=3,
)
LEAST = Report(RequestRecord("samples", 1, "d"), MethodRecord("retrain", True), {})


@pytest.mark.parametrize("report", [REPORT, LEAST], ids=["everything", "the least"])
def test_a_round_trip_is_exact(report, tmp_path):
    path = tmp_path / "folder" / "report.json"
    report.save(path)
    assert Report.load(path) == report
    assert list(path.parent.iterdir()) == [path]


def test_the_keys_that_scripts_read(tmp_path):
    REPORT.save(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["schema"] == 1
    assert data["seed"] == 3
    assert data["request"] == {"kind": "class", "size": 3, "digest": "d1", "classes": [1, 4]}
    assert (data["method"]["name"], data["method"]["uses_retain_data"]) == ("pgu", False)
    assert data["models"]["original"]["forget_accuracy"] == 0.1 + 0.2
    assert data["average_gap"] == 1 / 3
    assert data["interference"] == {
        "total": 1e-300,
        "layers": {"conv": 5e-324},
        "measured": {"conv": {"own": 1 / 3, "with_inputs": 5e-324}},
    }
    assert data["layers"]["conv"].items() >= {"dim": 27, "rank": 9, "free": 18}.items()
    assert data["frozen"] == {"norm": "BatchNorm2d is not a layer"}
    assert data["seconds"] == {"train": 1.5}


def test_keys_that_a_later_version_added_are_passed_over(tmp_path):
    REPORT.save(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text())
    data["new"] = 1
    data["request"]["new"] = 2
    (tmp_path / "report.json").write_text(json.dumps(data))
    assert Report.load(tmp_path / "report.json") == REPORT


def test_an_objective_that_is_not_finite_is_written_and_read(tmp_path):
    """As a pass with a skipped step has it; in JSON that any reader takes."""
    report = LEAST.replace(curve=(CurvePoint(1, 0.5, 2.0, objective=float("nan")),))
    report.save(tmp_path / "report.json")
    json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (point,) = Report.load(tmp_path / "report.json").curve
    assert (point.step, point.forget_accuracy, point.objective) == (1, 0.5, None)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"schema": 1}', '{"request": {"kind": "class"}}', "\0\0"])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"report\.json is not a report of pgu-lightning \(schema 1\)"):
        Report.load(path)


def test_other_schemas_are_refused(tmp_path):
    LEAST.replace(schema=2).save(tmp_path / "report.json")
    with pytest.raises(ValueError, match="has report schema 2, this version reads 1: rebuild it"):
        Report.load(tmp_path / "report.json")


def test_replace():
    assert LEAST.replace(seed=4).seed == 4
    assert LEAST.seed is None


def test_average_gap():
    one, other = {"a": 0.5, "b": 1.0, "c": 0.0}, {"b": 0.75, "a": 0.625, "d": 1.0}
    assert average_gap(one, other) == average_gap(other, one) == (0.125 + 0.25) / 2
    with pytest.raises(ValueError, match=r"no metric in common: \['a'\] and \['b'\]"):
        average_gap({"a": 1.0}, {"b": 1.0})
