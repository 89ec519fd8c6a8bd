"""Stop rules on histories made by hand."""

from __future__ import annotations

import re

import pytest
import torch
from sklearn.metrics import roc_auc_score

from pgu_lightning.evaluation.scores import Scores
from pgu_lightning.stopping import AccuracyGap, AllowedDrop, AnyOf, Decision, Epoch, Epochs, Forgotten, InterferenceBudget, Membership


def scores(right, of=10, label=0, loss=None):
    """``right`` correct answers of ``of``."""
    correct = torch.arange(of) < right
    loss = torch.where(correct, 0.1, 2.0) if loss is None else torch.tensor(loss)
    return Scores(loss, -loss, correct, torch.full((of,), label))


def epoch(forget, validation=None, **values):
    """Numbers of right answers of 10, or scores."""
    forget, validation = (scores(value) if isinstance(value, int) else value for value in (forget, validation))
    return Epoch(**{"step": 0, "forget": forget, "validation": validation, "num_classes": 5, **values})


def joined(*parts):
    return Scores.concatenate(parts)


# An epoch's views of its validation data


@pytest.mark.parametrize(
    ("gone", "kept", "alike"),
    [((), [0, 1, 2], [0, 1, 2]), ((1,), [0, 2], [1]), ((2, 0), [1], [0, 2]), ((0, 1, 2), None, [0, 1, 2]), ((4,), [0, 1, 2], None)],
)
def test_validation_by_class(gone, kept, alike):
    now = epoch(3, joined(*(scores(5, 4, label) for label in (0, 1, 2))), gone=gone)
    labels = [None if part is None else sorted(set(part.label.tolist())) for part in (now.kept, now.alike)]
    assert labels == [kept, alike]


def test_auc_is_against_validation_data_of_the_same_kind():
    forget, same, other = [0.1, 0.4, 0.4, 2.0], [0.3, 0.4, 1.0], [9.0, 9.0]
    validation = joined(scores(3, 3, label=1, loss=same), scores(2, 2, label=0, loss=other))

    def auc(nonmembers):
        return roc_auc_score([1] * 4 + [0] * len(nonmembers), [-loss for loss in [*forget, *nonmembers]])

    assert epoch(scores(4, 4, 1, forget), validation, gone=(1,)).auc == pytest.approx(auc(same))
    assert epoch(scores(4, 4, 1, forget), validation).auc == pytest.approx(auc(same + other))


def test_without_validation():
    now = epoch(3)
    assert (now.kept, now.alike, now.auc) == (None, None, None)


# Rules, each with histories and what it decides on their last epoch

AUC_HALF, AUC_ONE = [1.0, 2.0] * 10, [0.0, 0.5] * 10
KEPT = joined(scores(9, 10, 0), scores(10, 10, 1))  # 9 of 10 of class 0 right, all of class 1


def classes(kept, gone):
    """Validation with this many of 10 right of a class that stays and of class 1."""
    return joined(scores(kept, 10, 0), scores(gone, 10, 1))


GO_ON = None


def corrected(*validation):
    """Epochs that have forgotten, while corrected labels are learnt, with this many of 10 validation samples right."""
    return [epoch(0, right, objective=0.01, corrected_accuracy=0.9) for right in validation]


