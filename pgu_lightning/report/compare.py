"""Several runs side by side: a row a run, in the terminal and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pgu_lightning.files import atomic_write
from pgu_lightning.records import Report
from pgu_lightning.report.html import TEMPLATES
from pgu_lightning.report.table import KINDS, METRIC_NAMES, class_name, number

Row = dict[str, str | float | None]


def comparison(reports: Mapping[str, Report]) -> list[Row]:
    """A row a run: what was asked, whether it is fulfilled, the unlearned model's figures, what it cost. One set of columns for all.

    Args:
        reports: By the run's name.
    """
    metrics = [metric for metric in METRIC_NAMES if any(metric in report.models.get("unlearned", {}) for report in reports.values())]
    return [_row(name, report, metrics) for name, report in reports.items()]


def _row(name: str, report: Report, metrics: list[str]) -> Row:
    request = report.request
    classes = ", ".join(class_name(report, label) for label in request.classes)
    return {
        "run": name,
        "to forget": f"{KINDS.get(request.kind, request.kind)}{': ' if classes else ''}{classes} ({request.size:,})",
        "method": report.method.name,
        "seed": None if report.seed is None else str(report.seed),
        "fulfilled": None if report.outcome is None else "yes" if report.outcome.fulfilled else "NO",
        **{METRIC_NAMES[metric]: report.models.get("unlearned", {}).get(metric) for metric in metrics},
        "average gap": report.average_gap,
        "gap of two retrained": report.floor,
        "interference": report.interference.total if report.layers else None,
        "seconds to unlearn": report.seconds.get("unlearn"),
    }


def compare_table(reports: Mapping[str, Report]) -> Table:
    """The same for a terminal, turned: a column a run, which leaves room for many figures."""
    rows = comparison(reports)
    table = Table()
    table.add_column("")
    for row in rows:
        table.add_column(Text(str(row["run"])), justify="right", overflow="fold")
    for title in list(rows[0])[1:]:
        table.add_row(title, *(Text(cell(row[title])) for row in rows))
    return table


def cell(value: str | float | None) -> str:
    """Text as it is, a figure as in a report."""
    return value if isinstance(value, str) else number(value)


def write_comparison(reports: Mapping[str, Report], path: Path) -> Path:
    """Write the comparison as one HTML page, without a script or a request to anywhere.

    Args:
        reports: By the run's name.
        path: Where.

    Returns:
        ``path``.
    """
    page = TEMPLATES.get_template("compare.html.jinja").render(rows=comparison(reports), cell=cell)
    return atomic_write(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
