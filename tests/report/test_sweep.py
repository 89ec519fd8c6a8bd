"""Sweeps: read back, put together as plain arithmetic does it, drawn and written without a figure lost."""

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pgu_lightning.report import Sweep, SweepJob, print_sweep, without_details, write_sweep_html
from pgu_lightning.report.html import render_sweep_html
from pgu_lightning.report.plots import to_svg
from pgu_lightning.report.sweep import front, gap_table, settings, varied
from pgu_lightning.report.sweep_plots import front_plot, gap_map, time_bars
from pgu_lightning.report.table import number
from tests.report.sample import HOSTILE, rich, sweep
from tests.report.test_html import Page, complaints, needs_chromium, open_in_chromium

NAMES = ["forget=class, method=pgu", "forget=class, method=pgu_paper", "forget=samples, method=pgu", "forget=samples, method=pgu_paper"]


def blind():
    """The same without retrained models, as ``reference=false`` leaves it."""
    jobs = []
    for job in sweep().jobs:
        report = job.report
        if report is not None:
            models = {model: metrics for model, metrics in report.models.items() if model != "retrained"}
            report = report.replace(models=models, average_gap=None, floor=None, seconds={"unlearn": report.seconds["unlearn"]})
        jobs.append(job.replace(report=report))
    return Sweep("blind", tuple(jobs))


def all_failed():
    return Sweep("none", (SweepJob("0", {"seed": "0"}, "boom"), SweepJob("1", {"seed": "1"}, "boom")))


def test_read_back(tmp_path):
    sweep().save(tmp_path / "sweep.json")
    assert Sweep.load(tmp_path / "sweep.json") == sweep()
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert content["schema"] == 1
    assert [job["folder"] for job in content["jobs"]] == [str(index) for index in range(8)]
    assert content["jobs"][0]["report"]["average_gap"] == sweep().jobs[0].report.average_gap
    assert content["jobs"][7]["report"] is None


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "sweep.json"
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"sweep\.json is not a sweep"):
        Sweep.load(path)
    path.write_text('{"name": "a", "jobs": [], "schema": 2}')
    with pytest.raises(ValueError, match="sweep schema 2, this version reads 1"):
        Sweep.load(path)


def test_the_jobs_own_reports_keep_the_details():
    kept = without_details(rich())
    assert (kept.models, kept.average_gap, kept.seconds, kept.outcome) == (
        rich().models,
        rich().average_gap,
        rich().seconds,
        rich().outcome,
    )
    assert not any((kept.examples, kept.curve, kept.histograms, kept.config, kept.layers, kept.preflight))


def test_seeds_are_put_together():
    assert varied(sweep()) == ["forget", "method", "seed"]
    found = settings(sweep())
    assert [setting.name for setting in found] == NAMES
    assert [len(setting.reports) for setting in found] == [2, 2, 2, 1]
    jobs = [job.report for job in sweep().jobs]
    expected = [np.mean([report.average_gap for report in jobs[start : start + 2] if report]) for start in (0, 2, 4, 6)]
    assert [setting.mean(lambda report: report.average_gap) for setting in found] == pytest.approx(expected)
    assert found[0].mean(lambda report: report.seconds.get("nothing")) is None
    assert found[0].fulfilled == "2/2"


def test_the_same_last_part_needs_the_whole_key():
    jobs = tuple(SweepJob(size, {"data.size": size, "forget.size": size}, report=without_details(rich())) for size in "12")
    assert [setting.name for setting in settings(Sweep("a", jobs))] == ["data.size=1, forget.size=1", "data.size=2, forget.size=2"]


def test_gaps_by_metric():
    names, cells = gap_table(sweep())
    assert names == ["forget_accuracy", "test_accuracy", "average_gap"]
    for row, indices in zip(cells, [(0, 1), (2, 3), (4, 5), (6,)], strict=True):
        forget = np.mean([abs(0.011 * index - 0.005) for index in indices])
        test = np.mean([abs(0.94 - 0.007 * index - 0.93) for index in indices])
        assert row == pytest.approx([forget, test, (forget + test) / 2])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_nothing_beats_the_front(points):
    chosen = {points[index] for index in front([(float(x), float(y)) for x, y in points])}
    beaten = {p for p in points if any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)}
    assert chosen == set(points) - beaten


def test_heat_map_shows_every_gap():
    (ax,) = gap_map(sweep()).axes
    names, cells = gap_table(sweep())
    assert np.asarray(ax.images[0].get_array()).tolist() == cells
    assert [text.get_text() for text in ax.texts] == [number(value) for row in cells for value in row]
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"{place}  {name}" for place, name in enumerate(NAMES, 1)]
    assert len(ax.get_xticklabels()) == len(names)


