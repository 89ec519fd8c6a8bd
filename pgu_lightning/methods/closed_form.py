"""Class forgetting in one shot, from the two Gram matrices of each layer, without a gradient."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import lightning as L
import torch
from torch import Tensor, nn

from pgu_lightning import distributed
from pgu_lightning.batches import over
from pgu_lightning.evaluation import Scores
from pgu_lightning.methods.base import Job
from pgu_lightning.passes import collect, score
from pgu_lightning.projection import Spectrum
from pgu_lightning.records import Interference, LayerRecord, MethodRecord, Outcome, Report
from pgu_lightning.statistics import Fulfilled, Gram, RetainSpace, fingerprint, named_layers
from pgu_lightning.statistics.layers import as_matrix
from pgu_lightning.unlearning_fit import environment, request_record


def importance(values: Tensor, alpha: float) -> Tensor:
    """How much of each direction belongs to a space: alpha s / ((alpha - 1) s + 1), s being its share of the variance.

    Args:
        values: Eigenvalues of a Gram matrix, (groups, dim), >= 0.
        alpha: Above 0; the larger, the more the small directions count.

    Returns:
        (groups, dim) in [0, 1].

    Example:
        >>> importance(torch.tensor([[0.0, 1.0, 3.0]]), alpha=3.0)
        tensor([[0.0000, 0.5000, 0.9000]])
    """
    total = values.sum(-1, keepdim=True)
    share = torch.where(total > 0, values / total, 0.0)
    return alpha * share / ((alpha - 1) * share + 1)


def discriminating(weight: Tensor, retain: Spectrum, forget: Spectrum, retain_alpha: float, forget_alpha: float) -> Tensor:
    """The part of a weight that answers to what is in the forget space and not in the retain space.

    That is W P_dis^T with P_dis = P_f (I - P_r) and P = V diag(importance) V^T: rows x of a layer's input become x (I - P_dis).

    Args:
        weight: (groups, out, dim).
        retain: Of the retained data's Gram matrix.
        forget: Of the forget set's.
        retain_alpha: Scale of the retain space's importance.
        forget_alpha: Scale of the forget space's importance.
    """
    unshared = weight - _through(weight, retain, retain_alpha)
    return _through(unshared, forget, forget_alpha)


def _through(weight: Tensor, spectrum: Spectrum, alpha: float) -> Tensor:
    gains = importance(spectrum.values, alpha)[:, None, -spectrum.vectors.shape[-1] :]  # the others are 0
    return (weight @ spectrum.vectors * gains) @ spectrum.vectors.mT


@dataclass(frozen=True)
class _Layer:
    module: nn.Module
    weight: Tensor  # as it was, (groups, out, dim), float64
    retain: Spectrum
    forget: Spectrum
    gram: Gram  # of the retained data, without what was clamped

    def set(self, retain_alpha: float, forget_alpha: float) -> None:
        new = self.weight - discriminating(self.weight, self.retain, self.forget, retain_alpha, forget_alpha)
        with torch.no_grad():
            as_matrix(self.module, self.module.get_parameter("weight")).copy_(new)

    def responses(self) -> tuple[float, float]:
        """Summed squared response to the retained data: of the change, and of the weight as it was."""
        new = as_matrix(self.module, self.module.get_parameter("weight").detach()).cpu().double()
        return self.gram.response(new - self.weight), self.gram.response(self.weight)


@dataclass(frozen=True)
class _Candidate:
    alphas: tuple[float, float]
    forget: float
    kept: float
    interference: float

    @property
    def rank(self) -> tuple[float, float]:
        # Validation data tells many candidates not apart: then the one that moves the retained data's responses least.
        return self.kept * (1 - self.forget), -self.interference


class ClosedForm:
    """Kodge et al., "Deep Unlearning: Fast and Efficient Gradient-free Approach to Class Forgetting", TMLR 2024.

    Each protected layer's weight W becomes W (I - P_f (I - P_r))^T: what the forget set sends into the layer is seen as its shared part
    alone. The two scales are those of a grid with the best validation accuracy on the other classes times error on the forget set.

    Args:
        name: As in the report.
        retain_alphas: Scales of the retain space's importance to try.
        forget_alphas: Scales of the forget space's importance to try.
    """

    uses_retain_data = False

    def __init__(self, name: str, retain_alphas: Sequence[float], forget_alphas: Sequence[float]) -> None:
        if not (retain_alphas and forget_alphas and min(*retain_alphas, *forget_alphas) > 0):
            raise ValueError(f"Expected scales above 0, at least one of each, got {list(retain_alphas)} and {list(forget_alphas)}.")
        self.name, self._grid = name, list(product(retain_alphas, forget_alphas))

    def unlearn(self, job: Job) -> tuple[L.LightningModule, Report | None]:
        """Collect the forget set's statistics, try the grid, keep the best; only the forget and the validation samples are read.

        Raises:
            ValueError: If the request is not of a class, or there is no validation data.
        """
        split, module, validation = job.split, job.module, job.data.val_dataloader()
        if not split.classes:
            raise ValueError(f"method={self.name} forgets whole classes, this request is of kind {split.kind!r}: try method=pgu.")
        if not validation:
            raise ValueError(f"method={self.name} chooses its scales by validation accuracy: the data module has no validation data.")
        started = time.perf_counter()
        module.to(job.trainer(logger=False).strategy.root_device)
        full, samples = RetainSpace.load(job.retain_space), over(split.forget, job.data.train_dataloader())
        full.check(module)
        share, words = full.provenance.share, "Collecting the forget set"
        forget = collect(module, samples, layers=list(full.protected), samples=share, description=words)
        space = full.without(forget)
        layers = _layers(module, space, forget)

        def look(alphas: tuple[float, float]) -> _Candidate:
            kept, _ = score(module, validation)
            kept = kept.select(~torch.isin(kept.label, torch.tensor(split.classes)))
            return _Candidate(alphas, score(module, samples)[0].accuracy, _accuracy(kept), _interference(layers).total)

        def attempt(alphas: tuple[float, float]) -> _Candidate:
            for layer in layers.values():
                layer.set(*alphas)
            return look(alphas)

        original = look((0.0, 0.0))
        best = attempt(max(map(attempt, self._grid), key=lambda candidate: candidate.rank).alphas)
        outcome = self._outcome(original, best)
        fulfilled = Fulfilled(split.kind, split.digest, split.entries(), len(split.forget), split.classes, _interference(layers).total)
        space = space.fulfil(fulfilled, fingerprint(module))
        if outcome.fulfilled and distributed.is_first():
            space.save(job.retain_space)
        settings = {"retain_alpha": best.alphas[0], "forget_alpha": best.alphas[1], "tried": self._grid}
        report = Report(
            request=request_record(split),
            method=MethodRecord(self.name, self.uses_retain_data, settings),
            models={"original": _metrics(original), "unlearned": _metrics(best)},
            outcome=outcome,
            interference=_interference(layers),
            layers={name: _record(layer.retain, best.alphas[0]) for name, layer in layers.items()},
            frozen=space.frozen,
            seconds={"unlearn": time.perf_counter() - started},
            environment=environment(module.device, distributed.world()),
        )
        return module, report

    def _outcome(self, original: _Candidate, best: _Candidate) -> Outcome:
        fulfilled = best.forget == 0
        notes = []
        if not fulfilled:
            notes.append("The request is not fulfilled: widen the grid of scales, or use method=pgu.")
        if (lost := original.kept - best.kept) > 0.01:
            notes.append(f"Validation accuracy on what should still work fell by {lost:.3f}.")
        reason = f"forget accuracy {best.forget:.3f}, with the best of {len(self._grid)} pairs of scales"
        return Outcome(fulfilled, reason, epochs=0, steps=0, notes=tuple(notes))


def _layers(module: nn.Module, space: RetainSpace, forget: RetainSpace) -> dict[str, _Layer]:
    modules = dict(named_layers(module))
    layers = {}
    for name, info in space.protected.items():
        key, weight = str(info.gram), modules[name].get_parameter("weight").detach()
        retain = Spectrum.of(space.grams[key])
        gram = Gram(retain.matrix, space.grams[key].rows)
        layers[name] = _Layer(modules[name], as_matrix(modules[name], weight).cpu().double(), retain, Spectrum.of(forget.grams[key]), gram)
    return layers


def _interference(layers: Mapping[str, _Layer]) -> Interference:
    responses = {name: layer.responses() for name, layer in layers.items()}
    changed, energy = (sum(pair[i] for pair in responses.values()) for i in (0, 1))
    return Interference(changed / energy if energy else 0.0, {name: part / own if own else 0.0 for name, (part, own) in responses.items()})


def _record(retain: Spectrum, alpha: float) -> LayerRecord:
    counts = importance(retain.values, alpha) > 0.5
    return LayerRecord(counts.shape[-1], int(counts.sum()), int((~counts).sum()), retain.clamped)


def _metrics(candidate: _Candidate) -> dict[str, float]:
    return {"forget_accuracy": candidate.forget, "validation_accuracy": candidate.kept}


def _accuracy(kept: Scores) -> float:
    if not kept:
        raise ValueError("There is no validation sample of a class that stays: the scales cannot be chosen.")
    return kept.accuracy
