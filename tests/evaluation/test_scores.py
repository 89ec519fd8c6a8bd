"""Margins and losses against float64 NumPy loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pgu_lightning.evaluation.scores import Scores, margin


def margin_oracle(logits, target):
    """z_y - log sum_{j != y} exp z_j, one example at a time."""
    result = []
    for row, label in zip(np.asarray(logits, dtype=np.float64), target, strict=True):
        others = np.delete(row, label)
        result.append(row[label] - (others.max() + math.log(np.exp(others - others.max()).sum())))
    return np.array(result)


def loss_oracle(phi):
    """-log p_y from the margin: log(1 + exp(-phi))."""
    return np.array([math.log1p(math.exp(-one)) if one > 0 else -one + math.log1p(math.exp(one)) for one in phi])


@st.composite
def batches(draw, scales=(1.0, 32.0, 2.0**14, 2.0**100)):
    shape = draw(array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6).map(lambda shape: (shape[0], shape[1] + 1)))
    scale = draw(st.sampled_from(scales))
    logits = draw(arrays(np.float32, shape, elements=st.floats(-scale, scale, width=32)))
    target = draw(arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)))
    return logits, target


@given(batches())
@settings(deadline=None, max_examples=200)
def test_margin_and_loss(batch):
    logits, target = batch
    phi = margin_oracle(logits, target)
    tolerance = 4 * np.finfo(np.float32).eps * np.maximum(np.abs(logits).max(1), 1)
    computed = margin(torch.tensor(logits), torch.tensor(target))
    assert computed.dtype == torch.float32
    assert (np.abs(computed.numpy() - phi) <= tolerance).all()

    scores = Scores.of(torch.tensor(logits), torch.tensor(target))
    assert torch.equal(scores.margin, computed)
    np.testing.assert_allclose(scores.loss.numpy(), loss_oracle(scores.margin.double().numpy()), rtol=1e-6, atol=1e-37)
    assert (np.abs(scores.loss.numpy() - loss_oracle(phi)) <= tolerance).all()
    assert scores.correct.tolist() == [int(row.argmax()) == label for row, label in zip(logits, target, strict=True)]
    assert torch.equal(scores.label, torch.tensor(target))


@given(batches(scales=(1.0, 32.0)))
@settings(deadline=None, max_examples=50)
def test_margin_is_the_log_odds(batch):
    logits, target = batch
    weights = np.exp(logits.astype(np.float64))
    p = weights / weights.sum(1, keepdims=True)
    log_odds = [math.log(row[label]) - math.log(np.delete(row, label).sum()) for row, label in zip(p, target, strict=True)]
    np.testing.assert_allclose(margin(torch.tensor(logits), torch.tensor(target)).numpy(), log_odds, rtol=1e-5, atol=1e-4)


def test_confident_answers_are_not_tied():
    logits = torch.tensor([[20.0, 0.0], [40.0, 0.0], [80.0, 0.0]])
    scores = Scores.of(logits, torch.zeros(3, dtype=torch.int64))
    np.testing.assert_allclose(scores.loss.numpy(), [math.log1p(math.exp(-z)) for z in (20, 40, 80)], rtol=1e-5)


def test_gradient():
    logits = torch.tensor([[0.3, -2.0, 1.1], [5.0, 4.0, -7.0], [50.0, -50.0, 0.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([2, 0, 1])
    assert torch.autograd.gradcheck(lambda z: margin(z, target), (logits,))
    assert margin(logits, target).dtype == torch.float64


def test_gradient_of_extreme_logits_is_finite():
    logits = torch.tensor([[1e30, -1e30, 0.0], [1e4, 1e4, -1e4]], requires_grad=True)
    margin(logits, torch.tensor([1, 0])).sum().backward()
    assert logits.grad.tolist() == [[-1.0, 1.0, 0.0], [1.0, -1.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    logits = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.5, 12.0]], dtype=dtype)
    computed = margin(logits, torch.tensor([0, 2]))
    assert computed.dtype == torch.float32
    np.testing.assert_allclose(computed.numpy(), margin_oracle(logits.double().numpy(), [0, 2]), rtol=1e-6)
    assert Scores.of(logits.double(), torch.tensor([0, 2])).loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(2, 3, 4), torch.zeros(2, 4).long(), r"\(2, 3, 4\) and \(2, 4\). Flatten sequences"),
        (torch.zeros(4), torch.zeros(4).long(), "Flatten sequences"),
        (torch.zeros(4, 1), torch.zeros(4).long(), "at least 2 classes.*the two columns 0 and z"),
        (torch.zeros(4, 3), torch.zeros(5).long(), r"labels \(N,\)"),
        (torch.zeros(4, 3), torch.zeros(4, 3), r"labels \(N,\)"),
        (torch.zeros(4, 3), torch.zeros(4), "whole numbers as labels, got torch.float32"),
        (torch.zeros(4, 3), torch.zeros(4).bool(), "whole numbers as labels, got torch.bool"),
        (torch.zeros(3, 3), torch.tensor([0, 3, -100]), r"labels in \[0, 3\), got \[-100, 3\]. Leave padding out"),
    ],
)
def test_other_shapes_and_labels_are_refused(logits, target, message):
    with pytest.raises(ValueError, match=message):
        Scores.of(logits, target)


def test_concatenate_select_and_means():
    torch.manual_seed(0)
    logits, target = torch.randn(10, 4), torch.randint(4, (10,))
    whole = Scores.of(logits, target)
    parts = Scores.concatenate([Scores.of(logits[:3], target[:3]), Scores.of(logits[3:], target[3:].int())])
    odd = parts.select(torch.arange(10) % 2 == 1)
    for name in ("loss", "margin", "correct", "label"):
        assert torch.equal(getattr(parts, name), getattr(whole, name))
        assert getattr(odd, name).tolist() == getattr(whole, name).tolist()[1::2]
    assert (len(parts), len(odd)) == (10, 5)
    right = [int(row.argmax() == label) for row, label in zip(logits.numpy(), target.numpy(), strict=True)]
    assert whole.accuracy == pytest.approx(sum(right) / 10)
    assert whole.mean_loss == pytest.approx(loss_oracle(margin_oracle(logits, target)).mean(), rel=1e-6)


def test_no_examples():
    nothing = Scores.concatenate([])
    assert (len(nothing), nothing.label.dtype, nothing.correct.dtype) == (0, torch.int64, torch.bool)
    for mean in ("accuracy", "mean_loss"):
        with pytest.raises(ValueError, match="no example"):
            getattr(nothing, mean)


def test_scores_hold_no_graph():
    logits = torch.randn(2, 3, requires_grad=True)
    scores = Scores.of(logits, torch.tensor([0, 1]))
    assert not scores.loss.requires_grad
    assert not scores.margin.requires_grad


def test_columns_of_different_length_are_refused():
    one, two = torch.zeros(1), torch.zeros(2)
    with pytest.raises(ValueError, match="columns of one length, got"):
        Scores(two, two, one.bool(), two.long())
    with pytest.raises(ValueError, match="columns of one length"):
        Scores(*[torch.zeros(2, 1)] * 4)
