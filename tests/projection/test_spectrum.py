"""Eigenvalues and the mass that is clamped, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgu_lightning.projection import Damped, Soft, Spectrum
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


SOFT = Soft(0.1)


def decomposed(matrix, rows, soft=SOFT):
    return Spectrum.of_all({"a": Gram(torch.from_numpy(matrix), rows)}, {} if soft is None else {"a": soft})["a"]


@pytest.mark.parametrize(("groups", "dim", "rank", "rows"), [(1, 7, 7, 50), (3, 6, 2, 50), (1, 60, 4, 4), (2, 60, 4, 4)])
def test_the_soft_filter_needs_no_eigenvectors(groups, dim, rank, rows):
    generator = np.random.default_rng(0)
    matrix = oracles.gram(generator.normal(size=(groups, 50, rank)) @ generator.normal(size=(groups, rank, dim)))
    found = decomposed(matrix, rows)
    assert isinstance(found, Damped)
    values, vectors = oracles.eigen(matrix)
    np.testing.assert_allclose(found.values.numpy(), values, atol=1e-12 * values.max())
    np.testing.assert_allclose(found.filter.numpy(), oracles.projection(vectors, oracles.soft_gains(values, 0.1)), atol=1e-9)
    assert found.clamped < 1e-12
    assert (found.matrix.numpy() == matrix).all()


@pytest.mark.parametrize("values", [[[-1.0, 3, 4]], [[-0.02, 1, 4], [1, 1, 1]], [[0.0, 0, 0]]])
def test_what_has_to_be_clamped_is_decomposed(values):
    """And what has nothing to be damped by."""
    matrix = symmetric(values, 0)
    found, expected = decomposed(matrix, 50), Spectrum.of(Gram(torch.from_numpy(matrix), 50))
    assert isinstance(found, Spectrum)
    for name in ("values", "vectors", "matrix"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert found.clamped == expected.clamped
    assert isinstance(decomposed(symmetric([[-1e-5, 1, 4]], 0), 50), Damped)  # rounding is not clamped


@pytest.mark.parametrize("soft", [None, Soft(0.1)])
@pytest.mark.parametrize(("groups", "more", "less", "known"), [(1, 7, 3, 12), (1, 30, 26, 60), (2, 30, 26, 60)])
def test_a_difference_that_is_none(soft, groups, more, less, known):
    """Rows were subtracted that were not among them: there are more than the number says, and negative ones."""
    generator = np.random.default_rng(0)
    full, other = (oracles.gram(generator.normal(size=(groups, rows, 60))) for rows in (more, less))
    found = decomposed(full - other, 4, soft)
    assert found.vectors.shape[-1] == known
    values, vectors = oracles.eigen(full - other)
    np.testing.assert_allclose(found.values.numpy(), np.maximum(values, 0), atol=1e-10)
    np.testing.assert_allclose(found.matrix.numpy(), oracles.projection(vectors, np.maximum(values, 0)), atol=1e-9)
    values = np.linalg.eigvalsh(full - other)
    assert found.clamped == pytest.approx(-values[values < 0].sum() / np.abs(values).sum())


@pytest.mark.parametrize("rows", [3, 6])
def test_few_rows(rows):
    """Also where rounding of float32 is left outside the range."""
    x = torch.randn(rows, 60, generator=torch.Generator().manual_seed(0))
    matrix = (x.mT @ x)[None].double()
    matrix = (matrix + matrix.mT) / 2
    found, full = Spectrum.of(Gram(matrix, rows)), Spectrum.of(Gram(matrix, 60))
    assert (found.vectors.shape, full.vectors.shape) == ((1, 60, rows + 8), (1, 60, 60))
    largest = full.values.max()
    torch.testing.assert_close(found.values, full.values, rtol=0, atol=1e-7 * largest)
    one, other = (spectrum.vectors[..., -rows:] for spectrum in (found, full))
    torch.testing.assert_close(one @ one.mT, other @ other.mT, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.matrix, full.matrix, rtol=0, atol=1e-7 * largest)
