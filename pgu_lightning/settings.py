"""What belongs to the algorithm, as one value."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch.nn import Parameter
from torch.optim import SGD, Optimizer

from pgu_lightning.objectives import Calibrated, GoneClasses, Objective, WrongLabels
from pgu_lightning.projection import Hard, Rule, Scale, Soft
from pgu_lightning.requests import Kind
from pgu_lightning.stopping import AccuracyGap, Forgotten, StopRule


def _default_objectives() -> dict[Kind, Objective]:
    return {"class": GoneClasses(), "samples": Calibrated(), "poison": WrongLabels()}


def _default_stops() -> dict[Kind, StopRule]:
    return {"class": Forgotten(loss=0.1), "samples": AccuracyGap(slack=0.02, loss=0.03), "poison": Forgotten(slack=0.005)}


def _unit_step(parameters: Iterable[Parameter]) -> Optimizer:
    return SGD(parameters, lr=1.0)


def _default_anchors() -> dict[Kind, float]:
    # The answers of a poisoned model are partly what has to go: holding on to them is held back.
    return {"class": 20.0, "samples": 20.0, "poison": 5.0}


def _default_balance() -> dict[Kind, bool]:
    # A class goes with what the early layers know of it; balanced steps leave these alone.
    return {"class": False, "samples": True, "poison": True}


@dataclass(frozen=True)
class Settings:
    """What belongs to the algorithm. The defaults need no tuning: objective and stop rule follow the kind of the request.

    Attributes:
        rule: Which directions pass.
        layer_rules: Another rule for the layers whose names fit a shell pattern; the first that fits counts.
        objective: The forget loss, one for all requests or one a kind.
        stop: The stop rule, likewise.
        correction: Weight of the cross entropy to the corrected labels beside the objective, where the request gives them.
        anchor: Weight of KL(original || present) on validation inputs, one for all requests or one a kind; none without validation data,
            nor beside corrected labels, which say better what the answers shall be.
        trust_radius: Interference of one step, as the square root of the relative squared change of the response to the retained data; the
            step's length is the minimum of a parabola through one extra forward pass, within this radius. None: the optimizer's own step
            length.
        balanced: Weigh the layers against each other so that the whole step forgets most for its interference, for all requests or by
            kind; only within a trust radius.
        scale: Learn a scale inside the retained space (as published for poison), for all requests or by kind; only with ``Hard`` rules,
            whose protected directions it moves in. None: nothing moves there.
        bias: ``"augment"`` moves biases too: a layer's matrix is [W | b], inputs end in a one, the rule is the same. ``"frozen"``: none.
        optimizer: Made of what moves.
        scheduler: Made of the optimizer; steps once an epoch.
        batch_size: Largest number of forget samples in a step, over all processes.
        dropout: Keep dropout active while unlearning (as in the published code).
        preflight: Look first at what the projection leaves of the forget gradient, and refuse what cannot work; ``"only"`` ends there, with
            nothing changed.
        gram_place: Where the statistics are summed: ``"device"``, ``"cpu"`` (slower, for large layers), or None: on the device as far as
            they fit.
        samples: Collect from this share of the samples, chosen by their position in the dataset; None: from all, which is exact. What a
            forget set is subtracted from says itself which of its samples it has.
    """

    rule: Rule = field(default_factory=Soft)
    layer_rules: Mapping[str, Rule] = field(default_factory=dict)
    objective: Objective | Mapping[Kind, Objective] = field(default_factory=_default_objectives)
    stop: StopRule | Mapping[Kind, StopRule] = field(default_factory=_default_stops)
    correction: float = 1.0
    anchor: float | Mapping[Kind, float] = field(default_factory=_default_anchors)
    trust_radius: float | None = 0.01
    balanced: bool | Mapping[Kind, bool] = field(default_factory=_default_balance)
    scale: Scale | Mapping[Kind, Scale | None] | None = None
    bias: Literal["frozen", "augment"] = "frozen"
    optimizer: Callable[[Iterable[Parameter]], Optimizer] = _unit_step
    scheduler: Callable[[Optimizer], Any] | None = None
    batch_size: int = 250
    dropout: bool = False
    preflight: bool | Literal["only"] = True
    gram_place: Literal["device", "cpu"] | None = None
    samples: float | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        anchors = self.anchor.values() if isinstance(self.anchor, Mapping) else [self.anchor]
        if min(anchors) < 0:
            raise ValueError(f"anchor must not be negative, got {self.anchor}")
        if self.correction < 0:
            raise ValueError(f"correction must not be negative, got {self.correction}")
        if self.trust_radius is not None and not self.trust_radius > 0:
            raise ValueError(f"trust_radius must be above 0 or None, got {self.trust_radius}")
        if self.bias not in ("frozen", "augment"):
            raise ValueError(f'bias must be "frozen" or "augment", got {self.bias!r}')
        scales = any(self.scale.values() if isinstance(self.scale, Mapping) else [self.scale])
        if scales and self.bias == "augment":
            raise ValueError('A scale is of weights alone: choose bias="frozen", or scale=None.')
        soft = [rule for rule in (self.rule, *self.layer_rules.values()) if not isinstance(rule, Hard)]
        if soft and scales:
            raise ValueError(f"A scale moves inside what a hard rule protects, and a rule is {soft[0]!r}: choose Hard(...), or scale=None.")
        if self.preflight not in (True, False, "only"):
            raise ValueError(f'preflight must be True, False or "only", got {self.preflight!r}')
        if self.gram_place not in ("device", "cpu", None):
            raise ValueError(f'gram_place must be "device", "cpu" or None, got {self.gram_place!r}')
        if self.samples is not None and not 0 < self.samples <= 1:
            raise ValueError(f"samples must be a share above 0 and at most 1, or None, got {self.samples}")

    def rule_for(self, layer: str) -> Rule:
        """The rule for the layer of this name."""
        return next((rule for pattern, rule in self.layer_rules.items() if fnmatchcase(layer, pattern)), self.rule)

    def balanced_for(self, kind: Kind) -> bool:
        """Whether layers are weighed against each other for this kind of request."""
        return self.trust_radius is not None and (self.balanced[kind] if isinstance(self.balanced, Mapping) else self.balanced)

    def scale_for(self, kind: Kind) -> Scale | None:
        """The scale for this kind of request."""
        return self.scale[kind] if isinstance(self.scale, Mapping) else self.scale

    def anchor_for(self, kind: Kind) -> float:
        """The weight of the anchor for this kind of request."""
        return self.anchor[kind] if isinstance(self.anchor, Mapping) else self.anchor

    def objective_for(self, kind: Kind) -> Objective:
        """A fresh objective for this kind of request."""
        return copy.deepcopy(self.objective[kind] if isinstance(self.objective, Mapping) else self.objective)

    def stop_for(self, kind: Kind) -> StopRule:
        """The stop rule for this kind of request."""
        return self.stop[kind] if isinstance(self.stop, Mapping) else self.stop
