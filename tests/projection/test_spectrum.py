"""Eigenvalues and the mass that is clamped, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgu_lightning.projection import Spectrum
from pgu_lightning.statistics import Gram
from tests import oracles


def symmetric(values, seed):
    """Matrices with these eigenvalues, (groups, dim)."""
    values, generator = np.asarray(values, np.float64), np.random.default_rng(seed)
    bases = [np.linalg.qr(generator.normal(size=(values.shape[1],) * 2))[0] for _ in values]
    matrix = np.stack([basis @ np.diag(row) @ basis.T for basis, row in zip(bases, values, strict=True)])
    return (matrix + matrix.transpose(0, 2, 1)) / 2


@given(
    st.integers(1, 3).flatmap(lambda dim: st.lists(st.lists(st.integers(-9, 9), min_size=dim, max_size=dim), min_size=1, max_size=3)),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_of_an_indefinite_matrix(values, seed):
    """As a difference of Gram matrices can be."""
    matrix = symmetric(values, seed)
    spectrum = Spectrum.of(Gram(torch.from_numpy(matrix), 1))
    expected, _ = oracles.eigen(matrix)
    assert (spectrum.values >= 0).all()
    np.testing.assert_allclose(spectrum.values.numpy(), expected, atol=1e-12)
    negative, whole = sum(-v for row in values for v in row if v < 0), sum(abs(v) for row in values for v in row)
    assert spectrum.clamped == pytest.approx(negative / whole if whole else 0, abs=1e-12)
    positive = symmetric(np.maximum(values, 0), seed)
    np.testing.assert_allclose(spectrum.matrix.numpy(), positive, atol=1e-12)
    identity = np.broadcast_to(np.eye(matrix.shape[1]), matrix.shape)
    np.testing.assert_allclose((spectrum.vectors.mT @ spectrum.vectors).numpy(), identity, atol=1e-12)


def test_a_positive_matrix_is_left_as_it_is():
    rows = np.random.default_rng(0).normal(size=(2, 50, 7))
    spectrum = Spectrum.of(Gram(torch.from_numpy(oracles.gram(rows)), 50))
    assert spectrum.clamped == 0
    np.testing.assert_allclose(spectrum.matrix.numpy(), oracles.gram(rows), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(spectrum.values.sqrt().numpy(), np.linalg.svd(rows, compute_uv=False)[:, ::-1], rtol=1e-10)


def test_nothing_at_all():
    spectrum = Spectrum.of(Gram(torch.zeros(1, 3, 3, dtype=torch.float64), 0))
    assert (spectrum.values.tolist(), spectrum.clamped) == ([[0, 0, 0]], 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite(value):
    with pytest.raises(ValueError, match="not finite"):
        Spectrum.of(Gram(torch.full((1, 2, 2), value, dtype=torch.float64), 1))
