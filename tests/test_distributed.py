"""Dealing out work, without processes: each rank is asked in turn."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from pgu_lightning import distributed
from pgu_lightning.distributed import SharedOrder


def as_rank(rank, world):
    return patch.multiple(distributed, rank=lambda: rank, world=lambda: world, _active=lambda: world > 1)


def order(rank, world, epoch=0, **arguments):
    with as_rank(rank, world):
        sampler = SharedOrder(**arguments)
        sampler.set_epoch(epoch)
        indices = list(sampler)
        assert len(sampler) == len(indices)
    return indices


@given(st.integers(1, 12), st.integers(1, 40), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_the_order_does_not_depend_on_the_number_of_processes(rows, size, world, seed, epoch):
    """Put together again, rank by rank, the processes' indices are those of one process."""
    arguments = {"rows": rows, "size": size, "seed": seed, "epoch": epoch}
    one = order(0, 1, **arguments)
    shares = [order(rank, world, **arguments) for rank in range(world)]
    together = [shares[place % world][place // world] for place in range(size)]
    assert together == one
    assert sum(map(len, shares)) == size
    for start in range(0, size, rows):  # every sample once before any comes again
        assert len(set(one[start : start + rows])) == len(one[start : start + rows])
    assert set(one) <= set(range(rows))


def test_orders_differ_by_epoch_and_seed_and_repeat():
    orders = [order(0, 1, rows=50, size=50, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (7, 0))]
    assert len({tuple(one) for one in orders}) == 3
    assert order(0, 1, rows=50, size=50, seed=7) == orders[2]
    both = order(0, 1, rows=50, size=100)
    assert both[:50] != both[50:]


def test_a_global_batch_holds_the_same_samples_on_any_number_of_processes():
    def batches(world):
        parts = []
        for rank in range(world):
            with as_rank(rank, world):
                loader = DataLoader(range(30), batch_size=12 // world, sampler=SharedOrder(30, 30))
                parts.append([set(batch.tolist()) for batch in loader])
        return [set.union(*step) for step in zip(*parts, strict=True)]

    assert batches(1) == batches(2) == batches(3)


def test_it_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    order(0, 1, rows=9, size=20)
    assert torch.equal(torch.get_rng_state(), state)


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
