"""The final figures under the names that every logger shows them by; ``docs/metrics.md`` says what each means."""

from __future__ import annotations

from pgu_lightning.records import Report


def figures(report: Report) -> dict[str, float | str | bool]:
    """One value each; what the report lacks is left out.

    Example:
        >>> from pgu_lightning.records import MethodRecord, RequestRecord
        >>> report = Report(RequestRecord("samples", 2, "d"), MethodRecord("retrain", True), {"original": {"mia_auc": 0.5}})
        >>> figures(report)["final/original/mia_auc"]
        0.5
    """
    request, outcome = report.request, report.outcome
    found: dict[str, float | str | bool] = {"request/kind": request.kind, "request/size": request.size, "request/digest": request.digest}
    found |= {f"final/{model}/{metric}": value for model, metrics in report.models.items() for metric, value in metrics.items()}
    found |= {f"final/{model}/corrected_accuracy": share for model, share in report.corrected_accuracy.items()}
    found |= {f"seconds/{stage}": seconds for stage, seconds in report.seconds.items()}
    found["final/interference"] = report.interference.total
    if report.average_gap is not None:
        found["final/average_gap"] = report.average_gap
    if report.floor is not None:
        found["final/floor"] = report.floor
    if outcome is not None:
        found |= {"outcome/fulfilled": outcome.fulfilled, "outcome/reason": outcome.reason, "outcome/steps": outcome.steps}
    return found
