"""A membership attack that is trained on models whose members are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor
from torch.nn.functional import one_hot


@dataclass(frozen=True)
class TrainedAttack:
    """Gradient-boosted trees on a model's softmax and the one-hot label of a sample; they say whether the model was trained on it.

    The attack of the PGU paper's evaluation (Hoang et al., WACV 2024). It knows the forget set and has models of both kinds, so it is
    stronger than a threshold on the loss; it is still one attack for all samples.

    Attributes:
        trees: The fitted classifier; class 1 is "member".
    """

    trees: HistGradientBoostingClassifier

    @classmethod
    def fit(cls, trained: Sequence[Tensor], retrained: Sequence[Tensor], label: Tensor) -> TrainedAttack:
        """Train on the answers of several models to the same samples.

        Args:
            trained: Probabilities, (samples, classes), of each model that was trained on the samples.
            retrained: The same of each model that was not.
            label: Labels of the samples, (samples,).

        Raises:
            ValueError: If there is no model of one kind.

        Example:
            >>> sure, unsure = torch.tensor([[0.99, 0.01]] * 40), torch.tensor([[0.6, 0.4]] * 40)
            >>> attack = TrainedAttack.fit([sure], [unsure], torch.zeros(40, dtype=torch.int64))
            >>> attack.called_members(sure, torch.zeros(40, dtype=torch.int64))
            1.0
        """
        if not trained or not retrained:
            raise ValueError(
                f"The attack is trained on models of both kinds, got {len(trained)} originals and {len(retrained)} retrained ones."
            )
        inputs = np.concatenate([_features(probabilities, label) for probabilities in (*trained, *retrained)])
        is_member = np.repeat([1, 0], [len(trained) * len(label), len(retrained) * len(label)])
        return cls(HistGradientBoostingClassifier(random_state=0).fit(inputs, is_member))

    def called_members(self, probabilities: Tensor, label: Tensor) -> float:
        """Share of the samples that the attack takes for members of a model's training set.

        Args:
            probabilities: Of the model, (samples, classes).
            label: Labels of the samples, (samples,).
        """
        return float(self.trees.predict(_features(probabilities, label)).mean())


def _features(probabilities: Tensor, label: Tensor) -> np.ndarray:
    return torch.cat([probabilities, one_hot(label, probabilities.shape[1])], dim=1).numpy()
