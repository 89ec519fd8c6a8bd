"""A report in Weights & Biases, online or offline. Who was forgotten stays here: digests are logged, no ids and no pictures."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import wandb

from pgu_lightning.records import Report
from pgu_lightning.report.html import write_html
from pgu_lightning.report.table import in_order, rows

if TYPE_CHECKING:
    from wandb import Run

STEP = "unlearning/step"
LIVE_METRICS = {
    "forget/accuracy": "share of the forget set that gets its training label",
    "forget/loss": "mean loss on the forget set",
    "validation/accuracy": "accuracy on validation data that should still work",
    "validation/loss": "mean loss on the same",
    "forget/mia_auc": "membership AUC of the forget set against validation data of the same kind",
    "interference/total": "relative squared change of the response to the retained data",
    "interference/<layer>": "the same for each layer",
    "rank/<layer>": "protected directions of each layer",
    "free/<layer>": "free directions of each layer",
}
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


def log_report(run: Run, report: Report) -> None:
    """Log the final figures, tables, histograms and the report's files, without pictures of samples and without the configuration.

    Args:
        run: A live run.
        report: What to log; parts that it lacks are left out.
    """
    run.summary.update(_figures(report))
    run.log({**_tables(report), **_histograms(report)})
    without_people = report.replace(examples=(), config={})
    artifact = wandb.Artifact(f"report-{run.id}", type="report", metadata={"request": report.request.digest})
    with TemporaryDirectory() as folder:
        for name, write in (("report.json", Report.save), ("report.html", write_html)):
            write(without_people, Path(folder) / name)
            artifact.add_file(str(Path(folder) / name))
    run.log_artifact(artifact)


def _figures(report: Report) -> dict[str, float | str | bool]:
    """One value each."""
    request, outcome = report.request, report.outcome
    figures: dict[str, float | str | bool] = {"request/kind": request.kind, "request/size": request.size, "request/digest": request.digest}
    figures |= {f"final/{model}/{metric}": value for model, metrics in report.models.items() for metric, value in metrics.items()}
    figures |= {f"seconds/{stage}": seconds for stage, seconds in report.seconds.items()}
    figures["final/interference"] = report.interference.total
    if report.average_gap is not None:
        figures["final/average_gap"] = report.average_gap
    if report.floor is not None:
        figures["final/floor"] = report.floor
    if outcome is not None:
        figures |= {"outcome/fulfilled": outcome.fulfilled, "outcome/reason": outcome.reason, "outcome/steps": outcome.steps}
    return figures


def _tables(report: Report) -> dict[str, wandb.Table]:
    """The comparison, and the layers with those that were frozen."""
    models = in_order(report.models)
    comparison = [[row.title, *(row.values.get(model) for model in models), row.gap] for row in rows(report)]
    layers: list[list[float | str | None]] = []
    for name, layer in report.layers.items():
        layers.append([name, layer.dim, layer.rank, layer.free, layer.clamped, report.interference.layers.get(name), None])
    layers += [[name, None, None, None, None, None, reason] for name, reason in report.frozen.items()]
    return {
        "comparison": wandb.Table(columns=["measured", *models, "gap"], data=comparison),
        "layers": wandb.Table(columns=["layer", "inputs", "protected", "free", "clamped", "interference", "frozen because"], data=layers),
    }


def _histograms(report: Report) -> dict[str, wandb.Histogram]:
    return {
        f"histograms/{model}/{name}": wandb.Histogram(np_histogram=(np.asarray(histogram.counts), np.asarray(histogram.edges)))
        for model, sets in report.histograms.items()
        for name, histogram in sets.items()
    }
