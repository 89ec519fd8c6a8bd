"""The dataclasses that are ``sweep.json``, and what its jobs say together: settings over their seeds, the front, a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgu_lightning.files import atomic_write
from pgu_lightning.records import Report
from pgu_lightning.report.table import number, rows

SCHEMA = 1

Value = Callable[[Report], float | None]


@dataclass(frozen=True)
class SweepJob:
    """One run of a sweep.

    Attributes:
        folder: Where its files are, below the sweep's folder.
        overrides: What makes it this job, by key.
        error: Why it failed; None if it did not.
        report: Its main figures; None if it failed.
    """

    folder: str
    overrides: Mapping[str, str]
    error: str | None = None
    report: Report | None = None

    def save(self, path: Path) -> None:
        """Write it atomically."""
        _save(_JOB, self, path)

    @classmethod
    def load(cls, path: Path) -> SweepJob:
        """Read what was saved."""
        return _JOB.validate_json(path.read_bytes())

    def replace(self, **changes: Any) -> SweepJob:
        """A copy with other values."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True)
class Sweep:
    """The jobs of one ``--multirun``; its JSON is a stable interface, as a report's.

    Attributes:
        name: The end of its folder's path.
        jobs: In the order in which they were started.
        schema: Version of this interface.
    """

    name: str
    jobs: tuple[SweepJob, ...]
    schema: int = SCHEMA

    def save(self, path: str | Path) -> None:
        """Write ``sweep.json`` atomically."""
        _save(_SWEEP, self, path)

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """Read a ``sweep.json``.

        Raises:
            ValueError: If the file is not a sweep of this schema.
        """
        try:
            sweep = _SWEEP.validate_json(Path(path).read_bytes())
        except ValidationError as error:
            raise ValueError(f"{path} is not a sweep of pgu-lightning (schema {SCHEMA}): {error}") from error
        if sweep.schema != SCHEMA:
            raise ValueError(f"{path} has sweep schema {sweep.schema}, this version reads {SCHEMA}.")
        return sweep

    @property
    def failed(self) -> tuple[SweepJob, ...]:
        """The jobs that failed."""
        return tuple(job for job in self.jobs if job.error is not None)


_JOB, _SWEEP = TypeAdapter(SweepJob), TypeAdapter(Sweep)


def _save(adapter: TypeAdapter[Any], content: Any, path: str | Path) -> None:
    text = adapter.dump_json(content, indent=1)
    atomic_write(path, lambda temporary: temporary.write_bytes(text))


def without_details(report: Report) -> Report:
    """Its request, method, outcome and figures; curves, pictures, layers and the configuration stay in the job's own report."""
    return report.replace(
        preflight=None, layers={}, frozen={}, curve=(), histograms={}, examples=(), class_names=(), environment={}, config={}
    )


@dataclass(frozen=True)
class Setting:
    """The finished jobs that differ in nothing but their seed."""

    name: str
    reports: tuple[Report, ...]

    def values(self, of: Value) -> tuple[float, ...]:
        """One figure of every job that has it."""
        return tuple(value for report in self.reports if (value := of(report)) is not None)

    def mean(self, of: Value) -> float | None:
        """Mean over the jobs; None where none has the figure."""
        values = self.values(of)
        return sum(values) / len(values) if values else None

    @property
    def fulfilled(self) -> str:
        """How many of the requests with a stop rule were fulfilled."""
        asked = [report.outcome.fulfilled for report in self.reports if report.outcome is not None]
        return f"{sum(asked)}/{len(asked)}" if asked else "-"


def varied(sweep: Sweep) -> list[str]:
    """The keys that are not the same in all jobs.

    Example:
        >>> varied(Sweep("a", tuple(SweepJob(seed, {"method": "pgu", "seed": seed}) for seed in "01")))
        ['seed']
    """
    keys = dict.fromkeys(key for job in sweep.jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in sweep.jobs}) > 1]


def label(job: SweepJob, keys: Sequence[str]) -> str:
    """What makes it this job among others, in these keys, each by its last part where that is enough."""
    last = [key.rpartition(".")[2] for key in keys]
    names = {key: short if last.count(short) == 1 else key for key, short in zip(keys, last, strict=True)}
    return ", ".join(f"{names[key]}={job.overrides[key]}" for key in keys if key in job.overrides) or "all"


def settings(sweep: Sweep) -> list[Setting]:
    """The finished jobs, those that differ only in ``seed`` together, in the order of the first."""
    keys = [key for key in varied(sweep) if key != "seed"]
    groups: dict[str, list[Report]] = {}
    for job in sweep.jobs:
        if job.report is not None:
            groups.setdefault(label(job, keys), []).append(job.report)
    return [Setting(name, tuple(reports)) for name, reports in groups.items()]


