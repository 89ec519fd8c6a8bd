"""The terminal's table, read back from its text, against the report."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pgu_lightning.evaluation import Scores, model_metrics
from pgu_lightning.report import print_preflight, print_report
from pgu_lightning.report.table import METRIC_MEANINGS, METRIC_NAMES, comparison_table, number
from tests.report.sample import HOSTILE, hostile, minimal, rich, unfulfilled


def text_of(report, show=print_report):
    console = Console(width=220)
    with console.capture() as captured:
        show(report, console)
    return captured.get()


def cells_of(report):
    """The table as lists of cells: the heading, then one row a metric."""
    lines = text_of(report, lambda report, console: console.print(comparison_table(report))).splitlines()
    return [[cell.strip() for cell in line.replace("┃", "│").strip("│").split("│")] for line in lines if line[:1] in "┃│"]


def says(cell, value):
    return abs(float(cell) - value) <= (0.0005001 if value >= 0.01 else 0.005001 * value)


@pytest.mark.parametrize(
    "report", [rich(), minimal(), rich().replace(models={"unlearned": {"mia_auc": 0.5}, "retrained": {"mia_auc": 0.51}})]
)
def test_every_cell_is_the_reports_value(report):
    heading, *body = cells_of(report)
    models = [model for model in ("original", "unlearned", "retrained") if model in report.models]
    compared = {"unlearned", "retrained"} <= report.models.keys()
    assert heading == ["measured", *models, *(["|gap|"] if compared else [])]
    shown = {}
    for title, *cells in body:
        metric = next((name for name, words in METRIC_NAMES.items() if words == title), title.replace(" ", "_"))
        shown[metric] = cells
        for model, cell in zip(models, cells, strict=False):
            value = report.models[model].get(metric)
            assert cell == "-" if value is None else says(cell, value)
        if compared:
            pair = [report.models[model].get(metric) for model in ("unlearned", "retrained")]
            assert cells[-1] == "-" if None in pair else says(cells[-1], abs(pair[0] - pair[1]))
    assert shown.keys() == {metric for metrics in report.models.values() for metric in metrics}


def test_known_metrics_come_first_in_a_fixed_order():
    shares = {"original": 0.9, "unlearned": 0.25, "retrained": 0.5}
    attacked = rich().replace(trained_attack=shares, corrected_accuracy=dict.fromkeys(shares, 0.125))
    titles = [row[0] for row in cells_of(attacked)[1:]]
    assert cells_of(attacked)[titles.index("called members by a trained attack") + 1][1:] == ["0.900", "0.250", "0.500", "0.250"]
    assert cells_of(attacked)[titles.index("accuracy on corrected labels") + 1][1:] == ["0.125", "0.125", "0.125", "0.000"]
    assert titles == [*(METRIC_NAMES[name] for name in METRIC_NAMES if name != "validation_accuracy"), "relearn steps"]


def test_all_that_evaluation_computes_has_plain_words():
    scores = Scores.of(torch.eye(3), torch.arange(3))
    assert model_metrics(scores, scores, scores, gone=(1,)).keys() <= METRIC_NAMES.keys() == METRIC_MEANINGS.keys()


def test_closing_lines():
    text = text_of(rich())
    for line in (
        "Forget whole classes: Trouser (1) (1,234 training samples), by pgu",
        "average gap to the retrained model: 0.00729",
        "average gap between two retrained models: 0.00312",
        "interference with the retained data: 0.000123",
        "stopped: forget accuracy 0.001 is at most 0.002",
        "seconds: train 123.5, collect 2.5, unlearn 4.1, retrain 120.8",
        "Note: 2 of 48 steps were skipped: their gradients were not finite.",
    ):
        assert line in [shown.strip() for shown in text.splitlines()]
    assert "NOT" not in text


def test_what_is_missing_is_not_mentioned():
    text = text_of(minimal())
    for word in ("gap", "interference", "stopped", "seconds", "NOT", "Note"):
        assert word not in text


def test_not_fulfilled_comes_before_the_table():
    text = text_of(unfulfilled())
    assert text.index("The request is NOT fulfilled: the epochs ran out before the stop rule was met.") < text.index("measured")
    assert all(note in text for note in unfulfilled().outcome.notes)


def test_names_are_not_read_as_markup():
    text = text_of(hostile())
    assert text.count('"x=') == text.count(f'"x={HOSTILE}&[bold]') >= 8


def test_without_any_model():
    assert cells_of(minimal().replace(models={})) == [["measured"]]


@given(st.floats(1e-12, 1e6))
def test_a_number_keeps_three_digits(value):
    assert abs(float(number(value)) - value) <= (0.0005001 if value >= 0.01 else 0.0050001 * value)


def test_the_preflight_shows_each_layer_and_what_speaks_against_it():
    text = text_of(rich().preflight, print_preflight)
    for name, layer in rich().preflight.layers.items():
        (line,) = (line for line in text.splitlines() if name in line)
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert cells == [name, str(layer.dim), str(layer.free), *map(number, (layer.survives, layer.share, layer.clamped))]
    for words in ("of 1,234 samples passes: 0.081", "at most 0.0001", "aim at: 0.012", f"Warning: {rich().preflight.warnings[0]}"):
        assert words in text
    assert "Refused" not in text
    assert "Refused: " in text_of(hostile().preflight, print_preflight)
    assert HOSTILE in text_of(hostile().preflight, print_preflight)
