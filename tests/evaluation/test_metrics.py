"""A model's figures against plain loops over the samples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, roc_auc_score

from pgu_lightning.evaluation.metrics import estimated_gap, loss_histograms, model_metrics
from pgu_lightning.evaluation.scores import Scores


def random_scores(size, seed, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator) * 3
    return Scores.of(logits, torch.randint(classes, (size,), generator=generator)), logits


def with_losses(*losses):
    loss = torch.tensor(losses)
    return Scores(loss, -loss, loss < 1, torch.zeros(len(losses), dtype=torch.int64))


@given(
    st.integers(0, 12),
    st.none() | st.integers(0, 12),
    st.none() | st.integers(0, 20),
    st.sampled_from([(), (0,), (1, 3), (0, 1, 2, 3)]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=100)
def test_model_metrics(forget_size, retain_size, test_size, gone, seed):
    forget, forget_logits = random_scores(forget_size, seed)
    retain, retain_logits = (None, None) if retain_size is None else random_scores(retain_size, seed + 1)
    test, test_logits = (None, None) if test_size is None else random_scores(test_size, seed + 2)

    def accuracy(scores, logits, rows):
        return accuracy_score([scores.label[row] for row in rows], [int(logits[row].argmax()) for row in rows])

    expected = {}
    if forget_size:
        expected["forget_accuracy"] = accuracy(forget, forget_logits, range(forget_size))
    if retain_size:
        expected["retain_accuracy"] = accuracy(retain, retain_logits, range(retain_size))
    lost = [row for row in range(test_size or 0) if int(test.label[row]) in gone]
    kept = [row for row in range(test_size or 0) if int(test.label[row]) not in gone]
    if kept:
        expected["test_accuracy"] = accuracy(test, test_logits, kept)
    if lost:
        expected["forget_test_accuracy"] = accuracy(test, test_logits, lost)
    same_kind = lost if gone else kept
    if forget_size and same_kind:
        probability = torch.cat([forget_logits, test_logits[same_kind]]).double().log_softmax(1)
        label = torch.cat([forget.label, test.label[same_kind]])
        values = [float(row[y]) for row, y in zip(probability, label, strict=True)]
        expected["mia_auc"] = roc_auc_score([1] * forget_size + [0] * len(same_kind), values)
    assert model_metrics(forget, retain, test, gone) == pytest.approx(expected)


def test_a_diverged_model_has_no_figures():
    with pytest.raises(ValueError, match="has diverged"):
        model_metrics(with_losses(math.nan), None, with_losses(1.0))


def test_histograms():
    scores = {
        "original": {"forget": with_losses(1e-9, 1e-6, 1e-3, 0.5), "test": with_losses(2.0, 1e5, math.inf, math.nan)},
        "unlearned": {"forget": with_losses(1.0)},
    }
    histograms = loss_histograms(scores, bins=8)
    assert {model: list(sets) for model, sets in histograms.items()} == {"original": ["forget", "test"], "unlearned": ["forget"]}
    edges = histograms["original"]["forget"].edges
    assert all(histogram.edges == edges for sets in histograms.values() for histogram in sets.values())
    np.testing.assert_allclose(edges, [10.0**exponent for exponent in range(-6, 3)])
    assert histograms["original"]["forget"].counts == (2, 0, 0, 1, 0, 1, 0, 0)
    assert histograms["original"]["test"].counts == (0, 0, 0, 0, 0, 0, 1, 3)
    assert histograms["unlearned"]["forget"].counts == (0, 0, 0, 0, 0, 0, 1, 0)


@given(st.lists(st.floats(0, 1000, width=32), max_size=30), st.integers(1, 50))
@settings(deadline=None, max_examples=50)
def test_histograms_lose_no_sample(losses, bins):
    histogram = loss_histograms({"original": {"forget": with_losses(*losses)}}, bins)["original"]["forget"]
    assert sum(histogram.counts) == len(losses)
    assert (len(histogram.counts), len(histogram.edges)) == (bins, bins + 1)
    assert list(histogram.edges) == sorted(set(histogram.edges))


def test_no_histograms():
    assert loss_histograms({}) == {}


@given(
    st.integers(1, 12),
    st.integers(0, 20),
    st.sampled_from([(), (0,), (1, 3)]),
    st.sampled_from(["class", "samples", "poison"]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=100)
def test_estimated_gap(forget_size, validation_size, gone, kind, seed):
    forget, forget_logits = random_scores(forget_size, seed)
    before, before_logits = random_scores(validation_size, seed + 1)
    generator = torch.Generator().manual_seed(seed + 2)
    after_logits = torch.randn(validation_size, 4, generator=generator) * 3
    after = Scores.of(after_logits, before.label)

    label = before.label.tolist()
    kept = [row for row in range(validation_size) if label[row] not in gone]
    lost = [row for row in range(validation_size) if label[row] in gone] if gone else list(range(validation_size))
    found = estimated_gap(kind, forget, before, after, gone)
    if not kept:
        assert found is None
        return
    original, unlearned = (np.mean([int(logits[row].argmax()) == label[row] for row in kept]) for logits in (before_logits, after_logits))
    accuracy = np.mean([int(forget_logits[row].argmax()) == int(forget.label[row]) for row in range(forget_size)])
    terms = [abs(accuracy - original) if kind == "samples" else accuracy, max(original - unlearned, 0)]
    if kind != "poison" and lost:
        scores = [-loss for loss in forget.loss.tolist()] + [-after.loss[row].item() for row in lost]
        terms.append(abs(roc_auc_score([1] * forget_size + [0] * len(lost), scores) - 0.5))
    assert found == pytest.approx(np.mean(terms), abs=1e-6)
