"""Gains against a plain count in exact fractions, and against the formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pgu_lightning.projection import Hard, Soft, Spectrum
from pgu_lightning.statistics import Gram
from tests import oracles

roots = st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 7, 50, 1000]), min_size=1, max_size=12)
spectra = st.integers(1, 3).flatmap(
    lambda groups: roots.flatmap(lambda row: st.lists(st.permutations(row), min_size=groups, max_size=groups))
)


@given(roots, st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.95, 0.99, 1.0]), st.sampled_from(["energy", "singular"]))
@example([0, 0, 0], 0.95, "energy")
@example([3], 0.01, "energy")
@example([1] * 10, 0.9, "energy")
@example([1] * 10, 0.9, "singular")
@example([1] * 100, 0.07, "energy")  # 0.07 * 100 is more than 7 in float64
@example([0, 1, 1, 1000], 1.0, "singular")
@settings(deadline=None, max_examples=150)
def test_hard_protects_the_fewest_leading_directions(row, share, spectrum):
    """Eigenvalues are squares of ``row``, so that both kinds of mass are whole numbers."""
    row = sorted(row)
    values = torch.tensor([row], dtype=torch.float64) ** 2
    count = oracles.protected_count([value**2 if spectrum == "energy" else value for value in row], share)
    assert Hard(share, spectrum)(values).tolist() == [[1.0] * (len(row) - count) + [0.0] * count]


@given(spectra, st.sampled_from([0.5, 0.9, 1.0]), st.sampled_from(["energy", "singular"]))
@settings(deadline=None, max_examples=30)
def test_each_group_counts_for_itself(groups, share, spectrum):
    values = torch.tensor(groups, dtype=torch.float64).sort(1).values ** 2
    alone = [Hard(share, spectrum)(row[None])[0].tolist() for row in values]
    assert Hard(share, spectrum)(values).tolist() == alone


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 99), st.sampled_from(["energy", "singular"]))
@settings(deadline=None, max_examples=40)
def test_the_whole_variance_is_the_rank_of_the_data(rank, dim, seed, spectrum):
    """Also from a Gram matrix whose product was float32: rounding is not data."""
    rank, generator = min(rank, dim), np.random.default_rng(seed)
    rows = (generator.normal(size=(40, rank)) @ np.linalg.qr(generator.normal(size=(dim, dim)))[0][:rank]).astype(np.float32)
    for product in (oracles.gram(rows[None]), (rows.T @ rows)[None].astype(np.float64)):
        gains = Hard(1.0, spectrum)(Spectrum.of(Gram(torch.from_numpy(product), 40)).values)
        assert int((gains == 0).sum()) == rank


def test_singular_values_protect_far_more():
    values = torch.logspace(-6, 0, 100, dtype=torch.float64)[None]
    energy, singular = (int((Hard(0.95, spectrum)(values) == 0).sum()) for spectrum in ("energy", "singular"))
    assert energy < 25 < 40 < singular


@pytest.mark.parametrize("share", [0, -0.1, 1.01])
def test_hard_refuses_other_shares(share):
    with pytest.raises(ValueError, match=rf"must lie in \(0, 1\], got {share}"):
        Hard(share)


def test_hard_refuses_other_spectra():
    with pytest.raises(ValueError, match='"energy" or "singular", got \'eigen\''):
        Hard(0.9, "eigen")


eigenvalues = st.just(0.0) | st.floats(1e-30, 1e12)


@given(st.lists(st.lists(eigenvalues, min_size=4, max_size=4), min_size=1, max_size=3), st.sampled_from([1e-6, 0.01, 0.5, 30.0]))
@example([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], 0.01)
@settings(deadline=None, max_examples=60)
def test_soft(rows, damping):
    values = np.sort(np.array(rows), axis=1)
    gains = Soft(damping)(torch.from_numpy(values))
    np.testing.assert_allclose(gains.numpy(), oracles.soft_gains(values, damping), rtol=1e-12)


def test_soft_does_not_depend_on_the_number_of_samples():
    values = torch.rand(1, 6, dtype=torch.float64)
    torch.testing.assert_close(Soft(0.1)(values), Soft(0.1)(values * 1e6))


def test_a_single_direction_passes_or_not():
    """One group a token of an embedding: those that retained data has stand still."""
    counts = torch.tensor([[0.0], [1.0], [1e6]], dtype=torch.float64)
    assert Soft(0.5)(counts).tolist() == Hard(0.5)(counts).tolist() == [[1.0], [0.0], [0.0]]


def test_nothing_retained_lets_everything_pass():
    assert Soft(0.01)(torch.zeros(1, 3, dtype=torch.float64)).tolist() == [[1, 1, 1]]
    assert Hard(1.0)(torch.zeros(1, 3, dtype=torch.float64)).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("damping", [0, -1, float("nan")])
def test_soft_refuses_other_dampings(damping):
    with pytest.raises(ValueError, match="damping must be above 0"):
        Soft(damping)
