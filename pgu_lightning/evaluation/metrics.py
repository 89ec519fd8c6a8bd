"""The figures that a report gives for one model, and the histograms it draws."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from pgu_lightning.evaluation.membership import mia_auc
from pgu_lightning.evaluation.scores import Scores
from pgu_lightning.records import Histogram

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
