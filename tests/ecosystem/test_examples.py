"""Examples with models that others made."""

from __future__ import annotations

import pytest

from tests.helpers.examples import figures, run_example

pytestmark = pytest.mark.ecosystem


def test_timm_model():
    out = run_example("timm_model")
    assert figures(out, "forget_accuracy")[0] > 0.9
    assert figures(out, "forget_accuracy")[1] == 0
    before, after = figures(out, "validation_accuracy")
    assert after > before - 0.02
    assert "54 layers protected, frozen: ['normalisation parameters are not moved']" in out


def test_text_classifier():
    out = run_example("text_classifier")
    before, after = figures(out, "forget_accuracy")
    assert after < before
    assert figures(out, "validation_accuracy")[1] > 0.95
    assert "that data as hard would have, never seen" in out


def test_pretrained_encoder():
    out = run_example("pretrained_encoder")
    before, after = figures(out, "forget_accuracy")
    assert before > 0.9
    assert after < 0.1
    assert figures(out, "validation_accuracy")[1] > 0.9
    assert "8 layers may move" in out


def test_causal_lm():
    out = run_example("causal_lm")
    forgotten, others = (line for line in out.splitlines() if "digits right" in line)
    before, after = map(float, forgotten.split("right ")[1].split(" -> "))
    assert before > 0.9
    assert after < 0.25
    assert float(others.split("-> ")[1]) > 0.85
    assert "'model.lm_head': 'its weight is tied" in out


def test_image_folder(tmp_path):
    out = run_example("image_folder", tmp_path)
    before, after = figures(out, "forget_accuracy")
    assert after < before
    kept_before, kept_after = figures(out, "validation_accuracy")
    assert kept_before > 0.85
    assert kept_after > kept_before - 0.1, (kept_before, kept_after)  # a small set: it falls by .06
    assert "30 pictures: forget accuracy" in out
