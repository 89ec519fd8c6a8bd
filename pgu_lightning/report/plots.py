"""Figures of a report, without pyplot's global state. Each function returns None where the report has no such data."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Sequence
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from pgu_lightning.files import digest
from pgu_lightning.records import Histogram, Report
from pgu_lightning.report.table import in_order, number

INK = "#767677"  # text and axes: readable on white and on black; to_svg turns it into the colour of the text around
FORGET, OTHER, REFERENCE = "#d9632a", "#2f86d6", "#1f9e77"  # 3:1 and more on white and on black
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_WIDTH = 7.2  # inches


def accuracy_curve(report: Report) -> Figure | None:
    """Accuracy and loss of forget and validation data over the steps, the retrained model's accuracy dashed."""
    points = report.curve
    if not points:
        return None
    figure, (top, bottom) = new_figure(5.2, 2)
    for ax, quantity in ((top, "accuracy"), (bottom, "loss")):
        for part, colour, marker in (("forget", FORGET, "o"), ("validation", OTHER, "s")):
            values = [(point.step, getattr(point, f"{part}_{quantity}")) for point in points]
            known = [(step, value) for step, value in values if value is not None]
            if known:
                ax.plot(*zip(*known, strict=True), color=colour, label=part, marker=marker, markersize=4, linewidth=1.8)
    level = report.models.get("retrained", {}).get("forget_accuracy")
    if level is not None:
        top.axhline(level, color=REFERENCE, linestyle="--", linewidth=1.5, label="forget, retrained model")
    top.set(ylabel="accuracy", ylim=(-0.03, 1.03))
    bottom.set(ylabel="loss", xlabel="unlearning steps")
    logarithmic(bottom, "y", [value for point in points for value in (point.forget_loss, point.validation_loss) if value is not None])
    legend(top)
    return figure


def loss_histograms(report: Report) -> Figure | None:
    """Per-example loss of forget against test samples, one panel a model on common axes."""
    panels = in_order(model for model, sets in report.histograms.items() if sets)
    if not panels:
        return None
    figure, axes = new_figure(0.7 + 1.5 * len(panels), len(panels), sharey=True)
    for ax, model in zip(axes, panels, strict=True):
        for name, histogram in report.histograms[model].items():
            _stairs(ax, name, histogram)
        ax.set_ylabel("share")
        ax.set_title(model, loc="left", fontsize=10, color=INK, parse_math=False)
    axes[-1].set_xlabel("loss of a sample")
    logarithmic(axes[-1], "x", [edge for sets in report.histograms.values() for histogram in sets.values() for edge in histogram.edges])
    legend(axes[0])
    return figure


def interference_bars(report: Report) -> Figure | None:
    """Relative squared change of each layer's response to the retained data, on a log scale."""
    values = report.interference.layers
    if not values:
        return None
    figure, ax = bar_rows(values)
    ax.barh(range(len(values)), list(values.values()), height=0.6, color=OTHER)
    ax.set_xlabel("interference")
    logarithmic(ax, "x", [scaled for value in values.values() if value > 0 for scaled in (value / 2, value * 10)])  # room for the figures
    for place, value in enumerate(values.values()):
        ax.annotate(
            number(value), (max(value, ax.get_xlim()[0]), place), (4, 0), textcoords="offset points", va="center", color=INK, fontsize=9
        )
    return figure


def interference_measured(report: Report) -> Figure | None:
    """Each layer's interference from the statistics, beside what the retained data itself says, on a log scale."""
    measured, computed = report.interference.measured, report.interference.layers
    if not measured:
        return None
    figure, ax = bar_rows(measured)
    rows = {
        "from the statistics": [computed.get(name, 0.0) for name in measured],
        "measured": [layer.own for layer in measured.values()],
        "measured, with changed inputs": [layer.with_inputs for layer in measured.values()],
    }
    for (label, values), marker, size, colour in zip(rows.items(), "ox^", (9, 6, 5), (OTHER, FORGET, REFERENCE), strict=True):
        filled = "none" if marker == "o" else colour
        ax.plot(values, range(len(values)), marker, label=label, markersize=size, color=colour, markerfacecolor=filled)
    ax.set_xlabel("relative squared change of the response to the retained data")
    logarithmic(ax, "x", [scaled for values in rows.values() for value in values if value > 0 for scaled in (value / 2, value * 2)])
    legend(ax)
    return figure


