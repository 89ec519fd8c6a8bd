"""The figures that a report gives for one model, and the histograms it draws."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pgu_lightning.evaluation.membership import mia_auc
from pgu_lightning.evaluation.scores import Scores
from pgu_lightning.records import Histogram
from pgu_lightning.requests import Kind

LOSS_RANGE = (1e-6, 1e2)


def model_metrics(forget: Scores, retain: Scores | None, test: Scores | None, gone: tuple[int, ...] = ()) -> dict[str, float]:
    """A model's figures, all in [0, 1]; what cannot be computed is left out.

    Args:
        forget: The forget samples.
        retain: The retained training samples, where they are at hand.
        test: The test samples, with those of the labels that are gone.
        gone: The labels that are forgotten entirely.

    Returns:
        ``forget_accuracy``, ``retain_accuracy``, ``test_accuracy`` (over labels that should still work), ``forget_test_accuracy`` (over
        test samples of the labels that are gone) and ``mia_auc`` (against these, or against all test samples where no label is gone).

    Raises:
        ValueError: If a loss is not a number.

    Example:
        >>> forget = Scores.of(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
        >>> test = Scores.of(torch.tensor([[0.0, 1.0], [2.0, 1.0]]), torch.tensor([1, 0]))
        >>> model_metrics(forget, None, test, gone=(0,))
        {'forget_accuracy': 0.0, 'test_accuracy': 1.0, 'forget_test_accuracy': 1.0, 'mia_auc': 0.0}
    """
    if test is None:
        test = Scores.concatenate([])
    is_gone = torch.isin(test.label, torch.tensor(gone, dtype=torch.int64))
    same_kind = test.select(is_gone) if gone else test
    parts = {
        "forget_accuracy": forget,
        "retain_accuracy": retain,
        "test_accuracy": test.select(~is_gone),
        "forget_test_accuracy": same_kind if gone else None,
    }
    metrics = {name: part.accuracy for name, part in parts.items() if part}
    if forget and same_kind:
        metrics["mia_auc"] = mia_auc(forget, same_kind)
    return metrics


def estimated_gap(kind: Kind, forget: Scores, before: Scores, after: Scores, gone: tuple[int, ...] = ()) -> float | None:
    """What can be said of the gap to a retrained model without one: how far the model is from what validation data says of unseen samples.

    The mean of: the distance of the forget accuracy from the original's validation accuracy (samples) or from 0 (labels that are gone or
    wrong); what validation accuracy lost; the distance of the membership AUC from 0.5, except for wrong labels, which a retrained model
    tells from right ones too. An estimate to compare settings by, no substitute for a reference.

    Args:
        kind: Of the request.
        forget: The forget samples under the unlearned model.
        before: The validation samples under the original model.
        after: The same under the unlearned model.
        gone: The labels that are forgotten entirely.

    Returns:
        A number in [0, 1]; None without validation data that should still work.

    Example:
        >>> right, wrong = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
        >>> scores = Scores.of(torch.cat([right, wrong]), torch.tensor([0, 0]))
        >>> estimated_gap("samples", forget=scores, before=scores, after=scores)
        0.0
    """
    parts = [(part, torch.isin(part.label, torch.tensor(gone, dtype=torch.int64))) for part in (before, after)]
    kept = [part.select(~is_gone) for part, is_gone in parts]
    alike = after.select(parts[1][1]) if gone else after
    if not kept[0]:
        return None
    aim = kept[0].accuracy if kind == "samples" else 0.0
    terms = [abs(forget.accuracy - aim), max(0.0, kept[0].accuracy - kept[1].accuracy)]
    if kind != "poison" and alike:
        terms.append(abs(mia_auc(forget, alike) - 0.5))
    return sum(terms) / len(terms)


def loss_histograms(scores: Mapping[str, Mapping[str, Scores]], bins: int = 40) -> dict[str, dict[str, Histogram]]:
    """Histograms of the losses by model and set, all over the same log-spaced edges.

    Args:
        scores: By model (``original``, ``unlearned``, ...) and set (``forget``, ``test``).
        bins: Number of bins between the smallest and the largest loss of all; losses are first clipped to [1e-6, 1e2], and one that is
            not a number counts as 1e2.

    Returns:
        The histograms under the same names.
    """
    low, high = LOSS_RANGE
    exponents = {
        model: {name: np.log10(part.loss.double().nan_to_num(nan=high).clamp(low, high).numpy()) for name, part in sets.items()}
        for model, sets in scores.items()
    }
    every = [values for sets in exponents.values() for values in sets.values()]
    edges = np.histogram_bin_edges(np.concatenate([np.empty(0), *every]), bins)
    return {
        model: {
            name: Histogram(tuple((10.0**edges).tolist()), tuple(np.histogram(values, edges)[0].tolist())) for name, values in sets.items()
        }
        for model, sets in exponents.items()
    }
