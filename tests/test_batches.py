"""Batches on any number of processes, without processes: each rank is asked in turn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgu_lightning.batches import SharedBatches, batch_sizes
from tests.helpers.processes import as_rank


def batches(rank, world, epoch=0, **arguments):
    with as_rank(rank, world):
        sampler = SharedBatches(**arguments)
        sampler.set_epoch(epoch)
        found = list(sampler)
        assert len(sampler) == len(found)
    return found


@given(st.integers(1, 12), st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 3), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_batches_do_not_depend_on_the_number_of_processes(rows, sizes, world, seed, epoch):
    """Put together again, rank by rank, the processes' parts are the batches of one process."""
    arguments = {"rows": rows, "sizes": sizes, "seed": seed, "epoch": epoch}
    one = batches(0, 1, **arguments)
    parts = [batches(rank, world, **arguments) for rank in range(world)]
    for number, size in enumerate(sizes):
        assert [parts[place % world][number][place // world] for place in range(size)] == one[number]
        assert sum(len(part[number]) for part in parts) == size
    order = [sample for batch in one for sample in batch]
    for start in range(0, len(order), rows):  # every sample once before any comes again
        assert len(set(order[start : start + rows])) == len(order[start : start + rows])
    assert set(order) <= set(range(rows))


@given(st.integers(1, 300), st.integers(1, 70), st.integers(1, 8))
@settings(deadline=None, max_examples=100)
def test_every_process_has_a_part_of_every_batch(rows, largest, world):
    with as_rank(0, world):
        if rows < world:
            with pytest.raises(ValueError, match="each needs one"):
                batch_sizes(rows, largest)
            return
        sizes = batch_sizes(rows, largest)
    assert sum(sizes) == rows
    assert min(sizes) >= world
    assert max(sizes) <= max(largest, 2 * world - 1)
    if largest >= 2 * world:
        assert sizes == batch_sizes(rows, largest)


def test_orders_differ_by_epoch_and_seed_and_repeat():
    orders = [batches(0, 1, rows=50, sizes=[50], seed=seed, epoch=epoch)[0] for seed, epoch in ((0, 0), (0, 1), (7, 0))]
    assert len({tuple(one) for one in orders}) == 3
    assert batches(0, 1, rows=50, sizes=[50], seed=7) == [orders[2]]
    first, second = batches(0, 1, rows=50, sizes=[50, 50])
    assert first != second


def test_it_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    batches(0, 1, rows=9, sizes=[20])
    assert torch.equal(torch.get_rng_state(), state)
