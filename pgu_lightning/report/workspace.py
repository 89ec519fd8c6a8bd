"""The dashboard for runs in Weights & Biases, defined in code (extra ``sweep``: the package wandb-workspaces)."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from pgu_lightning.report.wandb import STEP

MODELS = ("original", "unlearned", "retrained")


def workspace(entity: str, project: str = "pgu-lightning") -> ws.Workspace:
    """A saved view with the sections Forgetting, Retention, Membership, Interference and Cost.

    Building it needs no network; ``workspace("me").save()`` sends it to the server.

    Args:
        entity: User or team in wandb.
        project: As in ``logger.wandb.project``.
    """
    sections: dict[str, list[Any]] = {
        "Forgetting": [
            _over_steps("Accuracy", "forget/accuracy", "validation/accuracy"),
            _over_steps("Loss on the forget set", "forget/loss"),
            _lines("charts/accuracy", "Accuracy with the retained data"),
            _final("Accuracy on the forget set", "forget_accuracy"),
            _over_steps("Accuracy on what earlier requests took", "earlier/accuracy"),
            _bars("Average gap to the retrained model, and between two of those", "final/average_gap", "final/floor"),
            wr.WeavePanelSummaryTable(table_name="worst/remembered"),
        ],
        "Retention": [
            _over_steps("Validation accuracy", "validation/accuracy"),
            _over_steps("Validation loss", "validation/loss"),
            _final("Accuracy on the retained data", "retain_accuracy"),
            _final("Accuracy on test data", "test_accuracy"),
            wr.WeavePanelSummaryTable(table_name="worst/damaged"),
        ],
        "Membership": [
            _over_steps("Membership AUC", "forget/mia_auc"),
            _final("Membership AUC", "mia_auc"),
            *(_lines(f"charts/loss/{model}", f"Loss of forget and test samples, {model} model") for model in MODELS),
        ],
        "Interference": [
            _over_steps("Interference with the retained data", "interference/total", log_y=True),
            wr.LinePlot(title="Interference of each layer", x=STEP, metric_regex="interference/.*", log_y=True),
            wr.LinePlot(title="Free directions of each layer", x=STEP, metric_regex="free/.*"),
            wr.WeavePanelSummaryTable(table_name="layers"),
        ],
        "Cost": [
            _bars("Seconds", *(f"seconds/{stage}" for stage in ("train", "collect", "unlearn", "retrain"))),
            _over_steps("Seconds of unlearning", "unlearning/seconds"),
            _bars("Steps", "outcome/steps"),
        ],
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name="Unlearning",
        sections=[ws.Section(name=name, panels=panels, is_open=True) for name, panels in sections.items()],
    )


def _over_steps(title: str, *metrics: str, log_y: bool = False) -> wr.LinePlot:
    return wr.LinePlot(title=title, x=STEP, y=list(metrics), log_y=log_y)


def _bars(title: str, *metrics: str) -> wr.BarPlot:
    return wr.BarPlot(title=title, metrics=list(metrics))


def _final(title: str, metric: str) -> wr.BarPlot:
    return _bars(f"{title}, at the end", *(f"final/{model}/{metric}" for model in MODELS))


def _lines(chart: str, title: str) -> wr.CustomChart:
    """A chart that a run has logged with ``wandb.plot.line_series``."""
    fields = {name: name for name in ("step", "lineKey", "lineVal")}
    query = {"summaryTable": {"tableKey": f"{chart}_table"}}
    return wr.CustomChart(query=query, chart_name="wandb/lineseries/v0", chart_fields=fields, chart_strings={"title": title})
