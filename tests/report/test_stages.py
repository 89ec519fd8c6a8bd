from __future__ import annotations

import io

from rich.console import Console

from pgu_lightning.records import EarlierRequest, MethodRecord, Outcome, Report, RequestRecord, Stage
from pgu_lightning.report.html import render_html
from pgu_lightning.report.stages import print_stages, stage_rows, stages_figure

ASKED = RequestRecord("samples", 40, "abcdef0123456789")


def metrics(forget, retain=0.99, test=0.9, auc=0.5):
    return {"forget_accuracy": forget, "retain_accuracy": retain, "test_accuracy": test, "mia_auc": auc}


FIRST = Stage(
    ASKED,
    {"original": metrics(1.0), "unlearned": metrics(0.93), "retrained": metrics(0.91)},
    outcome=Outcome(True, "down", 3, 3),
    average_gap=0.0123,
    free={"a": 5, "b": 7},
)
SECOND = Stage(
    ASKED,
    {"original": metrics(0.98), "unlearned": metrics(0.89)},
    earlier=(EarlierRequest(ASKED, {"original": {"forget_accuracy": 0.93}, "unlearned": {"forget_accuracy": 0.96}}),),
    outcome=Outcome(False, "not met", 3, 3),
    free={"a": 6, "b": 7},
)
REPORT = Report(ASKED, MethodRecord("pgu", False), SECOND.models, earlier=SECOND.earlier, stages=(FIRST, SECOND))


def test_rows():
    first, second = stage_rows(REPORT)
    assert first == ("1", "1.000", "0.930\n(0.910)", "0.990\n(0.990)", "0.900\n(0.900)", "0.500\n(0.500)", "0.012", "-", "12", "yes")
    assert second == ("2", "0.980", "0.890", "0.990", "0.900", "0.500", "-", "0.030", "13", "NO")


def test_a_terminal_of_80_columns_shows_every_figure():
    console = Console(file=io.StringIO(), width=80)
    print_stages(REPORT, console)
    shown = console.file.getvalue()
    assert all(part in shown for row in stage_rows(REPORT) for cell in row for part in cell.split())


def test_the_page_has_the_stages_and_what_was_forgotten_before():
    page = render_html(REPORT)
    assert "The requests one after the other" in page
    assert "What was forgotten before" in page
    assert "digest <code>abcdef01</code>" in page
    assert "one after the other" not in render_html(REPORT.replace(stages=()))


def test_the_figure_shows_each_model_where_it_is_known():
    top, bottom = stages_figure(REPORT).axes
    lines = {(line.get_label(), line.get_linestyle()): list(line.get_ydata()) for line in top.lines}
    assert lines["forget", "-"] == [0.93, 0.89]
    assert next(list(line.get_ydata()) for line in top.lines if line.get_linestyle() == "--") == [0.91]
    assert list(bottom.lines[0].get_ydata()) == [12, 13]
    assert stages_figure(REPORT.replace(stages=())) is None
