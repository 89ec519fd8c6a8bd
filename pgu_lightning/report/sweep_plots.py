"""Figures of a sweep, one row or point a setting. Each function returns None where the sweep has no such data."""

from __future__ import annotations

import math

from matplotlib import colormaps
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from pgu_lightning.report.plots import FORGET, INK, OTHER, REFERENCE, bar_rows, legend, logarithmic, new_figure
from pgu_lightning.report.sweep import Setting, Sweep, forgetting_and_retention, front, gap_table, seconds, settings
from pgu_lightning.report.table import number


def gap_map(sweep: Sweep) -> Figure | None:
    """Heat map of |unlearned - retrained|: a row a setting, a column a metric and one for their mean."""
    columns, cells = gap_table(sweep)
    if not columns:
        return None
    figure, ax = bar_rows(_numbered(settings(sweep)))
    ax.grid(visible=False)
    highest = max(value for row in cells for value in row if value is not None) or 1.0
    shown = [[math.nan if value is None else value for value in row] for row in cells]
    colours, scale = colormaps["viridis"], PowerNorm(0.5, 0, highest)  # a root, so that one far setting leaves the others apart
    ax.imshow(shown, cmap=colours, norm=scale, aspect="auto", interpolation="nearest")
    for y, row in enumerate(cells):
        for x, value in enumerate(row):
            if value is not None:
                dark = sum(colours(scale(value))[:3]) < 1.5
                ax.text(x, y, number(value), ha="center", va="center", fontsize=9, color="white" if dark else "black")
    ax.set_xticks(range(len(columns)), ["\n".join(name.rsplit("_", 1)).replace("_", " ") for name in columns], parse_math=False)
    return figure


def front_plot(sweep: Sweep) -> Figure | None:
    """Forgetting against retention, a point a setting; the line joins those that no other beats in both."""
    x, y = forgetting_and_retention(sweep)
    points = [(place, setting.mean(x.value), setting.mean(y.value)) for place, setting in enumerate(settings(sweep), 1)]
    known = [(place, left, cost) for place, left, cost in points if left is not None and cost is not None]
    if not known:
        return None
    figure, (ax,) = new_figure(4.2, 1)
    ax.scatter([left for _, left, _ in known], [cost for *_, cost in known], color=OTHER, s=36, label="setting", zorder=3)
    best = [known[index][1:] for index in front([(left, cost) for _, left, cost in known])]
    ax.step(*zip(*best, strict=True), where="post", color=FORGET, linewidth=1.5, marker="o", markersize=8, mfc="none", label="not beaten")
    for place, left, cost in known:
        ax.annotate(str(place), (left, cost), (5, 4), textcoords="offset points", color=INK, fontsize=9)
    ax.set(xlabel=x.name, ylabel=y.name)
    legend(ax)
    return figure


def time_bars(sweep: Sweep) -> Figure | None:
    """Mean seconds of unlearning, and of training again without the data."""
    found = settings(sweep)
    stages = {"unlearn": OTHER, "retrain": REFERENCE}
    times = {stage: [setting.mean(seconds(stage)) for setting in found] for stage in stages}
    every = [time for values in times.values() for time in values if time]
    if not every:
        return None
    figure, ax = bar_rows(_numbered(found))
    for place, (stage, colour) in enumerate(stages.items()):
        known = [(row + 0.32 * (place - 0.5), time) for row, time in enumerate(times[stage]) if time]
        if known:
            ax.barh([row for row, _ in known], [time for _, time in known], height=0.3, color=colour, label=stage)
    ax.set_xlabel("seconds")
    logarithmic(ax, "x", every)
    legend(ax)
    return figure


def _numbered(found: list[Setting]) -> list[str]:
    return [f"{place}  {setting.name}" for place, setting in enumerate(found, 1)]