def gaps(report: Report) -> dict[str, float]:
    """|unlearned - retrained| by metric."""
    return {row.metric: row.gap for row in rows(report) if row.gap is not None}


def metric(model: str, name: str) -> Value:
    """One metric of one model."""
    return lambda report: report.models.get(model, {}).get(name)


def seconds(stage: str) -> Value:
    """Wall-clock seconds of one stage."""
    return lambda report: report.seconds.get(stage)


def gap_table(sweep: Sweep) -> tuple[list[str], list[list[float | None]]]:
    """Mean |unlearned - retrained|, a row a setting.

    Returns:
        The metrics, last ``average_gap``, and a value for each in each row; no metrics where no job has a retrained model.
    """
    found = settings(sweep)
    names = list(dict.fromkeys(name for setting in found for report in setting.reports for name in gaps(report)))
    of: list[Value] = [lambda report, name=name: gaps(report).get(name) for name in names]  # type: ignore[misc]
    of += [lambda report: report.average_gap] if names else []
    return [*names, "average_gap"] if names else [], [[setting.mean(value) for value in of] for setting in found]


@dataclass(frozen=True)
class Axis:
    """A figure that is the better the lower, with its name in words."""

    name: str
    value: Value


def forgetting_and_retention(sweep: Sweep) -> tuple[Axis, Axis]:
    """What the front is about: distances from the retrained model where every job has one, else what is known without."""
    reports = [report for setting in settings(sweep) for report in setting.reports]
    if all({"forget_accuracy", "test_accuracy"} <= gaps(report).keys() for report in reports):
        return (
            Axis("distance of the forget accuracy from the retrained model's", lambda report: gaps(report)["forget_accuracy"]),
            Axis("test accuracy below the retrained model's", lambda report: _below(report, "retrained")),
        )
    return (
        Axis("estimated gap (no retrained model)", lambda report: report.estimated_gap),
        Axis("test accuracy below the original model's", lambda report: _below(report, "original")),
    )


def _below(report: Report, model: str) -> float | None:
    other, unlearned = (report.models.get(name, {}).get("test_accuracy") for name in (model, "unlearned"))
    return None if other is None or unlearned is None else other - unlearned


FIGURES: Mapping[str, Value] = {
    "forget_accuracy": metric("unlearned", "forget_accuracy"),
    "test_accuracy": metric("unlearned", "test_accuracy"),
    "average_gap": lambda report: report.average_gap,
    "floor": lambda report: report.floor,
    "estimated_gap": lambda report: report.estimated_gap,
    "interference": lambda report: report.interference.total,
    "seconds": seconds("unlearn"),
}
"""What the tables show of a job, by name."""

SHORT_NAMES = {
    "forget_accuracy": "forget accuracy",
    "test_accuracy": "test accuracy",
    "average_gap": "gap",
    "floor": "gap of two retrained models",
    "estimated_gap": "estimate",
    "interference": "interference",
    "seconds": "seconds",
}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats in both coordinates, both the lower the better; by the first coordinate.

    Example:
        >>> front([(0.0, 3.0), (1.0, 1.0), (2.0, 2.0), (1.0, 1.5)])
        [0, 1]
    """
    best: list[int] = []
    for place in sorted(range(len(points)), key=lambda index: points[index]):
        if not best or points[place][1] < points[best[-1]][1]:
            best.append(place)
    return best


def sweep_table(sweep: Sweep) -> Table:
    """One row a setting: means over its seeds."""
    table = Table(min_width=72, caption="Means over the jobs that differ only in their seed.", caption_justify="left")
    table.add_column("setting", overflow="fold", min_width=20)
    shown = ("forget_accuracy", "test_accuracy", "average_gap", "estimated_gap", "seconds")
    for heading in (*(SHORT_NAMES[name] for name in shown), "met"):
        table.add_column(heading.removesuffix(" accuracy"), justify="right")
    for setting in settings(sweep):
        cells = [number(setting.mean(FIGURES[name])) for name in shown]
        table.add_row(Text(setting.name), *cells, setting.fulfilled)
    return table


def print_sweep(sweep: Sweep, console: Console | None = None) -> None:
    """Show the settings in a terminal, then the jobs that failed.

    Args:
        sweep: What to show.
        console: Where; None is the standard output.
    """
    console = console or Console()
    console.print(Text(f"Sweep {sweep.name}: {len(sweep.jobs)} jobs, {len(sweep.failed)} failed", style="bold"))
    if len(sweep.failed) < len(sweep.jobs):
        console.print(sweep_table(sweep))
    for job in sweep.failed:
        console.print(Text(f"FAILED {job.folder} ({label(job, varied(sweep))}): {job.error}", style="bold red"))
