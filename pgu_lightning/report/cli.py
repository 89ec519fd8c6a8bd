"""The command ``pgu-lightning-report``: from report.json to pages and tables, without training anything."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pgu_lightning.records import Report
from pgu_lightning.report.compare import compare_table, write_comparison
from pgu_lightning.report.html import write_html
from pgu_lightning.report.table import print_report


def main(arguments: Sequence[str] | None = None) -> None:
    """Rebuild the page of one run, or compare several.

    Args:
        arguments: As typed; None takes those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="pgu-lightning-report",
        description="Read report.json of finished runs. One run: write its report.html again and print its table. Several: print them side "
        "by side and write one page that compares them.",
        epilog="Example: pgu-lightning-report outputs/sweeps/2026-11-24/14-01-02/*/",
    )
    parser.add_argument("runs", metavar="RUN_DIR", nargs="+", type=Path, help="folder of a run, or its report.json")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        help="the page; by default report.html in the run's folder, or ./comparison.html for several",
    )
    chosen = parser.parse_args(arguments)
    reports = _load(chosen.runs, parser)
    if len(reports) == 1:
        ((folder, report),) = reports.items()
        print_report(report)
        page = write_html(report, chosen.output or folder / "report.html")
    else:
        named = {folder.as_posix(): report for folder, report in reports.items()}
        Console().print(compare_table(named))
        page = write_comparison(named, chosen.output or Path("comparison.html"))
    print(page)


def _load(runs: Sequence[Path], parser: argparse.ArgumentParser) -> dict[Path, Report]:
    """Each run's folder and report; all that is wrong is said at once, before anything is written."""
    reports, problems = {}, []
    for run in runs:
        file = run if run.suffix == ".json" else run / "report.json"
        try:
            reports[file.parent] = Report.load(file)
        except OSError:
            inner = sorted(run.glob("*/report.json")) if run.is_dir() else []
            hint = f"; it holds {len(inner)} runs, give {run}/*/" if inner else ": give the folder of a finished run"
            problems.append(f"{run} has no report.json{hint}")
        except ValueError as error:
            problems.append(str(error))
    if problems:
        parser.error("\n".join(problems))
    return reports


if __name__ == "__main__":
    main()
