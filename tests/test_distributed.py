"""Arithmetic of many processes, without processes: each rank is asked in turn."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgu_lightning import distributed
from tests.helpers.processes import as_rank


@given(st.lists(st.integers(0, 700), min_size=2, max_size=4), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
@settings(deadline=None, max_examples=40)
def test_shares_make_the_mean_over_all_rows(rows, dtype):
    """Also where the logits, whose device they are on, cannot count that far."""
    world, like = len(rows), torch.zeros(1, 2, dtype=dtype, requires_grad=True)
    values = [torch.rand(count, dtype=torch.float64) for count in rows]
    total = 0.0
    for rank, count in enumerate(rows):
        with as_rank(rank, world), patch.object(distributed, "sum_", lambda own: own.fill_(sum(own.new_tensor(float(r)) for r in rows))):
            share = distributed.share(count, like)
        total += share * (float(values[rank].mean()) if count else 0.0) / world
    everything = torch.cat(values)
    assert total == pytest.approx(float(everything.mean()) if len(everything) else 0.0, rel=1e-12)


def test_on_one_process_everything_is_the_identity():
    value = torch.arange(3.0, requires_grad=True)
    plain = value.detach()
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert distributed.sum_(plain) is plain
    assert distributed.share(0, value) == distributed.share(5, value) == 1
    assert distributed.gather("anything") == ["anything"]
    assert torch.equal(distributed.mean(value), plain)
    assert distributed.mean(plain) is not plain
    assert not distributed.mean(value).requires_grad


@given(st.lists(st.floats(0, 1e9), max_size=30), st.integers(1, 6))
@settings(deadline=None, max_examples=60)
def test_tasks_are_shared_out_evenly(costs, processes):
    shares = distributed.share_out(costs, processes)
    assert sorted(task for share in shares for task in share) == list(range(len(costs)))
    loads = sorted(sum(costs[task] for task in share) for share in shares)
    # Whoever does most would not do less without his last task than anyone else does.
    assert len(shares) == processes
    assert loads[-1] <= sum(costs) / processes + max(costs, default=0.0) * (1 + 1e-9)


def test_the_dearest_decomposition_does_not_wait_behind_others():
    assert distributed.share_out([27**3, 2304**3, 1152**3, 1152**3], 2) == [[1], [2, 3, 0]]
    assert distributed.share_out([5.0], 3) == [[0], [], []]
