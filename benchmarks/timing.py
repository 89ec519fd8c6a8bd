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

_SIZE = 1024  # of the product that the peak is measured by: 20 to 40 ms in float32 on one core


class Turns:
    """Processor seconds of several works, each done once a turn: other work on the machine hardly changes them, and then all alike.

    Args:
        works: By name. Each is done once before, which does not count.
        turns: How often each is done.
    """

    def __init__(self, works: Mapping[str, Callable[[], object]], turns: int) -> None:
        square = torch.randn(_SIZE, _SIZE)
        every = {"peak": lambda: square @ square, **works}
        for work in every.values():
            work()
        self._seconds: dict[str, list[float]] = {name: [] for name in every}
        for _ in range(turns):
            for name, work in every.items():
                started = time.process_time()
                work()
                self._seconds[name].append(time.process_time() - started)

    def ratio(self, over: str, under: str, *more: str) -> float:
        """Time of one work over that of another, or of several together: the median over the turns."""
        unders = [sum(parts) for parts in zip(*(self._seconds[name] for name in (under, *more)), strict=True)]
        return statistics.median(one / other for one, other in zip(self._seconds[over], unders, strict=True))

    def seconds(self, name: str) -> float:
        """Median time of a work."""
        return statistics.median(self._seconds[name])

    def fraction_of_peak(self, name: str, operations: float) -> float:
        """A work's floating-point operations a second over the most that a large float32 product reached."""
        peak = 2 * _SIZE**3 / min(self._seconds["peak"])
        return statistics.median(operations / seconds for seconds in self._seconds[name]) / peak


def show(rows: Sequence[Row], columns: Mapping[str, tuple[str, str]], path: Path | None = None) -> None:
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
