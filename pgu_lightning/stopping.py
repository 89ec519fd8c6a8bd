"""When it is enough: a decision and its reason, from forget and validation data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from pgu_lightning.evaluation.membership import auc_standard_error, mia_auc
from pgu_lightning.evaluation.scores import Scores


@dataclass(frozen=True)
class Epoch:
    """The model after one pass over the forget set; the first of a history is the original.

    Attributes:
        step: Optimizer steps so far.
        forget: Scores on the forget set.
        validation: Scores on validation data; None without.
        num_classes: Number of logits.
        objective: Mean forget loss over the pass's steps; None before the first.
        interference: Relative squared change of the response to the retained data.
        gone: The labels that a class request takes away.
        earlier: Scores on what earlier requests took; None where there is nothing of it at hand.
        corrected_accuracy: Share of the forget set that gets its corrected label; None where the request gives none.
        aim: The forget accuracy that the objective leads to; None where it does not say.
    """

    step: int
    forget: Scores
    validation: Scores | None
    num_classes: int
    objective: float | None = None
    interference: float = 0.0
    gone: tuple[int, ...] = ()
    earlier: Scores | None = None
    corrected_accuracy: float | None = None
    aim: float | None = None

    def plain(self) -> dict[str, Any]:
        """As tensors and plain values."""
        return {name: dict(vars(value)) if isinstance(value, Scores) else value for name, value in vars(self).items()}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Epoch:
        """From what ``plain`` gave."""
        parts: dict[str, Any] = {name: Scores(**value) if isinstance(value, dict) else value for name, value in values.items()}
        return cls(**parts)

    @property
    def requested(self) -> Scores:
        """The forget set with what earlier requests took."""
        return self.forget if self.earlier is None else Scores.concatenate([self.forget, self.earlier])

    @property
    def kept(self) -> Scores | None:
        """Validation samples that should still work."""
        return self._validation(gone=False)

    @property
    def alike(self) -> Scores | None:
        """Validation samples of the same kind as the forget set: of the gone classes, or else all."""
        return self._validation(gone=True) if self.gone else self.validation

    @property
    def auc(self) -> float | None:
        """Membership AUC of the forget set against validation samples of the same kind."""
        return None if self.alike is None else mia_auc(self.forget, self.alike)

    def _validation(self, gone: bool) -> Scores | None:
        if self.validation is None:
            return None
        chosen = self.validation.select(torch.isin(self.validation.label, torch.tensor(self.gone, dtype=torch.int64)) == gone)
        return chosen if len(chosen) else None


@dataclass(frozen=True)
class Decision:
    """To stop, and why.

    Attributes:
        reason: In words.
        fulfilled: Whether the request is fulfilled.
        best: Keep the weights nearest to the goal instead of the last ones.
        refine: Ask the objective for a further goal first, and go on if it has one.
    """

    reason: str
    fulfilled: bool
    best: bool = False
    refine: bool = False


class StopRule(Protocol):
    """``_target_`` in a config may name any class with these two methods."""

    def __call__(self, history: Sequence[Epoch]) -> Decision | None:
        """Look at all epochs so far; None goes on."""

    def distance(self, epoch: Epoch) -> float:
        """How far from the goal: if it is not reached, the weights of the epoch with the smallest distance are kept."""


@dataclass(frozen=True)
class AccuracyGap:
    """Samples: the forget set does no better than data that was never seen, by validation accuracy or as the objective aims.

    Attributes:
        slack: How much better it may do.
        loss: The forget loss must have fallen below this too. None: accuracy alone decides, and of the epochs the one with the smallest
            gap is kept (the published rule).
        all_requests: Count what earlier requests took to the forget set (as published).
    """

    slack: float = 0.0
    loss: float | None = None
    all_requests: bool = False

    def __call__(self, history: Sequence[Epoch]) -> Decision | None:
        """Compare the last epoch's accuracies."""
        now = history[-1]
        if now.validation is None:
            raise ValueError("AccuracyGap compares the forget set with validation data: give the trainer a validation loader.")
        forget, unseen = now.requested if self.all_requests else now.forget, _unseen(now)
        if forget.accuracy > unseen + self.slack or (self.loss is not None and not _below(now, self.loss)):
            return None
        aim = f"validation accuracy {unseen:.3f}" if now.aim is None else f"the {unseen:.3f} that data as hard would have, never seen"
        reason = f"forget accuracy {forget.accuracy:.3f} is down to {aim}"
        return Decision(reason, fulfilled=True, best=self.loss is None)

    def distance(self, epoch: Epoch) -> float:
        """The gap between the two accuracies."""
        forget = (epoch.requested if self.all_requests else epoch.forget).accuracy
        return abs(forget - _unseen(epoch)) if epoch.validation else forget


