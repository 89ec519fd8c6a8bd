"""Several requests, one after the other: the table and the figure of a report's ``stages``."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgu_lightning.records import Report, Stage
from pgu_lightning.report.plots import FORGET, OTHER, REFERENCE, legend, new_figure
from pgu_lightning.report.table import number

HEADINGS = ("#", "before", "forget", "retain", "test", "AUC", "gap", "earlier", "free", "done")
_METRICS = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia_auc")


def stage_rows(report: Report) -> list[tuple[str, ...]]:
    """One row a request under ``HEADINGS``.

    ``before`` is the accuracy on the forget set when the request began; metrics are the unlearned model's and, in brackets, the retrained
    one's; ``earlier`` is the largest accuracy difference to the retrained model over the forget sets of the requests before, and without a
    retrained model the largest rise since the request began.
    """
    return [(str(place), *_row(stage)) for place, stage in enumerate(report.stages, 1)]


def _row(stage: Stage) -> tuple[str, ...]:
    return (
        number(stage.models.get("original", {}).get("forget_accuracy")),
        *(_models(stage, metric) for metric in _METRICS),
        number(stage.average_gap),
        number(worst_of_earlier(stage)),
        f"{sum(stage.free.values()):,}" if stage.free else "-",
        "-" if stage.outcome is None else "yes" if stage.outcome.fulfilled else "NO",
    )


def _models(stage: Stage, metric: str) -> str:
    unlearned, retrained = (stage.models.get(name, {}).get(metric) for name in ("unlearned", "retrained"))
    return number(unlearned) + ("" if retrained is None else f"\n({number(retrained)})")


def worst_of_earlier(stage: Stage) -> float | None:
    """How far the accuracy on an earlier forget set is from where it should be, at most; None for a first request.

    Example:
        >>> from pgu_lightning.records import EarlierRequest, RequestRecord
        >>> asked = RequestRecord("samples", 9, "d")
        >>> accuracy = {"unlearned": {"forget_accuracy": 0.5}, "retrained": {"forget_accuracy": 0.75}}
        >>> worst_of_earlier(Stage(asked, {}, earlier=(EarlierRequest(asked, accuracy),)))
        0.25
    """
    gaps = []
    for request in stage.earlier:
        found = {name: metrics["forget_accuracy"] for name, metrics in request.models.items()}
        if "unlearned" in found and "retrained" in found:
            gaps.append(abs(found["unlearned"] - found["retrained"]))
        elif "unlearned" in found and "original" in found:
            gaps.append(max(found["unlearned"] - found["original"], 0.0))
    return max(gaps) if gaps else None


def print_stages(report: Report, console: Console | None = None) -> None:
    """Show in a terminal how one request after the other went.

    Args:
        report: With stages.
        console: Where; None is the standard output.
    """
    table = Table(
        title="Requests one after the other: unlearned (retrained)", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in stage_rows(report):
        table.add_row(*map(Text, row))
    (console or Console()).print(table)


def stages_figure(report: Report) -> Figure | None:
    """Accuracies of the unlearned model after each request, the retrained model's dashed, and the free directions below."""
    if not report.stages:
        return None
    figure, (top, bottom) = new_figure(5.2, 2)
    places = range(1, len(report.stages) + 1)
    for metric, colour, marker in (("forget_accuracy", FORGET, "o"), ("retain_accuracy", OTHER, "s"), ("test_accuracy", REFERENCE, "^")):
        for model, style in (("unlearned", "-"), ("retrained", "--")):
            values = [(place, stage.models.get(model, {}).get(metric)) for place, stage in zip(places, report.stages, strict=True)]
            known = [(place, value) for place, value in values if value is not None]
            if known:
                label = metric.removesuffix("_accuracy") if model == "unlearned" else None
                top.plot(*zip(*known, strict=True), color=colour, linestyle=style, marker=marker, markersize=4, label=label)
    top.set(ylabel="accuracy")
    legend(top)
    bottom.plot(places, [sum(stage.free.values()) for stage in report.stages], color=OTHER, marker="s", markersize=4)
    bottom.set(ylabel="free directions", xlabel="request")
    bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure
