"""Unlearning without Lightning: objective, guard, step length and stop rule, and the best weights so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F  # noqa: N812

from pgu_lightning import distributed
from pgu_lightning.evaluation.scores import Scores
from pgu_lightning.objectives import Known, anchor
from pgu_lightning.projection import UpdateGuard
from pgu_lightning.projection.guard import Update
from pgu_lightning.records import CurvePoint, Outcome
from pgu_lightning.requests import Kind
from pgu_lightning.settings import Settings
from pgu_lightning.stopping import Decision, Epoch

Outputs = Callable[[Any], tuple[Tensor, Tensor]]
ROUNDED = (
    "The weights are in half precision: rounding alone takes the change out of the subspace, and interference is what it was before "
    'rounding. Unlearn with precision="32-true" or "bf16-mixed".'
)
_NEXT = {
    False: "Allow more epochs, or give retained data to go on with, `repair=`; if that does not help, train again on the retained data.",
    True: "Give more retained data to repair it with; if that does not help, train again on the retained data.",
}  # by whether it was repaired
_Pending = tuple[Callable[[], tuple[Tensor, Tensor]], Tensor]  # a batch of the step to come: what computes its losses again, its loss now


def parabola_minimum(before: float, after: float, slope: float, radius: float) -> float:
    """Where the parabola through a loss, its slope and one more value is lowest, within ``[0, radius]``.

    Args:
        before: Loss at 0.
        after: Loss at ``radius``.
        slope: Derivative at 0, negative.
        radius: Largest step.

    Example:
        >>> parabola_minimum(before=1.0, after=1.0, slope=-4.0, radius=2.0)
        1.0
    """
    curvature = 2 * (after - before - slope * radius) / radius**2
    return min(-slope / curvature, radius) if curvature > 0 else radius


class Unlearner:
    """Turns batches into losses, and optimizer steps into allowed ones, until the stop rule is met.

    Call ``start``; in each epoch ``loss`` for each batch, ``check_gradients`` before and ``after_step`` after each optimizer step, and
    ``end_epoch``; at the end ``finish``.

    Args:
        settings: The algorithm.
        kind: Kind of the request.
        guard: On the weights that may move.
        outputs: Maps a batch to logits (rows, classes) and labels (rows,).
        gone: The labels that a class request takes away.
        corrected: The right label of each forget sample, which is learnt beside the forget objective; None where they are not known.
        own_loss: The module's own forget loss; where it returns None the objective decides.
        autocast: Precision context for the extra forward pass.

    Attributes:
        guard: As given.
        history: The original and the model after each epoch.
        kept: Index in ``history`` of the weights that ``finish`` left.
        repaired_with: Number of retained samples since ``release``; 0 before.
    """

    def __init__(
        self,
        settings: Settings,
        kind: Kind,
        guard: UpdateGuard,
        outputs: Outputs,
        gone: tuple[int, ...] = (),
        corrected: Tensor | None = None,
        own_loss: Callable[[Tensor, Tensor], Tensor | None] = lambda logits, target: None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.guard = guard
        self.history: list[Epoch] = []
        self.kept = self.repaired_with = 0
        self._settings = settings
        self._objective, self._stop, self._anchor = settings.objective_for(kind), settings.stop_for(kind), settings.anchor_for(kind)
        self._outputs, self._gone, self._corrected, self._own_loss, self._autocast = outputs, gone, corrected, own_loss, autocast
        self._radius = settings.trust_radius
        self._pending: list[_Pending] = []
        self._losses: list[float] = []  # forget losses of this epoch
        self._steps = self._skipped = 0
        self._gradients_are_finite = True
        self._met: Decision | None = None  # the stop rule was met, and a further goal was set
        self._best: tuple[float, int, Mapping[str, Mapping[str, Tensor]]] | None = None

    def start(
        self,
        forget: Scores,
        validation: Scores | None,
        num_classes: int,
        earlier: Scores | None = None,
        corrected_accuracy: float | None = None,
        probabilities: Tensor | None = None,
        training: Sequence[float] = (),
    ) -> None:
        """Take down where the original model stands.

        Args:
            forget: Scores on the forget set.
            validation: Scores on validation data, or None.
            num_classes: The number of logits.
            earlier: Scores on what earlier requests took, or None.
            corrected_accuracy: Share of the forget set that gets its corrected label, or None.
            probabilities: Answers to validation data, (samples, classes), or None.
            training: Quantiles of the margins on training data, where they are known.

        Raises:
            ValueError: If objective or stop rule need validation data and there is none, or a corrected label is no class of the model.
        """
        if self._corrected is not None and int(self._corrected.max()) >= num_classes:
            wrong = self._corrected[self._corrected >= num_classes].unique().tolist()
            raise ValueError(
                f"corrected= has the labels {wrong[:10]}, and the model has {num_classes} classes, from 0 on. Correct the list."
            )
        self._objective.prepare(Known(validation, probabilities, training))
        self._objective.look(forget)
        aim = self._objective.aim
        self.history = [Epoch(0, forget, validation, num_classes, None, 0.0, self._gone, earlier, corrected_accuracy, aim)]
        self._stop(self.history)  # raises now if it lacks what it needs
        self._remember()

    def loss(self, forget: Any, validation: Any | None, samples: Tensor, retain: Any | None = None) -> Tensor:
        """The loss of one batch: the forget objective and the anchor, scaled so that averaging over processes gives the global mean.

        Args:
            forget: A batch of the forget set.
            validation: A batch of validation data for the anchor, or None.
            samples: Positions of the batch's samples in the forget set.
            retain: A batch of retained samples, whose cross entropy is added, or None.
        """
        original = None
        if validation is not None:
            with torch.no_grad(), self.guard.at_original():
                original, _ = self._outputs(validation)
        evaluate = partial(self._loss, forget, validation, original, samples, retain)
        total, forget_loss = evaluate()
        self._pending.append((evaluate, total.detach()))
        self._losses.append(float(distributed.mean(forget_loss)))
        return total

    def forget_loss(self, forget: Any, samples: Tensor) -> Tensor:
        """The loss of one batch of the forget set without the anchor; arguments and scale as for ``loss``."""
        return self._forget_losses(forget, samples)[0]

    def _forget_losses(self, forget: Any, samples: Tensor) -> tuple[Tensor, Tensor]:
        """The forget objective with what corrected labels add, and alone: how far forgetting is."""
        logits, target = self._outputs(forget)
        own, share = self._own_loss(logits, target), distributed.share(len(target), logits)
        objective = (self._objective(logits, target, samples) if own is None else own) * share
        if self._corrected is None:
            return objective, objective.detach()
        learnt = F.cross_entropy(logits.float(), self._corrected[samples.cpu()].to(target)) * share
        return objective + self._settings.correction * learnt, objective.detach()

    def _loss(
        self, forget: Any, validation: Any | None, original: Tensor | None, samples: Tensor, retain: Any | None
    ) -> tuple[Tensor, Tensor]:
        loss, objective = self._forget_losses(forget, samples)
        if retain is not None:
            logits, target = self._outputs(retain)
            loss = loss + F.cross_entropy(logits.float(), target) * distributed.share(len(target), logits)
        if original is None:
            return loss, objective
        logits, target = self._outputs(validation)
        kept, rows = anchor(logits, original, target, self._gone)
        return loss + self._anchor * distributed.share(rows, logits) * kept, objective

    def check_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Called before the optimizer's step: a gradient that is not finite makes it a step that is skipped."""
        self._steps += 1
        gradients = [distributed.local(parameter.grad) for parameter in parameters if parameter.grad is not None]
        finite = bool(torch.stack([gradient.isfinite().all() for gradient in gradients]).all()) if gradients else True
        self._gradients_are_finite = distributed.everywhere(finite)
        if not self._gradients_are_finite:
            self._skipped += 1
            # A gradient scaler leaves the step out altogether: what is remembered of it must go now.
            self._pending = []
            for gradient in gradients:
                gradient.zero_()

    def after_step(self) -> None:
        """Called after the optimizer's step: filter what it did, choose the length, write it back."""
        pending, self._pending = self._pending, []
        update, known = self.guard.proposal()
        if not self._gradients_are_finite:
            return
        length = self._length(update, known, pending)
        if length is None:
            self._skipped += 1
        else:
            self.guard.commit(update, length)

    def _length(self, update: Update, known: Mapping[str, Tensor], pending: list[_Pending]) -> float | None:
        longest = self.guard.longest(update)
        if not 0 < longest < math.inf:
            return None
        if self._radius is None:
            return 1.0
        relative = self.guard.relative(update, known)
        if not math.isfinite(relative):
            return None
        # Where (almost) nothing interferes, the radius says nothing: no step is longer than the weights themselves.
        radius = min(self._radius / math.sqrt(relative), longest) if relative > 0 else longest
        slope = self.guard.gradient_product(update)
        if slope >= 0:
            return 0.0
        before = distributed.mean(torch.stack([loss for _, loss in pending]).mean())
        with torch.no_grad(), self._autocast(), self.guard.moved(update, radius):
            after = distributed.mean(torch.stack([evaluate()[0] for evaluate, _ in pending]).mean())
        return parabola_minimum(float(before), float(after), slope, radius) if bool(after.isfinite()) else None

    def end_epoch(
        self, forget: Scores, validation: Scores | None, earlier: Scores | None = None, corrected_accuracy: float | None = None
    ) -> Decision | None:
        """Take down where the model stands, and decide.

        Args:
            forget: Scores on the forget set.
            validation: Scores on validation data, or None.
            earlier: Scores on what earlier requests took, or None.
            corrected_accuracy: Share of the forget set that gets its corrected label, or None.

        Returns:
            Why to stop, or None to go on.
        """
        losses, self._losses = self._losses, []
        return self._follow(
            Epoch(
                step=self._steps,
                forget=forget,
                validation=validation,
                num_classes=self.history[0].num_classes,
                objective=sum(losses) / len(losses) if losses else None,
                interference=self.guard.total_interference,
                gone=self._gone,
                earlier=earlier,
                corrected_accuracy=corrected_accuracy,
                aim=self._objective.aim,
            )
        )

    def _follow(self, epoch: Epoch) -> Decision | None:
        self._objective.look(epoch.forget)
        self.history.append(epoch)
        self._remember()
        decision = self._stop(self.history)
        if decision is not None and decision.refine and self._objective.refine(epoch.forget, epoch.alike):
            self._met = decision
            return None
        return decision

    def _remember(self) -> None:
        distance = self._stop.distance(self.history[-1])
        if self._best is None or distance <= self._best[0]:
            self._best = (distance, len(self.history) - 1, self.guard.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as tensors and plain values. What the objective and the stop rule know follows from the history."""
        return {
            "guard": self.guard.state_dict(),
            "best": self._best,
            "history": [epoch.plain() for epoch in self.history],
            "losses": list(self._losses),
            "steps": self._steps,
            "skipped": self._skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Decision | None:
        """After ``start``: go to a state that ``state_dict`` gave, leading objective and stop rule through the same history again.

        Returns:
            What ``end_epoch`` returned last.

        Raises:
            ValueError: If it was taken with another forget set, or of other layers.
        """
        first, *later = map(Epoch.of, state["history"])
        theirs, ours = first.forget.margin, self.history[0].forget.margin
        # Loose enough for another device; other samples are further away.
        if len(theirs) != len(ours) or not torch.allclose(theirs, ours, rtol=0.05, atol=0.05):
            raise ValueError(
                "The forget set is not the one of the checkpoint: the original model's answers on it are others. Give the same data in the "
                "same order, or start again from the trained model."
            )
        self.guard.load_state_dict(state["guard"])
        self.history, decision = [first], None
        for epoch in later:
            decision = self._follow(epoch)
        self._best, self._losses = state["best"], list(state["losses"])
        self._steps, self._skipped = state["steps"], state["skipped"]
        return decision

    def release(self, samples: int, radius: float) -> None:
        """After ``finish``: let steps pass unprojected from now on, since so many retained samples stand for their statistics.

        Args:
            samples: How many.
            radius: Of these steps, as ``Settings.trust_radius``.
        """
        self.guard.release()
        self.repaired_with, self._radius = samples, radius

    def finish(self, decision: Decision | None) -> Outcome:
        """Leave the model with the weights to keep, and say how it ended.

        Args:
            decision: The stop rule's; None if it was not met before the epochs ran out.
        """
        if decision is None and self._met is not None:
            decision = replace(self._met, reason=f"{self._met.reason}; the epochs ran out before the membership trace was gone too")
        self.kept = len(self.history) - 1
        if self._best is not None and (decision is None or decision.best):
            self.kept = self._best[1]
            self.guard.load_state_dict(self._best[2])
        fulfilled = decision is not None and decision.fulfilled and self.kept > 0
        reason = decision.reason if decision else "the epochs ran out before the stop rule was met"
        return Outcome(fulfilled, reason, len(self.history) - 1, self._steps, self._skipped, tuple(self._notes(self.kept, fulfilled)))

    def _notes(self, kept: int, fulfilled: bool) -> Iterable[str]:
        before, after = self.history[0], self.history[kept]
        if kept != len(self.history) - 1:
            yield (
                f"The weights after epoch {kept} are kept: of {len(self.history) - 1} epochs they are nearest to the goal."
                if kept
                else ("No epoch came nearer to the goal than the original: the weights are unchanged.")
            )
        if self.repaired_with:
            yield (
                "Without retained data the stop rule was not met. The model was then repaired with "
                f"{self.repaired_with:,} retained samples, unprojected."
            )
        if not fulfilled:
            yield f"The request is not fulfilled. {_NEXT[bool(self.repaired_with)]}"
        if before.validation is None:
            yield "There was no validation data: no anchor held the answers, and what forgetting cost was not watched."
        if before.kept is not None and after.kept is not None and (lost := before.kept.accuracy - after.kept.accuracy) > 0:
            of = len(after.kept)
            yield f"Validation accuracy on what should still work fell by {lost:.3f}, {round(lost * of):,} of {of:,} samples."
        if self.guard.rounds:
            yield ROUNDED
        if self._skipped:
            yield f"{self._skipped} of {self._steps} steps were skipped: their gradients were not finite."

    @property
    def curve(self) -> tuple[CurvePoint, ...]:
        """The history as records."""
        return tuple(
            CurvePoint(
                step=epoch.step,
                forget_accuracy=epoch.forget.accuracy,
                forget_loss=epoch.forget.mean_loss,
                validation_accuracy=epoch.kept.accuracy if epoch.kept else None,
                validation_loss=epoch.kept.mean_loss if epoch.kept else None,
                mia_auc=epoch.auc,
                objective=epoch.objective,
                interference=epoch.interference,
                earlier_accuracy=epoch.earlier.accuracy if epoch.earlier else None,
                corrected_accuracy=epoch.corrected_accuracy,
            )
            for epoch in self.history
        )
