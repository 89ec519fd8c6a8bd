"""Several reports side by side, and the command that reads them."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from pgu_lightning.report.cli import main
from pgu_lightning.report.compare import compare_table, comparison, write_comparison
from pgu_lightning.report.html import render_html
from tests.report.sample import HOSTILE, hostile, minimal, rich, unfulfilled


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, report in {"a": rich(), "b": unfulfilled(), "c": minimal()}.items():
        report.save(tmp_path / "runs" / name / "report.json")
    return tmp_path / "runs"


def test_figures_equal_the_reports():
    full, failed, little = comparison({"a": rich(), "b": unfulfilled(), "c": minimal()})
    assert full["accuracy on test data"] == rich().models["unlearned"]["test_accuracy"]
    assert [row["average gap"] for row in (full, failed, little)] == [0.00729312, 0.00729312, None]
    assert [row["fulfilled"] for row in (full, failed, little)] == ["yes", "NO", None]
    assert (full["to forget"], little["to forget"]) == ("whole classes: Trouser (1) (1,234)", "single samples (5)")
    assert (full["interference"], little["interference"], little["seed"]) == (1.23456e-4, None, None)
    assert full.keys() == failed.keys() == little.keys()


def test_the_page_holds_these_figures(tmp_path):
    reports = {"a": rich(), "c": minimal(), HOSTILE: hostile()}
    source = write_comparison(reports, tmp_path / "comparison.html").read_text()
    values = [float(value) for value in re.findall(r'data-value="([^"]*)"', source)]
    assert values == [value for row in comparison(reports) for value in row.values() if isinstance(value, float)]
    assert "<script" not in source


def test_the_terminal_shows_the_same():
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(compare_table({"a": rich(), "c": minimal()}))
    line = next(line for line in console.export_text().splitlines() if "membership AUC" in line)
    assert re.findall(r"0\.\d+|-", line) == ["0.504", "-"]


def test_one_run_is_rebuilt(runs, capsys):
    main([str(runs / "a")])
    assert (runs / "a" / "report.html").read_text() == render_html(rich())
    assert "accuracy on the forget set" in capsys.readouterr().out


def test_several_runs_are_compared(runs, capsys):
    main([str(runs / "a"), str(runs / "b" / "report.json"), "-o", "both.html"])
    assert "NO" in capsys.readouterr().out
    page = (runs.parent / "both.html").read_text()
    assert page.count("<tr>") == 3
    assert not (runs / "a" / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs"], "runs has no report.json; it holds 3 runs, give runs/*/"),
        (
            ["runs/a", "runs/none", "runs/bad"],
            r"runs/none has no report.json: give the folder of a finished run\n.*runs/bad/report.json is not",
        ),
        ([], "RUN_DIR"),
    ],
)
def test_what_is_wrong_is_said_at_once(runs, capsys, arguments, message):
    (runs / "bad").mkdir()
    (runs / "bad" / "report.json").write_text("{}")
    if arguments == ["runs"]:
        (runs / "bad" / "report.json").unlink()
    with pytest.raises(SystemExit):
        main(arguments)
    assert re.search(message, capsys.readouterr().err)
    assert not list(runs.rglob("*.html"))


def test_help_says_what_it_is_for(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "RUN_DIR" in out
    assert "write its report.html again" in out
