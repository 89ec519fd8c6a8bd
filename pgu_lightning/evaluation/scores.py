"""What a model makes of each example, as four columns that every measure is computed from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import softplus


def margin(logits: Tensor, target: Tensor) -> Tensor:
    """The margin z_y - logsumexp_{j != y} z_j = log(p_y / (1 - p_y)), differentiable; half precision is computed in float32.

    Without the detour over p it neither overflows nor loses the digits of a confident answer.

    Args:
        logits: (N, C) with C >= 2.
        target: (N,) labels, whole numbers in [0, C).

    Returns:
        (N,), float32 (float64 for float64 logits).

    Raises:
        ValueError: If the shapes or the type of the labels are others.

    Example:
        >>> margin(torch.tensor([[2.0, 0.5], [1000.0, -1000.0]]), torch.tensor([0, 1]))
        tensor([ 1.5000e+00, -2.0000e+03])
    """
    if logits.ndim != 2 or logits.shape[1] < 2 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"Expected logits (N, C) with at least 2 classes and labels (N,), got {tuple(logits.shape)} and {tuple(target.shape)}. Flatten "
            "sequences and images to one row a prediction, without padding; give a single logit z as the two columns 0 and z."
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise ValueError(f"Expected whole numbers as labels, got {target.dtype}. Take the argmax of one-hot or soft labels first.")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    column = target.long()[:, None]
    others = logits.scatter(1, column, -torch.inf).logsumexp(1)
    return logits.gather(1, column)[:, 0] - others


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model makes of N examples, on the CPU.

    Attributes:
        loss: (N,) float32, cross entropy -log p_y.
        margin: (N,) float32, phi = log(p_y / (1 - p_y)).
        correct: (N,) bool, whether the largest logit is the label's.
        label: (N,) int64.

    Raises:
        ValueError: If the columns do not have one length.

    Example:
        >>> scores = Scores.of(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
        >>> scores.accuracy, round(scores.mean_loss, 3), scores.select(scores.correct).label.tolist()
        (0.5, 0.681, [0])
    """

    loss: Tensor
    margin: Tensor
    correct: Tensor
    label: Tensor

    def __post_init__(self) -> None:
        shapes = {field.name: tuple(getattr(self, field.name).shape) for field in fields(self)}
        if set(shapes.values()) != {(len(self.loss),)}:
            raise ValueError(f"Scores need columns of one length, got {shapes}.")

    @classmethod
    def of(cls, logits: Tensor, target: Tensor) -> Scores:
        """Score a batch.

        Args:
            logits: (N, C) with C >= 2, on any device.
            target: (N,) labels, whole numbers in [0, C).

        Returns:
            The scores, detached.

        Raises:
            ValueError: As for ``margin``, and for labels outside [0, C).
        """
        logits, target = logits.detach().cpu(), target.detach().cpu()
        classes = logits.shape[-1] if logits.ndim == 2 else 0
        outside = target[(target < 0) | (target >= classes)]
        if classes and len(outside):
            raise ValueError(f"Expected labels in [0, {classes}), got {outside.unique()[:10].tolist()}. Leave padding out.")
        phi = margin(logits, target)
        # softplus(-phi) = -log p_y; the usual logsumexp(z) - z_y is 0 for every confident answer and would tie them.
        return cls(softplus(-phi).float(), phi.float(), logits.argmax(1) == target, target.long())

    @classmethod
    def concatenate(cls, parts: Iterable[Scores]) -> Scores:
        """The examples of all ``parts`` one after the other; of none, no examples."""
        empty = cls.of(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
        every = [empty, *parts]
        return cls(*(torch.cat([getattr(part, field.name) for part in every]) for field in fields(cls)))

    def __len__(self) -> int:
        return len(self.loss)

    def select(self, mask: Tensor) -> Scores:
        """The examples where ``mask``, (N,) bool, is true."""
        return Scores(self.loss[mask], self.margin[mask], self.correct[mask], self.label[mask])

    @property
    def accuracy(self) -> float:
        """Share of correct answers.

        Raises:
            ValueError: If there is no example.
        """
        return self._mean(self.correct)

    @property
    def mean_loss(self) -> float:
        """Mean of the losses.

        Raises:
            ValueError: If there is no example.
        """
        return self._mean(self.loss)

    def _mean(self, values: Tensor) -> float:
        if not len(self):
            raise ValueError("There is no example to average over.")
        return values.double().mean().item()
