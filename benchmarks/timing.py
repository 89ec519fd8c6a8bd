"""Timing in turns, and the machine's matrix-product peak: what the benchmarks of speed share."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

Row = dict[str, str | int | float]
"""Has ``case``; ``ratio``, the baseline's time over ours; ``fraction_of_peak`` where operations can be counted; what else is known."""

PEAK = "peak"
"""The name under which ``turns`` times the product that the peak is measured by."""

_SIZE = 1024  # of the product: 2 ms to 60 ms a float32 product on one core


class Turns:
    """Seconds of several works, each done once a turn: other load on the machine harms all of them alike.

    Args:
        works: By name. Each is done once before, which does not count.
        turns: How often each is done.
    """

    def __init__(self, works: Mapping[str, Callable[[], object]], turns: int) -> None:
        square = torch.randn(_SIZE, _SIZE)
        every = {PEAK: lambda: square @ square, **works}
        for work in every.values():
            work()
        self._seconds: dict[str, list[float]] = {name: [] for name in every}
        for _ in range(turns):
            for name, work in every.items():
                started = time.perf_counter()
                work()
                self._seconds[name].append(time.perf_counter() - started)

    def ratio(self, slow: str, fast: str) -> float:
        """Time of one work over another's: the median over the turns."""
        return statistics.median(one / other for one, other in zip(self._seconds[slow], self._seconds[fast], strict=True))

    def seconds(self, name: str) -> float:
        """Median time of a work."""
        return statistics.median(self._seconds[name])

    def fraction_of_peak(self, name: str, operations: float) -> float:
        """A work's floating-point operations a second over those of a large float32 product, the median over the turns."""
        peak = max(2 * _SIZE**3 / seconds for seconds in self._seconds[PEAK])
        return statistics.median(operations / seconds for seconds in self._seconds[name]) / peak


def show(rows: Sequence[Row], columns: Mapping[str, tuple[str, str]], path: Path | None) -> None:
    """Print rows as a table, and write them to a file.

    Args:
        rows: One a case.
        columns: Key to heading and number format, in order; a row that lacks the key has an empty cell.
        path: To write all rows to as JSON.
    """
    table = Table(*(heading for heading, _ in columns.values()))
    for row in rows:
        table.add_row(*(format(row[key], form) if key in row else "" for key, (_, form) in columns.items()))
    Console().print(table)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1))
