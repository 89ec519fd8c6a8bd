"""The filter against its dense matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pgu_lightning.projection import Hard, Projector, Soft, Spectrum
from pgu_lightning.statistics import Gram
from tests import oracles


def gram(groups, dim, rank, seed=0):
    generator = np.random.default_rng(seed)
    return oracles.gram(generator.normal(size=(groups, 3 * dim, rank)) @ generator.normal(size=(groups, rank, dim)))


def project(matrix, rule, like=None):
    return Projector(Spectrum.of(Gram(torch.from_numpy(matrix), 1)), rule, like)


CASES = {
    "hard, few protected": (1, 9, 2, Hard(1.0)),
    "hard, half": (1, 8, 4, Hard(1.0)),
    "hard, few free": (1, 9, 7, Hard(1.0)),
    "hard, none free": (1, 5, 5, Hard(1.0)),
    "hard, one direction": (1, 1, 1, Hard(0.5)),
    "hard, a share": (1, 12, 12, Hard(0.9, "singular")),
    "hard, groups": (3, 6, 2, Hard(1.0)),
    "soft": (1, 7, 7, Soft(0.1)),
    "soft, groups": (2, 6, 3, Soft(0.01)),
}


@pytest.mark.parametrize(("groups", "dim", "rank", "rule"), CASES.values(), ids=CASES)
def test_against_the_dense_matrix(groups, dim, rank, rule):
    matrix = gram(groups, dim, rank)
    values, vectors = oracles.eigen(matrix)
    if isinstance(rule, Soft):
        gains = oracles.soft_gains(values, rule.damping)
    else:
        values[values < 1e-6 * values.max(1, keepdims=True)] = 0
        masses = values if rule.spectrum == "energy" else np.sqrt(values)
        counts = [oracles.protected_count(row, rule.retained_variance) for row in masses]
        gains = np.array([[1.0] * (dim - count) + [0.0] * count for count in counts])
    update = torch.randn(groups, 4, dim, dtype=torch.float64)
    projector = project(matrix, rule, update)
    np.testing.assert_allclose(projector(update).numpy(), update.numpy() @ oracles.projection(vectors, gains), atol=1e-12)
    assert projector.dim == dim
    assert (projector.rank, projector.free) == ((gains <= 0.5).sum(), (gains > 0.5).sum())
    if isinstance(rule, Hard):
        with FlopCounterMode(display=False) as counter:
            projector(update)
        thin = counts[0] if groups == 1 and counts[0] < dim / 2 else dim - counts[0]
        assert counter.get_total_flops() == (2 * groups * 4 * dim * dim if groups > 1 else 4 * 4 * dim * thin)  # the cheaper side
        torch.testing.assert_close(projector(projector(update)), projector(update), rtol=0, atol=1e-12)
    allowed, response = projector.measured(update)
    free_of_charge = isinstance(rule, Soft) or (groups == 1 and counts[0] >= dim / 2)
    assert (response is not None) == free_of_charge
    if free_of_charge:
        assert float(response) == pytest.approx(oracles.response(allowed.numpy(), matrix), rel=1e-9, abs=1e-9)
    single = project(matrix, rule, update.float())(update.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), projector(update).numpy(), atol=1e-5)


@pytest.mark.parametrize("rank", [2, 7])
def test_what_the_data_reaches_is_taken_out_even_of_a_long_update(rank):
    """To the rounding of the update, on either side."""
    matrix = gram(1, 9, rank)
    vectors = oracles.eigen(matrix)[1][0][:, -rank:]
    update = torch.randn(1, 4, 9) * 1e6
    inside = project(matrix, Hard(1.0), update)(update)[0].double().numpy() @ vectors
    assert np.linalg.norm(inside) <= 1e-6 * float(update.norm())


def test_it_is_the_nearest_allowed_update():
    """Moving from the filtered update along any allowed direction leads away from the given one."""
    update, projector = torch.randn(1, 3, 9, dtype=torch.float64), project(gram(1, 9, 4), Hard(1.0), torch.empty(0, dtype=torch.float64))
    best = projector(update)
    for _ in range(20):
        other = best + 0.1 * projector(torch.randn_like(update))
        assert (update - best).norm() <= (update - other).norm()


def test_half_precision_is_filtered_in_float32():
    projector = project(gram(1, 5, 2), Hard(1.0), torch.empty(0, dtype=torch.bfloat16))
    assert projector(torch.ones(1, 1, 5)).dtype == torch.float32


def test_the_clamped_share_is_handed_on():
    matrix = np.diag([3.0, -1.0])[None]
    assert project(matrix, Hard()).clamped == 0.25


@pytest.mark.parametrize("rule", [Hard(1.0), Hard(0.5), Soft(0.1), lambda values: 1 / (1 + values)], ids=["hard", "half", "soft", "own"])
def test_few_rows(rule):
    """The range alone is decomposed: what passes is the same."""
    matrix, update = gram(1, 60, 5, seed=1), torch.randn(1, 4, 60, dtype=torch.float64)
    thin, full = (Spectrum.of(Gram(torch.from_numpy(matrix), rows)) for rows in (5, 60))
    assert (thin.vectors.shape[-1], full.vectors.shape[-1]) == (13, 60)
    one, other = (Projector(spectrum, rule, update) for spectrum in (thin, full))
    np.testing.assert_allclose(one(update).numpy(), other(update).numpy(), atol=1e-10)
    assert (one.rank, one.free) == (other.rank, other.free)