def test_front_plot_shows_every_setting():
    (ax,) = front_plot(sweep()).axes
    points = np.asarray(ax.collections[0].get_offsets())
    left = [np.mean([abs(0.011 * index - 0.005) for index in indices]) for indices in [(0, 1), (2, 3), (4, 5), (6,)]]
    cost = [np.mean([0.93 - 0.94 + 0.007 * index for index in indices]) for indices in [(0, 1), (2, 3), (4, 5), (6,)]]
    np.testing.assert_allclose(points, np.column_stack([left, cost]))
    assert [text.get_text() for text in ax.texts] == ["1", "2", "3", "4"]
    assert ax.lines[0].get_xdata().tolist() == [left[0]]


def test_time_bars():
    (ax,) = time_bars(sweep()).axes
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([2.0, 4.0, 6.0, 7.5] + [12.25] * 4)


def test_without_retrained_models():
    assert gap_map(blind()) is None
    (ax,) = front_plot(blind()).axes
    assert ax.get_xlabel() == "estimated gap (no retrained model)"
    points = np.asarray(ax.collections[0].get_offsets())
    assert points[:, 0] == pytest.approx([0.01845, 0.04305, 0.06765, 0.0861])
    assert points[:, 1] == pytest.approx([0.95 - 0.94 + 0.007 * index for index in (0.5, 2.5, 4.5, 6)])
    assert [bar.get_width() for bar in time_bars(blind()).axes[0].patches] == pytest.approx([2.0, 4.0, 6.0, 7.5])


def test_where_nothing_finished_there_are_no_figures():
    assert [figure(all_failed()) for figure in (gap_map, front_plot, time_bars)] == [None] * 3
    assert "2 of 2 jobs failed." in Page(render_sweep_html(all_failed())).one("body")["text"]


def test_the_page_has_the_figures_of_sweep_json(tmp_path):
    sweep().save(tmp_path / "sweep.json")
    jobs = json.loads((tmp_path / "sweep.json").read_text())["jobs"]
    source = write_sweep_html(sweep(), tmp_path / "sweep.html").read_text()
    rows = source.split('<tr data-job="')[1:]
    assert len(rows) == len(jobs)
    for row, job in zip(rows, jobs, strict=True):
        assert row.startswith(f'{job["folder"]}"')
        parsed = Page(f'<table><tr data-job="{row.partition("</tr>")[0]}</tr></table>')
        shown = {cell["data-figure"]: float(cell["data-value"]) for cell in parsed.elements if "data-figure" in cell}
        if job["report"] is None:
            assert shown == {}
            continue
        report = job["report"]
        assert shown == {
            "forget_accuracy": report["models"]["unlearned"]["forget_accuracy"],
            "test_accuracy": report["models"]["unlearned"]["test_accuracy"],
            "average_gap": report["average_gap"],
            "floor": report["floor"],
            "estimated_gap": report["estimated_gap"],
            "interference": report["interference"]["total"],
            "seconds": report["seconds"]["unlearn"],
        }


def test_nothing_is_fetched_and_nothing_runs():
    source = render_sweep_html(sweep())
    assert "<script" not in source
    assert HOSTILE in Page(source).one("body")["text"]
    for element in Page(source).elements:
        for attribute in ("src", "href", "xlink:href"):
            assert element.get(attribute, "#").startswith(("data:", "#"))
    ids = [element["id"] for element in Page(source).elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert all(element["aria-labelledby"] in ids for element in Page(source).elements if "aria-labelledby" in element)
    assert to_svg(gap_map(sweep())).count("<svg") == 1


def test_the_terminal_names_what_failed():
    stream = io.StringIO()
    print_sweep(sweep(), Console(file=stream, width=80))
    out = stream.getvalue()
    assert "8 jobs, 1 failed" in out
    assert "method=pgu_paper" in out
    assert f"{np.mean([abs(0.011 * i - 0.005) + abs(0.01 - 0.007 * i) for i in (0, 1)]) / 2:.3g}" in out
    assert "FAILED 7 (forget=samples, method=pgu_paper, seed=1" in out
    assert f"ValueError: {HOSTILE}" in " ".join(out.split())


@needs_chromium
def test_a_browser_shows_it_without_complaint(tmp_path):
    path = write_sweep_html(sweep(), tmp_path / "sweep.html")
    result = open_in_chromium(path, tmp_path / "profile", "--dump-dom")
    assert complaints(result) == []
    assert "<title>Unlearning sweep: sweeps/some</title>" in result.stdout
    assert result.stdout.count("<svg") == 3