def rank_bars(report: Report) -> Figure | None:
    """Protected and free directions of each layer as shares of both."""
    layers = report.layers
    if not layers:
        return None
    figure, ax = bar_rows(layers)
    protected = [layer.rank / max(layer.rank + layer.free, 1) for layer in layers.values()]
    free = [layer.free / max(layer.rank + layer.free, 1) for layer in layers.values()]
    ax.barh(range(len(layers)), protected, height=0.6, color=OTHER, label="protected")
    drawn = ax.barh(range(len(layers)), free, left=protected, height=0.6, color=FORGET, label="free")
    ax.bar_label(drawn, [f"{layer.rank:,} + {layer.free:,}" for layer in layers.values()], padding=3, color=INK, fontsize=9)
    ax.set(xlabel="share of the directions", xlim=(0, 1.2), xticks=(0, 0.25, 0.5, 0.75, 1))
    legend(ax)
    return figure


def to_svg(figure: Figure) -> str:
    """One ``<svg>`` element to put into a page: text stays text in the page's colour, nothing is fetched, no background, ids of its own."""
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pgu-lightning"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    root, prefix = ElementTree.fromstring(buffer.getvalue()), digest([buffer.getvalue()])[:8]
    for element in root.iter():
        for style in element.findall(f"{{{_SVG}}}style"):  # it would hold for the whole page
            element.remove(style)
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        element.attrib = {key.removeprefix(f"{{{_XLINK}}}"): _with_prefix(key, value, prefix) for key, value in element.attrib.items()}
    for size in ("width", "height"):
        del root.attrib[size]
    root.attrib |= {"xmlns": _SVG, "style": "stroke-linejoin: round; stroke-linecap: butt"}
    return ElementTree.tostring(root, encoding="unicode").replace(INK, "currentColor")


def _with_prefix(key: str, value: str, prefix: str) -> str:
    """Ids and what refers to them, so that several pictures can stand in one page."""
    if key == "id":
        return f"{prefix}-{value}"
    return value.replace("#", f"#{prefix}-", 1) if value.startswith(("#", "url(#")) else value


def new_figure(height: float, rows: int, sharey: bool = False) -> tuple[Figure, Sequence[Axes]]:
    """A figure of ``rows`` panels over one axis, ``height`` inches high."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(rows, squeeze=False, sharex=True, sharey=sharey)[:, 0].tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(INK)
        ax.tick_params(which="both", color=INK, labelcolor=INK, labelsize=9)
        ax.grid(color=INK, alpha=0.2, linewidth=0.6)
        ax.set_axisbelow(True)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set(color=INK, fontsize=10)
    return figure, axes


def bar_rows(names: Collection[str]) -> tuple[Figure, Axes]:
    """A row a name, the first on top."""
    figure, (ax,) = new_figure(0.9 + 0.28 * len(names), 1)
    ax.set_yticks(range(len(names)), list(names), parse_math=False)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    return figure, ax


def _stairs(ax: Axes, name: str, histogram: Histogram) -> None:
    total, colour = sum(histogram.counts), FORGET if name == "forget" else OTHER
    shares = [count / max(total, 1) for count in histogram.counts]
    ax.stairs(shares, histogram.edges, color=colour, fill=True, alpha=0.25)
    ax.stairs(shares, histogram.edges, color=colour, linewidth=1.5, label=f"{name}, {total:,} samples")


def logarithmic(ax: Axes, which: str, values: Collection[float]) -> None:
    """A log scale over whole decades, if all values are positive."""
    if not values or min(values) <= 0:
        return
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    ax.set(**{f"{which}scale": "log", f"{which}lim": (10.0**low, 10.0 ** max(high, low + 1))})
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(ax: Axes) -> None:
    """A legend above the lower right corner, names as they are."""
    found = ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, labelcolor=INK, fontsize=9)
    for text in found.get_texts():
        text.set_parse_math(False)
