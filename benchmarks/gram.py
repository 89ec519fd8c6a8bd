"""Gram matrices of convolutions and linear layers against the plain form, in the same run: float64 product of all patch rows.

Run: python benchmarks/gram.py [--json FILE]. Prints for each case how many times faster ours is (median of the runs), and what it costs
    against
the layer's own forward pass.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import pgu_lightning.statistics  # noqa: F401  registers the fast form for convolutions
from pgu_lightning.statistics.layers import rows, second_moment

CASES = {
    "conv 3x3, 64 x 32 x 32": (nn.Conv2d(64, 64, 3, padding=1), (16, 64, 32, 32)),
    "conv 3x3, 128 x 16 x 16": (nn.Conv2d(128, 128, 3, padding=1), (32, 128, 16, 16)),
    "conv 3x3, 256 x 8 x 8": (nn.Conv2d(256, 256, 3, padding=1), (64, 256, 8, 8)),
    "conv 3x3 stride 2, 64 x 32 x 32": (nn.Conv2d(64, 128, 3, stride=2, padding=1), (16, 64, 32, 32)),
    "linear 1024, 512 rows": (nn.Linear(1024, 512), (512, 1024)),
}


def seconds(work: Callable[[], object], runs: int) -> float:
    """Median wall-clock time of ``work``, after one run that does not count."""
    work()
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


@torch.no_grad()
def measure(runs: int) -> list[dict[str, str | float]]:
    """One row a case."""
    results = []
    for case, (layer, shape) in CASES.items():
        x = torch.randn(shape)

        def plain(layer: nn.Module = layer, x: torch.Tensor = x) -> torch.Tensor:
            every = rows(layer, x).double()
            return every.mT @ every

        ours, baseline, forward = (
            seconds(work, runs)
            for work in (lambda: second_moment(layer, x), plain, lambda: layer(x))  # noqa: B023  called at once
        )
        error = float((second_moment(layer, x)[0] - plain()).norm() / plain().norm())
        results.append({"case": case, "ratio": baseline / ours, "forward_passes": ours / forward, "error": error})
    return results


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each case")
    arguments = parser.parse_args()
    results = measure(arguments.runs)
    table = Table("case", "times faster", "cost in forward passes", "relative error")
    for row in results:
        table.add_row(str(row["case"]), f"{row['ratio']:.1f}", f"{row['forward_passes']:.1f}", f"{row['error']:.0e}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
