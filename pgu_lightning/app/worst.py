"""The samples to look at first: what the unlearned model still knows of the forget set, and what it lost of the retained data."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pgu_lightning.evaluation import Scores
from pgu_lightning.records import WorstSample
from pgu_lightning.requests import Split
from pgu_lightning.views import View, column, plain


def worst(
    split: Split, scored: Mapping[str, Mapping[str, Scores]], count: int, ids: str | None = None
) -> dict[str, tuple[WorstSample, ...]]:
    """Choose them by the probability that the models give the label each sample had in training.

    Args:
        split: The training data in two parts.
        scored: By model, the scores of its ``forget`` and ``retain`` parts.
        count: How many of a kind at most.
        ids: Attribute of the dataset that holds ids, to name the samples by; None: by digest alone.

    Returns:
        ``remembered``: forget samples, by how much more probable their label is to the unlearned than to the retrained model (where
        there is none: by how probable it is). ``damaged``: retained samples, by how much less probable it is than to the original
        model. Samples without any such difference are left out; without an unlearned model there is nothing.
    """
    if "unlearned" not in scored:
        return {}
    forget, retain = ({model: torch.exp(-parts[part].loss.double()) for model, parts in scored.items()} for part in ("forget", "retain"))
    remembered = forget["unlearned"] - forget.get("retrained", torch.zeros(()))
    damaged = retain["original"] - retain["unlearned"]
    labels = {part: found.label for part, found in scored["unlearned"].items()}
    return {
        "remembered": _chosen(split, split.forget, labels["forget"], forget, remembered, count, ids),
        "damaged": _chosen(split, split.retain, labels["retain"], retain, damaged, count, ids),
    }


def _chosen(
    split: Split, part: View, label: Tensor, probabilities: Mapping[str, Tensor], order: Tensor, count: int, ids: str | None
) -> tuple[WorstSample, ...]:
    places = order.argsort(descending=True, stable=True)[:count]
    places = places[order[places] > 0]
    view = View(part.dataset, part.positions[places])
    names = [None] * len(places) if ids is None else _names(view, ids)
    return tuple(
        WorstSample(digest, int(label[place]), {model: float(values[place]) for model, values in probabilities.items()}, name)
        for place, digest, name in zip(places.tolist(), split.entries(view), names, strict=True)
    )


def _names(view: View, ids: str) -> list[str]:
    values = column(view, lambda one: getattr(one, ids, None))
    return [str(plain(name)) for name in (view.positions.tolist() if values is None else values)]