@dataclass(frozen=True)
class Forgotten:
    """Class and poison: the forget set's labels are given no more often than errors would give them.

    For a class that is never; for a wrong label (1 - validation accuracy) / (classes - 1). Where the right labels are learnt meanwhile it
    goes on for as long as that raises validation accuracy, and keeps the epoch where it was highest: what comes after is learnt by heart.

    Attributes:
        loss: The forget loss must have fallen below this too.
        slack: How much more often a wrong label may be given.
        patience: With corrected labels: so many epochs without a higher validation accuracy are the end.
    """

    loss: float = 0.02
    slack: float = 0.0
    patience: int = 3

    def __call__(self, history: Sequence[Epoch]) -> Decision | None:
        """Look at the last epoch; with corrected labels at all since the labels were forgotten."""
        now = history[-1]
        if now.corrected_accuracy is not None and now.validation is not None:
            return self._highest(history)
        if not self._met(now):
            return None
        return Decision(f"forget accuracy {now.forget.accuracy:.3f} is at most {self._allowed(now):.3f}", fulfilled=True, refine=True)

    def _highest(self, history: Sequence[Epoch]) -> Decision | None:
        distances = [self.distance(epoch) for epoch in history]
        best = history[min(range(len(history)), key=lambda place: (distances[place], -place))]  # of equals the last, which is what is kept
        if not self._met(best) or len(history) - 1 - distances.index(min(distances)) < self.patience:
            return None
        accuracy = best.validation.accuracy if best.validation is not None else 0.0
        reason = f"forget accuracy {best.forget.accuracy:.3f} is at most {self._allowed(best):.3f}"
        return Decision(f"{reason}, and validation accuracy rises no further than {accuracy:.3f}", fulfilled=True, best=True)

    def _met(self, epoch: Epoch) -> bool:
        return _below(epoch, self.loss) and epoch.forget.accuracy <= self._allowed(epoch)

    def _allowed(self, epoch: Epoch) -> float:
        """How often errors alone would give the labels that are to be forgotten, and the slack."""
        if epoch.gone or epoch.validation is None:
            return 0.0
        return (1 - epoch.validation.accuracy) / (epoch.num_classes - 1) + self.slack

    def distance(self, epoch: Epoch) -> float:
        """The forget accuracy; with corrected labels below 0 where they are forgotten, the further the higher validation accuracy is."""
        if epoch.corrected_accuracy is not None and epoch.validation is not None and self._met(epoch):
            return -1 - epoch.validation.accuracy
        return epoch.forget.accuracy


@dataclass(frozen=True)
class Membership:
    """A loss threshold cannot tell the forget set from validation data.

    Attributes:
        errors: Bound on the AUC, in standard errors above 0.5.
    """

    errors: float = 2.0

    def __call__(self, history: Sequence[Epoch]) -> Decision | None:
        """Look at the last epoch's AUC."""
        now = history[-1]
        if now.auc is None or now.alike is None:
            raise ValueError("Membership compares the forget set with validation data of the same kind: there is none.")
        bound = 0.5 + self.errors * auc_standard_error(len(now.forget), len(now.alike))
        return None if now.auc > bound else Decision(f"membership AUC {now.auc:.3f} is at most {bound:.3f}", fulfilled=True)

    def distance(self, epoch: Epoch) -> float:
        """AUC above 0.5."""
        return max((epoch.auc or 0.5) - 0.5, 0.0)


@dataclass(frozen=True)
class AllowedDrop:
    """Go on until what should still work has lost this much validation accuracy; keep the epoch that forgot most for the least loss.

    Attributes:
        drop: Allowed loss of accuracy, in [0, 1].
    """

    drop: float = 0.05

    def __call__(self, history: Sequence[Epoch]) -> Decision | None:
        """Compare the last epoch with the first."""
        before, now = history[0].kept, history[-1].kept
        if before is None or now is None:
            raise ValueError("AllowedDrop watches validation accuracy: give the trainer a validation loader.")
        if before.accuracy - now.accuracy < self.drop:
            return None
        best = min(reversed(history), key=self.distance)  # of equals the last, which is what is kept
        reason = f"validation accuracy fell from {before.accuracy:.3f} to {now.accuracy:.3f}, the allowed drop of {self.drop:g}"
        return Decision(reason, fulfilled=best.forget.accuracy <= 1 / best.num_classes, best=True)

    def distance(self, epoch: Epoch) -> float:
        """Forget accuracy minus the accuracy on what should still work."""
        return epoch.forget.accuracy - (epoch.kept.accuracy if epoch.kept else 0.0)


@dataclass(frozen=True)
class InterferenceBudget:
    """Stop when the response to the retained data has changed this much (relative, squared).

    Attributes:
        limit: Bound on the total interference.
    """

    limit: float

    def __call__(self, history: Sequence[Epoch]) -> Decision | None:
        """Look at the last epoch's interference."""
        now = history[-1].interference
        return (
            None
            if now < self.limit
            else Decision(f"interference {now:.2e} has reached the budget {self.limit:g}", fulfilled=False, best=True)
        )

    def distance(self, epoch: Epoch) -> float:
        """The forget accuracy."""
        return epoch.forget.accuracy


@dataclass(frozen=True)
class Epochs:
    """Stop after so many passes over the forget set.

    Attributes:
        limit: Number of passes.
    """

    limit: int

    def __call__(self, history: Sequence[Epoch]) -> Decision | None:
        """Count."""
        return Decision(f"{self.limit} epochs, as asked", fulfilled=True) if len(history) > self.limit else None

    def distance(self, epoch: Epoch) -> float:
        """Later is nearer."""
        return -epoch.step


@dataclass(frozen=True)
class AnyOf:
    """The first of several rules that says stop; the first one measures the distance.

    Attributes:
        rules: The rules, in order of precedence.
    """

    rules: Sequence[StopRule]

    def __call__(self, history: Sequence[Epoch]) -> Decision | None:
        """Ask one after the other."""
        return next((decision for rule in self.rules if (decision := rule(history)) is not None), None)

    def distance(self, epoch: Epoch) -> float:
        """By the first rule."""
        return self.rules[0].distance(epoch)


def _unseen(epoch: Epoch) -> float:
    """The accuracy to be expected on samples like the forget set's that were never trained on."""
    if epoch.aim is not None:
        return epoch.aim
    return epoch.validation.accuracy if epoch.validation else 0.0


def _below(epoch: Epoch, loss: float) -> bool:
    return epoch.objective is not None and epoch.objective < loss
