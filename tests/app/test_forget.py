"""Requests that depend on the data."""

from __future__ import annotations

import pytest
import torch

from pgu_lightning.app.forget import classes, first, poison, samples, swapped
from pgu_lightning.data import Digits


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup()
    return data


def test_the_first_of_each_class_then_the_next(digits):
    asked = first(digits, size=3, requests=2)
    seen: dict[int, list[int]] = {}
    for position, label in enumerate(digits.train.targets.tolist()):
        seen.setdefault(label, []).append(position)
    assert set(asked[0].indices) == {position for positions in seen.values() for position in positions[:3]}
    assert set(asked[1].indices) == {position for positions in seen.values() for position in positions[3:6]}
    (zeros,) = first(digits, size=5, classes=[0])
    assert list(zeros.indices) == seen[0][:5]


def test_random_samples_in_requests_that_do_not_overlap(digits):
    asked = samples(digits, size=0.1, seed=4, requests=3)
    chosen = [index for request in asked for index in request.indices]
    assert len(chosen) == len(set(chosen)) == 3 * round(0.1 * len(digits.train))
    assert samples(digits, size=0.1, seed=4)[0].indices == asked[0].indices


def test_classes_from_the_lowest_on(digits):
    assert [request.classes for request in classes(digits, count=2, requests=2)] == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("ask", "match"),
    [
        (lambda data: first(data, size=100, requests=4), "class 0 has 1[0-9]+ training samples"),
        (lambda data: first(data, size=0), "at least 1"),
        (lambda data: samples(data, size=0.4, seed=0, requests=3), "0.4, 3 times, of"),
        (lambda data: samples(data, size=10, seed=0, requests=0), "ask at least once"),
        (lambda data: classes(data, count=5, requests=2), "fewer than all together"),
        (lambda data: classes(data, count=0), "at least one"),
        (lambda data: swapped(data, per_class=3), "must be one number"),
        (lambda data: poison(data), "above 0"),
    ],
)  # fmt: skip
def test_what_the_data_cannot_give_is_refused(digits, ask, match):
    with pytest.raises(ValueError, match=match):
        ask(digits)


def test_the_true_labels_with_the_request():
    clean = Digits()
    clean.setup()
    for data, ask in ((Digits(poison=9), poison), (Digits(swap=2), lambda data, corrected: swapped(data, 2, corrected))):
        data.setup()
        split = ask(data, corrected=True).split(data.train)
        assert torch.equal(split.corrected, clean.train.targets[split.forget.positions])
        assert ask(data, corrected=False).corrected is None


def test_swapped_labels():
    clean, data = Digits(), Digits(swap=4)
    clean.setup()
    data.setup()
    moved = (clean.train.targets != data.train.targets).nonzero().flatten()
    assert swapped(data, per_class=4).indices == tuple(moved.tolist()) == tuple(data.poisoned.tolist())
    true = clean.train.targets[moved]
    assert torch.equal(true, data.clean_targets)
    assert torch.bincount(true, minlength=10).tolist() == [4] * 10
    pairs = {0: 1, 1: 0, 2: 3, 3: 2, 4: 5, 5: 4, 6: 7, 7: 6, 8: 9, 9: 8}
    assert data.train.targets[moved].tolist() == [pairs[label] for label in true.tolist()]


@pytest.mark.parametrize("arguments", [{"swap": -1}, {"swap": 1, "poison": 1}])
def test_swapping_that_makes_no_sense_is_refused(arguments):
    with pytest.raises(ValueError, match="number of labels of each class"):
        Digits(**arguments)


def test_more_swapped_labels_than_there_are_are_refused():
    with pytest.raises(ValueError, match="class 0 has fewer"):
        Digits(swap=1000).setup()
