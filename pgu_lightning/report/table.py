"""The comparison in words and figures, and the table that a terminal shows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgu_lightning.records import Preflight, Report

METRIC_NAMES = {
    "forget_accuracy": "accuracy on the forget set",
    "retain_accuracy": "accuracy on the retained data",
    "test_accuracy": "accuracy on test data",
    "forget_test_accuracy": "accuracy on test data of the forgotten class",
    "validation_accuracy": "accuracy on validation data",
    "mia_auc": "membership AUC",
    "corrected_accuracy": "accuracy on corrected labels",
    "trained_attack": "called members by a trained attack",
}
METRIC_MEANINGS = {
    "forget_accuracy": "Share of the samples to forget that get the label they had in training.",
    "retain_accuracy": "Share of the other training samples that get the right label.",
    "test_accuracy": "Share of the test samples that should still work and get the right label.",
    "forget_test_accuracy": "Share of the test samples of the forgotten classes that still get their label.",
    "validation_accuracy": "Share of the validation samples that should still work and get the right label.",
    "mia_auc": "How well the loss tells the samples to forget from samples that the model never saw: 0.5 is not at all, 1 is perfectly.",
    "corrected_accuracy": "Share of the samples to forget that get the right label, which was given with the request.",
    "trained_attack": "Share of the samples to forget that trees, trained on the answers of other models, take for training data.",
}
MODELS = ("original", "unlearned", "retrained")
KINDS = {"class": "whole classes", "samples": "single samples", "poison": "samples with wrong labels"}


@dataclass(frozen=True)
class Row:
    """One metric of all models.

    Attributes:
        metric: Its name in the report.
        title: The same in plain words.
        values: By model; a model that lacks it is left out.
        gap: |unlearned - retrained|; None if one of them lacks it.
        samples: Number of samples it was measured on; None where that is not known or not one number.
    """

    metric: str
    title: str
    values: Mapping[str, float]
    gap: float | None
    samples: int | None


def in_order(models: Iterable[str]) -> list[str]:
    """Original, unlearned, retrained, then any other.

    Example:
        >>> in_order(["other", "retrained", "original"])
        ['original', 'retrained', 'other']
    """
    return _sorted(models, MODELS)


def rows(report: Report) -> list[Row]:
    """One row a metric: those of ``METRIC_NAMES`` in that order, then any other."""
    beside = {"corrected_accuracy": report.corrected_accuracy, "trained_attack": report.trained_attack}
    measured = {
        model: {**report.models[model], **{name: shares[model] for name, shares in beside.items() if model in shares}}
        for model in in_order(report.models)
    }
    result = []
    for metric in _sorted((metric for metrics in measured.values() for metric in metrics), tuple(METRIC_NAMES)):
        values = {model: metrics[metric] for model, metrics in measured.items() if metric in metrics}
        gap = abs(values["unlearned"] - values["retrained"]) if {"unlearned", "retrained"} <= values.keys() else None
        samples = report.request.size if metric == "corrected_accuracy" else report.sizes.get(metric.removesuffix("_accuracy"))
        result.append(Row(metric, METRIC_NAMES.get(metric, metric.replace("_", " ")), values, gap, samples))
    return result


def number(value: float | None) -> str:
    """Three decimals where that says something, else three digits; a dash for None.

    Example:
        >>> [number(value) for value in (0.98765, 0.0, 0.00123456, 1.5e-7, 12.3456, None)]
        ['0.988', '0.000', '0.00123', '1.5e-07', '12.346', '-']
    """
    if value is None:
        return "-"
    return f"{value:.3g}" if 0 < abs(value) < 0.01 else f"{value:.3f}"


def percent(value: float) -> str:
    """A share in percent, one decimal; the ends are exact.

    Example:
        >>> [percent(value) for value in (0.0, 0.0001, 0.4567, 0.9999, 1.0)]
        ['0%', 'under 0.1%', '45.7%', 'over 99.9%', '100%']
    """
    if value in (0, 1):
        return f"{value:.0%}"
    if value < 0.001:
        return "under 0.1%"
    return "over 99.9%" if value > 0.999 else f"{value:.1%}"


def class_name(report: Report, label: int) -> str:
    """The label's name with the label, or the label where the data has no names.

    Example:
        >>> from pgu_lightning.records import MethodRecord, RequestRecord
        >>> report = Report(RequestRecord("class", 9, "d", (1,)), MethodRecord("pgu", False), {}, class_names=("cat", "dog"))
        >>> class_name(report, 1), class_name(report, 7)
        ('dog (1)', '7')
    """
    if 0 <= label < len(report.class_names) and report.class_names[label] != str(label):
        return f"{report.class_names[label]} ({label})"
    return str(label)


def headline(report: Report) -> str:
    """What was asked, in one line."""
    request = report.request
    classes = ", ".join(class_name(report, label) for label in request.classes)
    what = KINDS.get(request.kind, request.kind) + (f": {classes}" if classes else "")
    return f"Forget {what} ({request.size:,} training samples), by {report.method.name}"


def comparison_table(report: Report) -> Table:
    """The models side by side, one row a metric, and below it what the run cost.

    Args:
        report: Retrained model, outcome and floor may be missing; metrics that are not in ``METRIC_NAMES`` are shown under their own name.
    """
    models = in_order(report.models)
    with_gap = "unlearned" in models and "retrained" in models
    table = Table(min_width=72, caption=Text("\n".join(_closing(report)), justify="left"), caption_justify="left")
    table.add_column("measured")
    for heading in [*models, *(["|gap|"] if with_gap else [])]:
        table.add_column(Text(heading), justify="right")
    for row in rows(report):
        cells = [number(row.values.get(model)) for model in models]
        table.add_row(Text(row.title), *cells, *([number(row.gap)] if with_gap else []))
    return table


def _closing(report: Report) -> list[str]:
    """The lines below the table."""
    lines = []
    if report.average_gap is not None:
        lines.append(f"average gap to the retrained model: {number(report.average_gap)}")
    if report.floor is not None:
        lines.append(f"average gap between two retrained models: {number(report.floor)}")
    if report.layers:
        lines.append(f"interference with the retained data: {number(report.interference.total)}")
    if report.outcome is not None:
        lines.append(f"{'stopped' if report.outcome.fulfilled else 'NOT FULFILLED'}: {report.outcome.reason}")
    if report.seconds:
        lines.append("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items()))
    return lines


def preflight_table(preflight: Preflight) -> Table:
    """One row a layer (what passes of its gradient, its share of the first step's interference), and below what holds for all of them."""
    table = Table(title="Before unlearning", title_justify="left", min_width=72, caption_justify="left")
    table.caption = Text("\n".join(_expected(preflight)), justify="left")
    table.add_column("layer", overflow="fold")
    for heading in ("inputs", "free", "passes", "interferes", "clamped"):
        table.add_column(heading, justify="right")
    for name, layer in preflight.layers.items():
        cells = (str(layer.dim), str(layer.free), number(layer.survives), number(layer.share), number(layer.clamped))
        table.add_row(Text(name), *cells)
    return table


def _expected(preflight: Preflight) -> list[str]:
    lines = [f"of the forget gradient of {preflight.samples:,} samples passes: {number(preflight.survives)}"]
    if preflight.interference is not None:
        lines.append(f"interference of the first step: at most {number(preflight.interference)}")
    if preflight.drift:
        lines.append(f"earlier requests may have moved the response by: {number(preflight.drift)}")
    if preflight.accuracy_error is not None:
        lines.append(f"standard error of the accuracy to aim at: {number(preflight.accuracy_error)}")
    return lines


def print_preflight(preflight: Preflight, console: Console | None = None) -> None:
    """Show in a terminal what is to be expected.

    Args:
        preflight: What to show.
        console: Where; None is the standard output.
    """
    console = console or Console()
    console.print(preflight_table(preflight))
    for warning in preflight.warnings:
        console.print(Text(f"Warning: {warning}", style="yellow"))
    if preflight.refusal is not None:
        console.print(Text(f"Refused: {preflight.refusal}", style="bold red"))


def print_report(report: Report, console: Console | None = None) -> None:
    """Show the comparison in a terminal; a request that is not fulfilled comes first.

    Args:
        report: What to show.
        console: Where; None is the standard output.
    """
    console = console or Console()
    console.print(Text(headline(report), style="bold"))
    if report.outcome is not None and not report.outcome.fulfilled:
        console.print(Text(f"The request is NOT fulfilled: {report.outcome.reason}.", style="bold red"))
    console.print(comparison_table(report))
    for note in report.outcome.notes if report.outcome else ():
        console.print(Text(f"Note: {note}"))


def _sorted(names: Iterable[str], known: tuple[str, ...]) -> list[str]:
    """Each name once: the known ones in their order, then the others as they come."""
    return sorted(dict.fromkeys(names), key=lambda name: known.index(name) if name in known else len(known))