CASES = {
    # name: rule, history, decision as (fulfilled, best, refine) or None, part of the reason
    "gap: still above": (AccuracyGap(), [epoch(10, 8), epoch(9, 8)], GO_ON, ""),
    "gap: level": (
        AccuracyGap(),
        [epoch(10, 8), epoch(8, 8)],
        (True, True, False),
        "forget accuracy 0.800 is down to validation accuracy 0.800",
    ),
    "gap: below": (AccuracyGap(), [epoch(10, 8), epoch(2, 8)], (True, True, False), "0.200 .* 0.800"),
    "gap: within the slack": (AccuracyGap(slack=0.1), [epoch(10, 8), epoch(9, 8)], (True, True, False), ""),
    "gap: the last epoch counts": (AccuracyGap(), [epoch(10, 8), epoch(8, 8), epoch(9, 8)], GO_ON, ""),
    "gap: validation fell too": (AccuracyGap(), [epoch(10, 8), epoch(8, 7)], GO_ON, ""),
    "gap: the loss is not known": (AccuracyGap(loss=0.02), [epoch(2, 8)], GO_ON, ""),
    "gap: the loss is high": (AccuracyGap(loss=0.02), [epoch(2, 8, objective=0.02)], GO_ON, ""),
    "gap: the loss is not a number": (AccuracyGap(loss=0.02), [epoch(2, 8, objective=float("nan"))], GO_ON, ""),
    "gap: the loss is low": (AccuracyGap(loss=0.02), [epoch(2, 8, objective=0.019)], (True, False, False), ""),
    "gap: the objective aims higher": (AccuracyGap(), [epoch(9, 8, aim=0.9)], (True, True, False), "the 0.900 that data as hard"),
    "gap: the objective aims lower": (AccuracyGap(), [epoch(8, 8, aim=0.7)], GO_ON, ""),
    "gap: the loss is low, too early": (AccuracyGap(loss=0.02), [epoch(10, 8, objective=0.001)], GO_ON, ""),
    "class: gone": (Forgotten(), [epoch(0, KEPT, objective=0.01, gone=(1,))], (True, False, True), "0.000 is at most 0.000"),
    "class: not all": (Forgotten(), [epoch(1, KEPT, objective=0.01, gone=(1,))], GO_ON, ""),
    "class: the loss is high": (Forgotten(), [epoch(0, KEPT, objective=0.5, gone=(1,))], GO_ON, ""),
    "class: another loss": (Forgotten(loss=0.6), [epoch(0, KEPT, objective=0.5, gone=(1,))], (True, False, True), ""),
    "class: the loss is not known": (Forgotten(), [epoch(0, KEPT, gone=(1,))], GO_ON, ""),
    "poison: as often as by chance": (Forgotten(), [epoch(1, 6, objective=0.01)], (True, False, True), "0.100 is at most 0.100"),
    "poison: more often": (Forgotten(), [epoch(2, 6, objective=0.01)], GO_ON, ""),
    "poison: a little more often": (Forgotten(slack=0.1), [epoch(2, 6, objective=0.01)], (True, False, True), "0.200 is at most 0.200"),
    "class: slack is for wrong labels": (Forgotten(slack=0.5), [epoch(1, KEPT, objective=0.01, gone=(1,))], GO_ON, ""),
    "poison: validation is perfect": (Forgotten(), [epoch(1, 10, objective=0.01)], GO_ON, ""),
    "corrected: nothing is forgotten": (Forgotten(), [epoch(2, 6, objective=0.5, corrected_accuracy=0.1)] * 9, GO_ON, ""),
    "corrected: it has just been forgotten": (Forgotten(), [epoch(2, 6), *corrected(6, 7, 6, 6)], GO_ON, ""),
    "corrected: no higher for so long": (Forgotten(), [epoch(2, 6), *corrected(6, 7, 6, 6, 6)], (True, True, False), "than 0.700"),
    "corrected: less patience": (Forgotten(patience=1), [epoch(2, 6), *corrected(7, 6)], (True, True, False), "than 0.700"),
    "corrected: level is no higher": (Forgotten(), [epoch(2, 6), *corrected(7, 7, 7, 7)], (True, True, False), "than 0.700"),
    "corrected: no validation": (Forgotten(), [epoch(0, objective=0.01, corrected_accuracy=1.0)], (True, False, True), ""),
    "poison: no validation": (Forgotten(), [epoch(1, None, objective=0.01)], GO_ON, ""),
    "poison: no validation, gone": (Forgotten(), [epoch(0, None, objective=0.01)], (True, False, True), ""),
    "membership: told apart": (Membership(), [epoch(scores(9, 20, loss=AUC_ONE), scores(9, 20, loss=AUC_HALF))], GO_ON, ""),
    "membership: alike": (
        Membership(),
        [epoch(scores(9, 20, loss=AUC_HALF), scores(9, 20, loss=AUC_HALF))],
        (True, False, False),
        "membership AUC 0.500 is at most 0.685",  # 0.5 + 2 sqrt(41 / 4800)
    ),
    "membership: the other way": (
        Membership(),
        [epoch(scores(9, 20, loss=AUC_HALF), scores(9, 20, loss=AUC_ONE))],
        (True, False, False),
        "",
    ),
    "membership: no errors allowed": (
        Membership(errors=0),
        [epoch(scores(2, 2, loss=[1.0, 2.0]), scores(2, 2, loss=[1.5, 2.5]))],
        GO_ON,
        "",
    ),
    "drop: not yet": (AllowedDrop(0.2), [epoch(10, 9), epoch(5, 8)], GO_ON, ""),
    "drop: just reached": (AllowedDrop(0.25), [epoch(9, scores(8, 8)), epoch(0, scores(6, 8))], (True, True, False), ""),
    "drop: reached, forgotten": (
        AllowedDrop(0.125),
        [epoch(10, 9), epoch(1, 9), epoch(0, 7)],
        (True, True, False),
        "0.900 to 0.700, .* drop of 0.125",
    ),
    "drop: reached, not forgotten": (AllowedDrop(0.125), [epoch(10, 9), epoch(7, 7)], (False, True, False), ""),
    "drop: the gone class may fall": (
        AllowedDrop(0.05),
        [epoch(10, classes(9, 10), gone=(1,)), epoch(0, classes(9, 0), gone=(1,))],
        GO_ON,
        "",
    ),
    "drop: what stays fell": (
        AllowedDrop(0.05),
        [epoch(10, classes(9, 10), gone=(1,)), epoch(0, classes(8, 0), gone=(1,))],
        (True, True, False),
        "",
    ),
    "budget: left": (InterferenceBudget(1e-3), [epoch(1, interference=9.9e-4)], GO_ON, ""),
    "budget: spent": (
        InterferenceBudget(1e-3),
        [epoch(1, interference=1e-3)],
        (False, True, False),
        "1.00e-03 has reached the budget 0.001",
    ),
    "epochs: before": (Epochs(2), [epoch(9), epoch(9)], GO_ON, ""),
    "epochs: there": (Epochs(2), [epoch(9), epoch(9), epoch(9)], (True, False, False), "2 epochs, as asked"),
    "any: none": (AnyOf([Epochs(2), InterferenceBudget(1.0)]), [epoch(9), epoch(9)], GO_ON, ""),
    "any: the second": (
        AnyOf([Epochs(2), InterferenceBudget(1.0)]),
        [epoch(9), epoch(9, interference=2.0)],
        (False, True, False),
        "budget",
    ),
    "any: both": (AnyOf([Epochs(1), InterferenceBudget(1.0)]), [epoch(9), epoch(9, interference=2.0)], (True, False, False), "1 epochs"),
}


