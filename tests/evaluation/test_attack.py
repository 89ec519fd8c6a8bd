from __future__ import annotations

import numpy as np
import pytest
import torch

from pgu_lightning.evaluation import TrainedAttack

LABEL = torch.arange(200) % 4


def answers(confidence, seed):
    """Probabilities with about so much on the label."""
    rng = np.random.default_rng(seed)
    top = np.clip(confidence + 0.03 * rng.standard_normal(len(LABEL)), 0.02, 0.98)
    rest = np.repeat(((1 - top) / 3)[:, None], 4, axis=1)
    rest[np.arange(len(LABEL)), LABEL.numpy()] = top
    return torch.tensor(rest, dtype=torch.float32)


def test_a_model_that_answers_like_trained_ones_is_told_from_one_that_does_not():
    attack = TrainedAttack.fit([answers(0.9, seed) for seed in range(3)], [answers(0.6, seed) for seed in range(3, 6)], LABEL)
    assert attack.called_members(answers(0.9, 10), LABEL) > 0.97
    assert attack.called_members(answers(0.6, 11), LABEL) < 0.03
    half = torch.cat([answers(0.9, 12)[:100], answers(0.6, 13)[100:]])
    assert attack.called_members(half, LABEL) == pytest.approx(0.5, abs=0.03)


def test_the_label_is_seen():
    """The same confidences on the wrong class: a member of one kind, by the label alone."""
    wrong = LABEL.roll(1)
    trained, retrained = answers(0.9, 0), answers(0.9, 1)[wrong.argsort(stable=True)[LABEL.argsort(stable=True).argsort(stable=True)]]
    attack = TrainedAttack.fit([trained], [retrained], LABEL)
    assert attack.called_members(answers(0.9, 5), LABEL) > 0.97


def test_models_of_one_kind_are_not_enough():
    with pytest.raises(ValueError, match="1 originals and 0 retrained"):
        TrainedAttack.fit([answers(0.9, 0)], [], LABEL)
