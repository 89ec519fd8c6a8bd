"""How collecting, decomposing and a step cost grow: with batch, width, depth and samples, in units of plain training.

Run: python -m benchmarks.curves [--json FILE] [--turns 5]. A perceptron of equally wide layers, of which one size is varied at a time.
Works are done in turns, and each figure is the median of the turns' ratios.

    collect     one pass for the statistics over one plain training epoch
    decompose   making the filters, once a request, over one plain training epoch
    step        an unlearning step with trust_radius=None over a plain step
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.decompose import ours
from benchmarks.networks import CLASSES
from benchmarks.step import Filters, plain_step
from benchmarks.timing import Row, Turns, show
from pgu_lightning import collect
from pgu_lightning.projection import Soft

COLUMNS = {
    "case": ("varied", ""),
    "at": ("at", ""),
    "collect": ("collect / epoch", ".2f"),
    "decompose": ("decompose / epoch", ".2f"),
    "step": ("step / plain step", ".2f"),
}


@dataclass(frozen=True)
class Size:
    """Of a perceptron and its data."""

    batch: int = 128
    width: int = 512
    depth: int = 3
    samples: int = 4096


CURVES: dict[str, Sequence[int]] = {
    "batch": (32, 64, 128, 256, 512),
    "width": (128, 256, 512, 1024),
    "depth": (1, 2, 4, 8),
    "samples": (1024, 2048, 4096, 8192),
}


def measure(varied: str, at: int, turns: int, size: Size) -> Row:
    """One point of a curve."""
    size = replace(size, **{varied: at})
    torch.manual_seed(0)
    hidden = [part for _ in range(size.depth) for part in (nn.Linear(size.width, size.width), nn.ReLU())]
    network = nn.Sequential(*hidden, nn.Linear(size.width, CLASSES))
    data = TensorDataset(torch.randn(size.samples, size.width), torch.arange(size.samples) % CLASSES)
    loader, batch = DataLoader(data, size.batch), data[: size.batch]
    training = plain_step(network, batch)

    def epoch() -> None:
        for _ in loader:  # the same batch again, and the time to load another
            training()

    space = collect(network, loader)
    works = {
        "epoch": epoch,
        "collect": lambda: collect(network, loader),
        "decompose": lambda: [ours(gram, Soft()) for gram in space.grams.values()],
        "plain": training,
        "step": Filters(network, Soft()).step(network, batch, False, None),
    }
    found = Turns(works, turns)
    costs = {name: found.ratio(name, "epoch") for name in ("collect", "decompose")}
    return {"case": varied, "at": at, **costs, "step": found.ratio("step", "plain")}


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--turns", type=int, default=5, help="turns that count")
    options = parser.parse_args(arguments)
    rows = [measure(varied, at, options.turns, Size()) for varied, points in CURVES.items() for at in points]
    show(rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
