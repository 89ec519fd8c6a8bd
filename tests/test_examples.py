"""Every example runs; those that need torchvision, timm or transformers do so in tests/ecosystem."""

from __future__ import annotations

import re
import warnings

import nbformat
import pytest
from nbclient import NotebookClient

from pgu_lightning import Report
from tests.helpers.examples import EXAMPLES, run_example
from tests.helpers.processes import run_script


def changes(out: str) -> list[tuple[float, float]]:
    """Forget accuracy before and after, one pair a request."""
    return [(float(before), float(after)) for before, after in re.findall(r"forget accuracy ([\d.]+) -> ([\d.]+)", out)]


def test_existing_trainer(tmp_path):
    accuracies = changes(run_script(EXAMPLES / "existing_trainer.py", str(tmp_path)))
    assert [after for _, after in accuracies[:3]] == [0.0, 0.0, 0.0]
    assert 0.9 <= accuracies[3][1] < 1.0
    assert len(accuracies) == 4


def test_its_own_part_does_not_mention_the_package():
    source = (EXAMPLES / "existing_trainer.py").read_text()
    before, after = source.split("# ---- what is added ----")
    assert "pgu" not in before.split('"""', 2)[2].lower()
    assert "pgu" in after


def test_earlier_checkpoint(tmp_path):
    out = run_example("earlier_checkpoint", tmp_path)
    assert "collected over 1400 samples, 3 layers are protected" in out
    assert "a part of 563 samples" in out
    assert [after for _, after in changes(out)] == [0.0, 0.0]


def test_two_requests(tmp_path):
    out = run_example("two_requests", tmp_path)
    assert [int(held) for held in re.findall(r"hold (\d+) samples", out)] == [1360, 1220]
    (_, people), (_, sevens) = changes(out)
    assert 0.85 < people < 1
    assert sevens == 0
    assert "the forty again: Already forgotten" in out


def test_custom_layer():
    out = run_example("custom_layer")
    assert re.search(r"before: \{'net.3': 'Quadratic .*'net.5'", out)
    assert "after: {}" in out
    assert changes(out)[0][1] == 0


def test_other_callbacks(tmp_path):
    out = run_example("other_callbacks", tmp_path)
    assert [after for _, after in changes(out)] == [0.0, 0.0]
    assert "refused: EMAWeightAveraging" in out


def test_lightning_cli(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn, forget = (EXAMPLES / f"lightning_cli_{what}.yaml" for what in ("learn", "forget"))
    run_example("lightning_cli", "fit", "--config", learn)
    assert (tmp_path / "outputs/lightning_cli/model.retain.safetensors").exists()
    out = run_example("lightning_cli", "fit", "--config", forget, "--trainer.callbacks.forget.classes", "[8]")
    assert "forget accuracy 0.000 is at most 0.000" in out


@pytest.mark.slow
def test_custom_objective(tmp_path):
    run_script(EXAMPLES / "custom_objective.py", f"hydra.run.dir={tmp_path}", f"cache={tmp_path}/cache", "logger=none", "reference=false")
    report = Report.load(tmp_path / "report.json")
    assert report.outcome.fulfilled
    assert report.method.settings["objective"] == "Hinge(room=1.0)"
    assert report.models["unlearned"]["forget_accuracy"] == 0


def test_first_steps(tmp_path, monkeypatch):
    """The notebook, from top to bottom; its own assertions hold."""
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    notebook = nbformat.read(EXAMPLES / "first_steps.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Jupyter's own parts
        NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(str(cell.get("outputs")) for cell in notebook.cells)
    assert "fulfilled=True" in text
    assert "measured" in text
