"""The AUROC against a double loop, its standard error against every possible order."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgu_lightning.evaluation.membership import MembershipAUC, auc_standard_error, mia_auc
from pgu_lightning.evaluation.scores import Scores


def scores_of(losses):
    loss = torch.tensor(losses, dtype=torch.float32)
    return Scores(loss, -loss, loss < 1, torch.zeros(len(losses), dtype=torch.int64))


def auc_oracle(members, nonmembers):
    """The share of pairs in which the member has the lower loss; a tie is half a pair."""
    pairs = [1.0 if one < other else 0.5 if one == other else 0.0 for one in members for other in nonmembers]
    return sum(pairs) / len(pairs)


losses = st.lists(st.sampled_from([0.0, 1e-30, 0.25, 0.5, 1.0, 3.0, 1e30, math.inf]) | st.floats(0, 100, width=32), min_size=1, max_size=15)


@given(losses, losses)
@settings(deadline=None, max_examples=200)
def test_auc_with_ties(members, nonmembers):
    assert mia_auc(scores_of(members), scores_of(nonmembers)) == pytest.approx(auc_oracle(members, nonmembers), abs=1e-12)


def test_direction():
    low, high = scores_of([0.1, 0.2]), scores_of([1.0, 2.0])
    assert (mia_auc(low, high), mia_auc(high, low), mia_auc(low, low)) == (1.0, 0.0, 0.5)


@pytest.mark.parametrize(
    ("members", "nonmembers", "message"),
    [
        ([], [1.0], "got 0 members and 1 others"),
        ([1.0, 2.0], [], "got 2 members and 0 others"),
        ([math.nan, 1.0], [math.nan], "2 of 3 losses are not numbers: the model has diverged"),
    ],
)
def test_groups_that_cannot_be_compared_are_refused(members, nonmembers, message):
    with pytest.raises(ValueError, match=message):
        mia_auc(scores_of(members), scores_of(nonmembers))


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 4), (1, 7), (5, 3)])
def test_standard_error_is_that_of_all_orders(n, m):
    values = [
        auc_oracle(chosen, [rank for rank in range(n + m) if rank not in chosen]) for chosen in itertools.combinations(range(n + m), n)
    ]
    mean = sum(values) / len(values)
    assert mean == pytest.approx(0.5)
    assert auc_standard_error(n, m) == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / len(values)))


@pytest.mark.parametrize(("n", "m"), [(0, 1), (1, 0)])
def test_standard_error_needs_samples(n, m):
    with pytest.raises(ValueError, match="Both groups need samples"):
        auc_standard_error(n, m)


@given(losses, losses, st.integers(1, 4), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=30)
def test_metric_over_batches(members, nonmembers, batch, random):
    rows = [(loss, True) for loss in members] + [(loss, False) for loss in nonmembers]
    random.shuffle(rows)
    metric = MembershipAUC()
    for start in range(0, len(rows), batch):
        loss, is_member = zip(*rows[start : start + batch], strict=True)
        metric.update(torch.tensor(loss), torch.tensor(is_member))
    assert metric.compute().item() == pytest.approx(auc_oracle(members, nonmembers), abs=1e-6)
    metric.reset()
    metric.update(torch.tensor([0.0, 1.0], dtype=torch.bfloat16), torch.tensor([True, False]))
    assert metric.compute().item() == 1.0


def test_metric_over_processes():
    other = {torch.float32: torch.tensor([2.0, 0.5]), torch.bool: torch.tensor([True, False])}
    metric = MembershipAUC(dist_sync_fn=lambda state, group: [state, other[state.dtype]], distributed_available_fn=lambda: True)
    metric.update(torch.tensor([0.25, 1.0]), torch.tensor([True, False]))
    assert metric.compute().item() == auc_oracle([0.25, 2.0], [1.0, 0.5])
