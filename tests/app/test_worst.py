"""The samples to look at, against a loop in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from pgu_lightning.app.worst import worst
from pgu_lightning.evaluation import Scores
from pgu_lightning.requests import ForgetRequest

SIZE, CLASSES = 40, 3


@pytest.fixture
def split():
    return ForgetRequest(indices=range(5, 17)).split(TensorDataset(torch.zeros(SIZE, 1), torch.arange(SIZE) % CLASSES))


@pytest.fixture
def logits():
    return {model: torch.randn(SIZE, CLASSES, dtype=torch.float64) for model in ("original", "unlearned", "retrained")}


def scored(split, logits):
    label = torch.arange(SIZE) % CLASSES
    parts = {"forget": split.forget.positions, "retain": split.retain.positions}
    return {model: {part: Scores.of(z[at], label[at]) for part, at in parts.items()} for model, z in logits.items()}


def plain(logits, position):
    z = logits[position].numpy()
    return float(np.exp(z[position % CLASSES]) / np.exp(z).sum())


def expected(positions, excess, count):
    found = sorted(((excess(position), position) for position in positions), reverse=True)
    return [position for value, position in found[:count] if value > 0]


def check(split, samples, positions, logits):
    names = dict(zip(split.entries(split.forget) + split.entries(split.retain), [*range(5, 17), *range(5), *range(17, SIZE)], strict=True))
    assert [names[sample.digest] for sample in samples] == positions
    for sample, position in zip(samples, positions, strict=True):
        assert sample.label == position % CLASSES
        assert sample.probabilities == pytest.approx({model: plain(z, position) for model, z in logits.items()}, rel=1e-5)


def test_chosen_by_what_the_models_say(split, logits):
    found = worst(split, scored(split, logits), 4)
    remembered = expected(range(5, 17), lambda i: plain(logits["unlearned"], i) - plain(logits["retrained"], i), 4)
    damaged = expected([*range(5), *range(17, SIZE)], lambda i: plain(logits["original"], i) - plain(logits["unlearned"], i), 4)
    check(split, found["remembered"], remembered, logits)
    check(split, found["damaged"], damaged, logits)
    assert len(remembered) == len(damaged) == 4


def test_without_a_retrained_model(split, logits):
    del logits["retrained"]
    found = worst(split, scored(split, logits), 3)
    check(split, found["remembered"], expected(range(5, 17), lambda i: plain(logits["unlearned"], i), 3), logits)


def test_what_got_better_is_not_damaged(split, logits):
    logits["original"] = torch.zeros(SIZE, CLASSES)
    better = torch.nn.functional.one_hot(torch.arange(SIZE) % CLASSES, CLASSES).double()
    better[20] *= -1
    found = worst(split, scored(split, {**logits, "unlearned": better}), 5)
    check(split, found["damaged"], [20], {**logits, "unlearned": better})


def test_no_name_unless_asked(split, logits):
    scores = scored(split, logits)
    assert all(sample.id is None for samples in worst(split, scores, 40).values() for sample in samples)
    found = worst(split, scores, 40, ids="ids")["remembered"]
    positions = {entry: str(position) for entry, position in zip(split.entries(), range(5, 17), strict=True)}
    assert found
    assert all(sample.id == positions[sample.digest] for sample in found)
    split.forget.dataset.ids = [f"person {i}" for i in range(SIZE)]
    assert all(sample.id == f"person {positions[sample.digest]}" for sample in worst(split, scores, 40, ids="ids")["remembered"])


def test_nothing_to_list(split, logits):
    scores = scored(split, logits)
    assert worst(split, {"original": scores["original"]}, 5) == {}
    assert worst(split, scores, 0) == {"remembered": (), "damaged": ()}
