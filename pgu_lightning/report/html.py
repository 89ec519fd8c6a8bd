"""One file that a data-protection officer and an engineer can read, without a network."""

from __future__ import annotations

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pgu_lightning.files import atomic_write
from pgu_lightning.records import Report
from pgu_lightning.report import plots, sweep_plots
from pgu_lightning.report.stages import HEADINGS, stage_rows, stages_figure
from pgu_lightning.report.sweep import FIGURES, SHORT_NAMES, Sweep, label, settings, varied
from pgu_lightning.report.table import KINDS, METRIC_MEANINGS, class_name, headline, in_order, number, percent, rows

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.filters |= {
    "number": number,
    "percent": percent,
    "in_order": in_order,
    "json": lambda value: json.dumps(value, indent=2, default=str, ensure_ascii=False),
}


def render_html(report: Report) -> str:
    """The report as one HTML page: style, figures and pictures inside, no script, no request to anywhere."""
    figures = {
        figure.__name__: figure(report)
        for figure in (
            stages_figure,
            plots.accuracy_curve,
            plots.loss_histograms,
            plots.interference_bars,
            plots.interference_measured,
            plots.rank_bars,
        )
    }
    return TEMPLATES.get_template("report.html.jinja").render(
        report=report,
        headline=headline(report),
        kind=KINDS.get(report.request.kind, report.request.kind),
        rows=rows(report),
        stage_headings=HEADINGS,
        stage_rows=stage_rows(report),
        models=in_order(report.models),
        meanings=METRIC_MEANINGS,
        contents=_contents(report),
        named=any(sample.id is not None for samples in report.worst.values() for sample in samples),
        label_name=lambda label: class_name(report, label),
        figures={name: plots.to_svg(figure) for name, figure in figures.items() if figure is not None},
    )


def _contents(report: Report) -> list[tuple[str, str]]:
    """Where each section is and what it is called, in the order of the page, of those that there are."""
    sections = {
        ("short", "In short"): {"original", "unlearned"} <= report.models.keys(),
        ("asked", "What was asked"): True,
        ("done", "What was done"): True,
        ("measured", "What was measured"): True,
        ("stages", "The requests one after the other"): report.stages,
        ("earlier", "What was forgotten before"): report.earlier,
        ("claims", "What is not claimed"): True,
        ("worst", "Samples to look at first"): any(report.worst.values()),
        ("how", "How it went"): report.curve or report.histograms or report.layers or report.frozen,
        ("gallery", "Some of the forgotten samples"): report.examples,
        ("run", "The run"): True,
    }
    return [section for section, there in sections.items() if there]


def write_html(report: Report, path: str | Path) -> Path:
    """Write ``report.html`` atomically.

    Args:
        report: What to write.
        path: Where.

    Returns:
        ``path``.
    """
    page = render_html(report)
    return atomic_write(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))


def render_sweep_html(sweep: Sweep) -> str:
    """The jobs of a sweep as one HTML page, with nothing fetched either."""
    figures = {figure.__name__: figure(sweep) for figure in (sweep_plots.gap_map, sweep_plots.front_plot, sweep_plots.time_bars)}
    return TEMPLATES.get_template("sweep.html.jinja").render(
        sweep=sweep,
        settings=settings(sweep),
        keys=varied(sweep),
        label=label,
        figures_of={name: value for name, value in FIGURES.items() if any(setting.values(value) for setting in settings(sweep))},
        names=SHORT_NAMES,
        figures={name: plots.to_svg(figure) for name, figure in figures.items() if figure is not None},
    )


def write_sweep_html(sweep: Sweep, path: str | Path) -> Path:
    """Write ``sweep.html`` atomically.

    Args:
        sweep: What to write.
        path: Where.

    Returns:
        ``path``.
    """
    page = render_sweep_html(sweep)
    return atomic_write(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
