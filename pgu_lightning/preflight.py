"""Before anything is changed: what the projection leaves of the forget gradient, what a step will cost, and what speaks against it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from pgu_lightning.evaluation.scores import Scores
from pgu_lightning.projection import UpdateGuard
from pgu_lightning.projection.guard import Update
from pgu_lightning.records import Preflight, PreflightLayer
from pgu_lightning.requests import Kind
from pgu_lightning.settings import Settings
from pgu_lightning.stopping import Epoch

SAMPLES = 2000
"""So many forget samples are looked at, at most."""

_ROUNDING = 1e-6  # of a gradient in protected directions alone a float32 projection leaves 4e-7 (64 rows of 27 to 2,304 inputs)
# Right statistics clamp at most .001; with the forget set collected at other weights .06 to .19 of two toy layers' mass went. Few
# samples of other data clamp next to nothing where the retained data fills every direction: that is not noticed here.
_CLAMPED = 0.02
_VALIDATION = 100
# Statistics of a model whose response has since moved by its own size describe another model.
_DRIFT_TO_WARN, _DRIFT_TO_REFUSE = 0.25, 1.0
_CLAMPED_TO_REFUSE = 0.25


def chosen(size: int) -> Tensor:
    """Positions of the forget samples to look at, evenly over all of them, ascending.

    Example:
        >>> chosen(3).tolist(), len(chosen(10_000))
        ([0, 1, 2], 2000)
    """
    return torch.arange(min(size, SAMPLES)) * size // min(size, SAMPLES)


def what_survives(gradient: Update, guard: UpdateGuard, radius: float | None) -> Preflight:
    """The figures of a preflight: a function of the gradient and of what guards the weights.

    The first step is D = -s G P, the anchor having no gradient there yet. At its longest its interference, sum tr(D M D^T) / sum
    tr(W M W^T), is ``radius`` squared, or less where D would be longer than the weights themselves.

    Args:
        gradient: Of the forget loss, by layer name, in the weights' shapes.
        guard: On weights that have not moved.
        radius: Largest square root of a step's interference; None: the optimizer sets the length.

    Example:
        >>> from torch import nn
        >>> from pgu_lightning.projection import Hard, Projector, Spectrum
        >>> from pgu_lightning.statistics import Gram
        >>> spectrum = Spectrum.of(Gram(torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))[None], rows=5))
        >>> guard = UpdateGuard({"fc": nn.Linear(3, 1)}, {"fc": Projector(spectrum, Hard(0.8))}, {"fc": spectrum.matrix})
        >>> found = what_survives({"fc": torch.tensor([[12.0, 3.0, 4.0]])}, guard, radius=0.01)
        >>> round(found.layers["fc"].survives, 3), found.layers["fc"].free, round(found.interference, 6)
        (0.385, 2, 0.0001)
    """
    step = {name: part.detach().clone() for name, part in gradient.items()}
    guard.filter_(step)
    before, after = guard.squares(gradient), guard.squares(step)
    guard.balance_(step)
    responses = guard.response(step)
    moved = sum(responses.values())
    layers = {
        name: PreflightLayer(
            dim=projector.dim,
            free=projector.free,
            survives=_root(after[name], before[name]),
            share=responses[name] / moved if moved > 0 and math.isfinite(moved) else None,
            clamped=projector.clamped,
        )
        for name, projector in guard.projectors.items()
    }
    survives = _root(sum(after.values()), sum(before.values()))
    relative, interference = guard.relative(step), None
    if radius is not None and math.isfinite(relative):
        interference = min(radius**2, relative * guard.longest(step) ** 2)
    return Preflight(layers, 0, survives, interference)


def _root(part: float, whole: float) -> float | None:
    """sqrt(part / whole); None where there is no (finite) whole."""
    return math.sqrt(part / whole) if whole > 0 and math.isfinite(whole) else None


def accuracy_error(validation: Scores) -> float:
    """Standard error of an accuracy a over n samples, sqrt(a (1 - a) / n).

    Example:
        >>> scores = Scores.of(torch.tensor([[1.0, 0.0]]).repeat(100, 1), torch.tensor([0] * 90 + [1] * 10))
        >>> round(accuracy_error(scores), 3)
        0.03
    """
    return math.sqrt(validation.accuracy * (1 - validation.accuracy) / len(validation))


def advise(found: Preflight, kind: Kind, settings: Settings, start: Epoch, drift: float = 0.0) -> Preflight:
    """Add what follows from the figures, and from the data that there is to judge by.

    Args:
        found: The figures.
        kind: Of the request.
        settings: The algorithm.
        start: The original model's scores.
        drift: ``RetainSpace.drift``.

    Returns:
        The figures with the standard error, the warnings, and perhaps a refusal.
    """
    return Preflight(
        layers=found.layers,
        samples=min(len(start.forget), SAMPLES),
        survives=found.survives,
        interference=found.interference,
        drift=drift,
        accuracy_error=accuracy_error(start.validation) if kind == "samples" and start.validation is not None else None,
        warnings=(*_about_the_gradient(found), *_about_the_statistics(found, drift), *_about_the_data(kind, start)),
        refusal=_refusal(found, settings) or _worn_out(found, drift),
    )


def _refusal(found: Preflight, settings: Settings) -> str | None:
    if found.survives is None or found.survives > _ROUNDING:
        return None
    free, dim = (sum(getattr(layer, name) for layer in found.layers.values()) for name in ("free", "dim"))
    where = "no layer has a free direction" if not free else f"{free} directions are free ({dim} inputs), and the forget set uses none"
    return (
        f"Nothing of the forget gradient passes {settings.rule!r}: {where}. Use the rule Soft(), or Hard with a smaller retained_variance; "
        "or train again on the retained data."
    )


def _worn_out(found: Preflight, drift: float) -> str | None:
    """Statistics that earlier requests have used up."""
    clamped = max((layer.clamped for layer in found.layers.values()), default=0.0)
    if drift <= _DRIFT_TO_REFUSE and (not drift or clamped <= _CLAMPED_TO_REFUSE):
        return None
    return (
        f"The statistics no longer describe this model: earlier requests may have moved its response to the retained data by {drift:.2f} "
        f"of its size, and {clamped:.2f} of a layer's statistics is less than nothing. Collect again over the retained data at the present "
        "weights, `collect(model, loader)`, and ask again; where the retained data is gone, this request needs another model."
    )


def _about_the_gradient(found: Preflight) -> Iterator[str]:
    if found.survives is None:
        yield (
            "The forget loss has no gradient, or one that is not finite: no step can begin. If the model is sure of the forget set, choose "
            "an objective whose gradient does not vanish there, such as Margin()."
        )


def _about_the_statistics(found: Preflight, drift: float) -> Iterator[str]:
    if drift > _DRIFT_TO_WARN:
        yield (
            f"Earlier requests may have moved the response to the retained data by {drift:.2f} of its size since the statistics were "
            "collected: collect again where the retained data is at hand."
        )
    clamped = {name: layer.clamped for name, layer in found.layers.items() if layer.clamped > _CLAMPED}
    if clamped:
        names = ", ".join(f"{name} {share:.3f}" for name, share in clamped.items())
        yield (
            f"Of the statistics this share is less than nothing and was set to zero: {names}. More was subtracted than was there, so they "
            "do not belong to this data or these weights: collect them again."
        )


def _about_the_data(kind: Kind, start: Epoch) -> Iterator[str]:
    if kind == "samples" and start.validation is not None and len(start.validation) < _VALIDATION:
        error = accuracy_error(start.validation)
        how = f"its standard error is {error:.3f}" if error else "they are all alike, so its standard error cannot be told"
        yield f"The accuracy to aim at comes from {len(start.validation)} validation samples: {how}. Give more, at least {_VALIDATION}."
    if kind == "class" and start.alike is None:
        labels = ", ".join(map(str, start.gone))
        yield f"There is no validation sample with label {labels}: whether a membership trace is left cannot be checked."
