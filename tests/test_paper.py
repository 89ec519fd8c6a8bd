"""The paper's experiments, end to end, and the tables that are made of them."""

from __future__ import annotations

import json

import pytest

from benchmarks import paper
from pgu_lightning.records import EarlierRequest, MethodRecord, Outcome, Report, RequestRecord, Stage


def test_a_table_has_every_request_and_what_became_of_those_before(tmp_path):
    asked = RequestRecord("samples", 80, "d")
    models = {
        "original": {"forget_accuracy": 1.0, "mia_auc": 0.6},
        "unlearned": {"forget_accuracy": 0.9, "mia_auc": 0.5},
        "retrained": {"forget_accuracy": 0.8, "mia_auc": 0.5},
    }
    first = Report(asked, MethodRecord("pgu_paper", False), models, outcome=Outcome(True, "met", 1, 1), average_gap=0.05)
    second = first.replace(earlier=(EarlierRequest(asked, models),), outcome=Outcome(False, "not met", 1, 1))
    stage = Stage(asked, models)
    for name, report in (("request-1", first), ("request-2", second), ("", second.replace(stages=(stage, stage)))):
        (tmp_path / name).mkdir(exist_ok=True)
        report.save(tmp_path / name / "report.json")
    lines = list(paper.table(tmp_path))
    assert lines[0] == "| request | forget | AUC | forgotten before | gap | stop rule met |"
    assert lines[2] == "| 1: 80 samples | 1.000 / 0.900 / 0.800 | 0.600 / 0.500 / 0.500 | - | 0.050 | yes |"
    assert lines[3] == "| 2: 80 samples | 1.000 / 0.900 / 0.800 | 0.600 / 0.500 / 0.500 | 1.000 / 0.900 / 0.800 | 0.050 | no |"
    assert len(lines) == 4


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("experiment", paper.EXPERIMENTS)
def test_every_experiment_runs_to_its_table(experiment, tmp_path):
    """In its small size on Fashion-MNIST, as a user would start it."""
    paper.run(experiment, "fashion_mnist", tmp_path / experiment, [])
    found = paper.reports(tmp_path / experiment)
    wanted = {"samples_smallvgg_cifar10": 4, "classes_resnet18_tinyimagenet": 3, "depoison_smallvgg_cifar10": 4}.get(experiment, 1)
    assert len(found) == wanted
    for report in found:
        assert report.method.name == "pgu_paper"
        assert report.models.keys() == {"original", "unlearned", "retrained"}
        assert report.models["original"]["test_accuracy"] > 0.5  # it has learnt
        assert not report.method.uses_retain_data
    assert (len(found[-1].trained_attack) == 3) == (experiment == "mia_smallvgg_cifar10")
    assert len(found[-1].earlier) == (3 if experiment == "samples_smallvgg_cifar10" else 0)
    sizes = [json.loads(path.read_text())["request"]["size"] for path in (tmp_path / experiment).rglob("report.json")]
    assert all(size > 0 for size in sizes)
