"""One table and plots of what the benchmarks of speed wrote.

Run: python -m benchmarks.table [FOLDER]. Reads FOLDER/*.json, `build/bench` unless told otherwise, and writes `ratios.svg` and `curves.svg`
beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt

from benchmarks.timing import Row, show

COLUMNS = {
    "benchmark": ("benchmark", ""),
    "case": ("case", ""),
    "ratio": ("baseline / ours", ".2f"),
    "fraction_of_peak": ("of peak", ".0%"),
}
CURVES = ("collect", "decompose", "step")


def read(folder: Path) -> list[Row]:
    """All rows, each with the name of its benchmark."""
    return [{"benchmark": path.stem, **row} for path in sorted(folder.glob("*.json")) for row in json.loads(path.read_text())]


def plot_ratios(rows: list[Row], path: Path) -> None:
    """Bars: how many times faster than the baseline."""
    names, ratios = [f"{row['benchmark']}: {row['case']}" for row in rows], [row["ratio"] for row in rows]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.25 * len(rows)), layout="constrained")
    axes.barh(names, ratios)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time of the baseline / ours")
    axes.invert_yaxis()
    figure.savefig(path)
    plt.close(figure)


def plot_curves(rows: list[Row], path: Path) -> None:
    """One panel for each size that is varied."""
    varied = list(dict.fromkeys(row["case"] for row in rows))
    figure, panels = plt.subplots(1, len(varied), figsize=(4 * len(varied), 3.5), layout="constrained", squeeze=False)
    for axes, name in zip(panels[0], varied, strict=True):
        points = [row for row in rows if row["case"] == name]
        for curve in CURVES:
            axes.plot([row["at"] for row in points], [row[curve] for row in points], "o-", label=curve)
        axes.set(xscale="log", yscale="log", xlabel=name, xticks=[row["at"] for row in points])
        axes.set_xticklabels([str(row["at"]) for row in points])
        axes.minorticks_off()
    panels[0][0].set_ylabel("cost / plain training")
    panels[0][0].legend()
    figure.savefig(path)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/bench"))
    folder = parser.parse_args(arguments).folder
    rows = read(folder)
    compared, curves = [row for row in rows if "ratio" in row], [row for row in rows if "at" in row]
    if not rows:
        raise SystemExit(f"{folder} has no rows: run `make bench` first, or a benchmark with --json {folder}/NAME.json")
    show(compared, COLUMNS)
    if compared:
        plot_ratios(compared, folder / "ratios.svg")
    if curves:
        plot_curves(curves, folder / "curves.svg")


if __name__ == "__main__":
    main()