@pytest.mark.parametrize(("rule", "history", "expected", "reason"), CASES.values(), ids=CASES)
def test_decision(rule, history, expected, reason):
    decision = rule(history)
    if expected is None:
        assert decision is None
    else:
        assert isinstance(decision, Decision)
        assert (decision.fulfilled, decision.best, decision.refine) == expected
        assert re.search(reason, decision.reason)


@pytest.mark.parametrize(
    ("rule", "nearest_first"),
    [
        (AccuracyGap(), [epoch(8, 8), epoch(7, 8), epoch(10, 8)]),
        (AccuracyGap(), [epoch(0), epoch(3)]),
        (Forgotten(), [epoch(0, 2), epoch(1, 10)]),
        (Forgotten(), [*reversed(corrected(6, 7)), epoch(0, 9, objective=0.5, corrected_accuracy=1.0), epoch(1, 10)]),
        (
            Membership(),
            [
                epoch(scores(2, 2, loss=[3.0, 3.0]), scores(2, 2, loss=[1.5, 2.5])),
                epoch(scores(2, 2, loss=[1.0, 2.0]), scores(2, 2, loss=[1.5, 2.5])),
            ],
        ),
        (AllowedDrop(), [epoch(0, 9), epoch(5, 10), epoch(10, 10)]),
        (AllowedDrop(), [epoch(0, classes(9, 0), gone=(1,)), epoch(1, classes(9, 10), gone=(1,))]),
        (InterferenceBudget(1.0), [epoch(0, interference=9.0), epoch(1)]),
        (Epochs(3), [epoch(9, step=30), epoch(9, step=20)]),
        (AnyOf([Forgotten(), Epochs(3)]), [epoch(0, step=1), epoch(1, step=9)]),
        (AnyOf([Epochs(3), Forgotten()]), [epoch(1, step=9), epoch(0, step=1)]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_distance(rule, nearest_first):
    distances = [rule.distance(one) for one in nearest_first]
    assert distances == sorted(distances)
    assert len(set(distances)) == len(distances)


@pytest.mark.parametrize(
    ("rule", "now", "message"),
    [
        (AccuracyGap(), epoch(3), "compares the forget set with validation data: give the trainer a validation loader"),
        (AllowedDrop(), epoch(3), "watches validation accuracy: give the trainer a validation loader"),
        (AllowedDrop(), epoch(3, scores(9, 10, 1), gone=(1,)), "watches validation accuracy"),
        (Membership(), epoch(3), "validation data of the same kind: there is none"),
        (Membership(), epoch(3, scores(9, 10, 0), gone=(1,)), "validation data of the same kind: there is none"),
        (AnyOf([Epochs(9), AccuracyGap()]), epoch(3), "compares the forget set with validation data"),
    ],
    ids=["gap", "drop", "drop, gone only", "membership", "membership, none of the class", "any"],
)
def test_a_rule_says_what_it_lacks(rule, now, message):
    with pytest.raises(ValueError, match=message):
        rule([now])


def test_allowed_drop_judges_the_epoch_that_is_kept():
    """Of equally near epochs the last is kept, so it is the one that has to have forgotten."""
    first, last = epoch(6, 10), epoch(1, 5)
    assert AllowedDrop().distance(first) == AllowedDrop().distance(last)
    decision = AllowedDrop(0.3)([epoch(10, 10), first, last])
    assert decision.fulfilled
