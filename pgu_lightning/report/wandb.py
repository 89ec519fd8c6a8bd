"""A report in Weights & Biases, online or offline. Who was forgotten stays here, unless ids were asked for: no picture, digests for ids."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import wandb
from wandb.plot import CustomChart

from pgu_lightning.records import CurvePoint, Report, WorstSample
from pgu_lightning.report.figures import figures
from pgu_lightning.report.html import write_html
from pgu_lightning.report.table import class_name, in_order, rows

if TYPE_CHECKING:
    from wandb import Run

Line = Sequence[tuple[float, float]]

STEP = "unlearning/step"
LIVE_METRICS = (
    "forget/accuracy",
    "forget/loss",
    "forget/mia_auc",
    "forget/corrected_accuracy",
    "validation/accuracy",
    "validation/loss",
    "earlier/accuracy",
    "interference/total",
    "interference/<layer>",
    "rank/<layer>",
    "free/<layer>",
    "unlearning/seconds",
)
"""What the callback logs while unlearning, through Lightning's logger, over ``STEP``."""


def define_metrics(run: Run, layers: Collection[str] = ()) -> None:
    """Plot the live metrics over unlearning steps and keep their smallest and last values. Call it before the first is logged.

    Args:
        run: A live run.
        layers: Names of the layers that may change. Each is defined by its full name: of two patterns wandb takes the first, and
            Lightning's logger has defined ``*`` before.
    """
    run.define_metric(STEP)
    for name in LIVE_METRICS:
        for layer in layers if "<layer>" in name else ("",):
            metric = name.replace("<layer>", layer).replace(".", r"\.")  # a bare dot would be a path into a nested value
            run.define_metric(metric, step_metric=STEP, summary="min,last")


def log_report(run: Run, report: Report, folder: Path | None = None) -> None:
    """Log the final figures, tables, charts and histograms, and the run's files as artifacts.

    The report goes there without pictures of samples and without the configuration. Models and statistics are only referred to, with their
    checksums: the model that still knows the forget set does not leave this machine.

    Args:
        run: A live run.
        report: What to log; parts that it lacks are left out.
        folder: Where the run's files lie; None logs the report alone.
    """
    run.summary.update(figures(report))
    run.log({**_tables(report), **_charts(report), **_histograms(report)})
    _log_artifacts(run, report, folder)


def _tables(report: Report) -> dict[str, wandb.Table]:
    """The comparison, the layers with those that were frozen, and the samples to look at."""
    models = in_order(report.models)
    comparison = [[row.title, *(row.values.get(model) for model in models), row.gap] for row in rows(report)]
    layers: list[list[float | str | None]] = []
    for name, layer in report.layers.items():
        layers.append([name, layer.dim, layer.rank, layer.free, layer.clamped, report.interference.layers.get(name), None])
    layers += [[name, None, None, None, None, None, reason] for name, reason in report.frozen.items()]
    return {
        "comparison": wandb.Table(columns=["measured", *models, "gap"], data=comparison),
        "layers": wandb.Table(columns=["layer", "inputs", "protected", "free", "clamped", "interference", "frozen because"], data=layers),
        **{f"worst/{name}": _worst_table(report, samples) for name, samples in report.worst.items()},
    }


def _worst_table(report: Report, samples: Sequence[WorstSample]) -> wandb.Table:
    models = in_order(report.models)
    data = [
        [sample.id or sample.digest, class_name(report, sample.label), *(sample.probabilities.get(model) for model in models)]
        for sample in samples
    ]
    return wandb.Table(columns=["sample", "label", *models], data=data)


def _charts(report: Report) -> dict[str, CustomChart]:
    """Accuracies in one chart, and for each model the losses of forget against test samples."""
    charts = {}
    if report.curve:
        charts["charts/accuracy"] = _chart("Accuracy while unlearning", STEP, _accuracy_lines(report.curve, report.models))
    for model, sets in report.histograms.items():
        lines: dict[str, Line] = {}
        for name, histogram in sets.items():
            total = max(sum(histogram.counts), 1)
            centres = [math.log10((low + high) / 2) for low, high in pairwise(histogram.edges)]
            lines[name] = [(centre, count / total) for centre, count in zip(centres, histogram.counts, strict=True)]
        charts[f"charts/loss/{model}"] = _chart(f"Loss of a sample, {model} model: share of the samples", "log10 of the loss", lines)
    return charts


def _accuracy_lines(curve: Sequence[CurvePoint], models: Mapping[str, Mapping[str, float]]) -> dict[str, Line]:
    """Forget and validation accuracy at each point; the retained data is read at the ends only."""
    first, last = curve[0].step, curve[-1].step
    ends = [(step, models.get(model, {}).get("retain_accuracy")) for step, model in ((first, "original"), (last, "unlearned"))]
    level = models.get("retrained", {}).get("forget_accuracy")
    lines: dict[str, list[tuple[int, float | None]]] = {
        "forget": [(point.step, point.forget_accuracy) for point in curve],
        "validation": [(point.step, point.validation_accuracy) for point in curve],
        "retain": ends,
        "forget, retrained model": [(first, level), (last, level)],
    }
    known = {name: [(step, value) for step, value in line if value is not None] for name, line in lines.items()}
    return {name: line for name, line in known.items() if line}


def _chart(title: str, x: str, lines: Mapping[str, Line]) -> CustomChart:
    xs = [[x for x, _ in line] for line in lines.values()]
    ys = [[y for _, y in line] for line in lines.values()]
    return wandb.plot.line_series(xs, ys, keys=list(lines), title=title, xname=x)


def _histograms(report: Report) -> dict[str, wandb.Histogram]:
    return {
        f"histograms/{model}/{name}": wandb.Histogram(np_histogram=(np.asarray(histogram.counts), np.asarray(histogram.edges)))
        for model, sets in report.histograms.items()
        for name, histogram in sets.items()
    }


def _log_artifacts(run: Run, report: Report, folder: Path | None) -> None:
    """Model, retain space, unlearned model, report: each says in its metadata from which it was made, by name and digest.

    Online the first two are logged as inputs of the run, for wandb's graph of lineage; offline wandb takes outputs only.
    """
    made_from: list[dict[str, str]] = []
    files = (
        ("original", "model", "original.ckpt"),
        ("retain-space", "retain-space", "retain.safetensors"),
        ("unlearned", "model", "unlearned.ckpt"),
    )
    for name, kind, file in files:
        if folder is None or not (folder / file).exists():
            continue
        artifact = wandb.Artifact(name, type=kind, metadata={"made_from": list(made_from)})
        artifact.add_reference((folder / file).resolve().as_uri(), name=file)
        made_from.append({"name": name, "digest": artifact.digest})
        if name != "unlearned" and not run.offline:
            run.use_artifact(artifact)
        else:
            run.log_artifact(artifact, aliases=[run.id])
    without_pictures = report.replace(examples=(), config={})
    artifact = wandb.Artifact("report", type="report", metadata={"request": report.request.digest, "made_from": made_from})
    with TemporaryDirectory() as temporary:
        for file, write in (("report.json", Report.save), ("report.html", write_html)):
            write(without_pictures, Path(temporary) / file)
            artifact.add_file(str(Path(temporary) / file))
    run.log_artifact(artifact, aliases=[run.id])
