"""A fit that unlearns: what the callback sets up when it takes over, and takes down at the end."""

from __future__ import annotations

import dataclasses
import logging
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from types import FunctionType
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from pgu_lightning import distributed
from pgu_lightning.batches import SharedBatches, batch_sizes, over
from pgu_lightning.evaluation.scores import Scores
from pgu_lightning.mixin import question
from pgu_lightning.passes import collect, gradient, score
from pgu_lightning.preflight import advise, chosen, what_survives
from pgu_lightning.projection import Projector, Soft, Spectrum, UpdateGuard
from pgu_lightning.projection.guard import moving
from pgu_lightning.records import EarlierRequest, Interference, LayerRecord, MethodRecord, Outcome, Preflight, Report, RequestRecord
from pgu_lightning.repair import repair
from pgu_lightning.requests import Split, positions_of
from pgu_lightning.settings import Settings
from pgu_lightning.statistics import Fulfilled, RetainSpace, biases, fingerprint, named_layers, survey, weight_of
from pgu_lightning.stopping import Decision, Epoch
from pgu_lightning.takeover import Takeover
from pgu_lightning.unlearner import ROUNDED, Unlearner
from pgu_lightning.views import View, labels, size_of

_LOGGER = logging.getLogger(__name__)


class UnlearningFit:
    """Connects one running fit with one ``Unlearner``: loaders, step, optimizer, scores, logs and report.

    Args:
        trainer: Of the fit.
        module: Its LightningModule.
        takeover: What bends the fit.
        split: The training samples in two parts.
        settings: The algorithm.
        layers: Shell patterns of the layers to update; None: all that are protected.
        fulfilled: The requests that the model fulfilled before.
        repair: Retained samples to go on with where the stop rule is not met.

    Attributes:
        space: The statistics of the retained data, once ``begin`` was called.
        preflight: What is to be expected, likewise; None if the settings leave it out.
    """

    def __init__(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        takeover: Takeover,
        split: Split,
        settings: Settings,
        layers: Sequence[str] | None,
        fulfilled: Sequence[Fulfilled] = (),
        repair: Dataset[Any] | None = None,
    ) -> None:
        if split.corrected is not None:
            # Its answers are partly those that the wrong labels taught; the right ones steady the rest (docs/decisions.md has the figures).
            settings = dataclasses.replace(settings, anchor=0.0)
        self._trainer, self._module, self._takeover = trainer, module, takeover
        self._split, self._settings, self._patterns = split, settings, layers
        self._train, self._validation = takeover.train_loader(), takeover.validation_loader()
        self._forget = over(split.forget, self._train)
        self._fulfilled, self._repair = fulfilled, repair
        self._earlier = self._find_earlier()
        self._leave_out({label for request in fulfilled for label in request.classes})
        self._decision: Decision | None = None
        self._started = 0.0
        self._sampler: SharedBatches
        self._order: list[list[int]]
        self.space: RetainSpace
        self.preflight: Preflight | None = None
        self._unlearner: Unlearner
        self._first_epoch = 0
        self._resumed: Mapping[str, Any] | None = None

    def _find_earlier(self) -> list[View]:
        """What each earlier request took, where this dataset still has it."""
        dataset = self._split.forget.dataset
        return [View(dataset, positions_of(request.entries, size_of(dataset))) for request in self._fulfilled]

    def _leave_out(self, gone: set[int]) -> None:
        """Validation samples of a class that is gone say nothing of what should still work."""
        if gone and self._validation is not None:
            data = self._validation.dataset
            kept = ~torch.isin(labels(data), torch.tensor(sorted(gone)))
            self._validation = over(View(data, kept.nonzero().flatten()), self._validation)

    def enter(self, protected: Sequence[str], running: bool) -> None:
        """Replace loaders, step and optimizer.

        Args:
            protected: Names of the layers that may move.
            running: Whether training has begun already.
        """
        rows = len(self._split.forget)
        sizes = batch_sizes(rows, self._settings.batch_size)
        orders = {"forget": SharedBatches(rows, sizes)}
        loaders = {"forget": over(self._split.forget, self._train, orders["forget"])}
        if self._validation is not None and self._settings.anchor_for(self._split.kind):
            data = self._validation.dataset
            orders["validation"] = SharedBatches(len(data), sizes)  # type: ignore[arg-type]
            loaders["validation"] = over(data, self._validation, orders["validation"])
        for order in orders.values():
            order.set_epoch(self._trainer.current_epoch)  # Lightning does so before an epoch's hooks, and this may be one of them
        self._sampler = orders["forget"]
        if self._settings.trust_radius is not None:
            # The step has a bound of its own, and its slope is measured with the gradient as it is.
            self._takeover.assign(self._trainer, "gradient_clip_val", None)
        self._takeover.enter(self._step, lambda: self._configure(protected), loaders, running)

    def _layers(self, protected: Sequence[str]) -> dict[str, nn.Module]:
        modules = dict(named_layers(self._module))
        chosen = {layer.name for layer in survey(self._module, self._patterns) if layer.gram is not None}
        return {name: modules[name] for name in protected if name in chosen}

    def _biases(self, layers: Iterable[str]) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
        """The biases of these layers that move, and why others do not where the settings ask for them."""
        return biases(self._module, layers) if self._settings.bias == "augment" else ({}, {})

    def _configure(self, protected: Sequence[str]) -> Any:
        layers = self._layers(protected)
        parameters = list(moving(layers, self._biases(layers)[0]).values())
        own = question(self._module, "configure_unlearning_optimizer")(parameters)
        optimizer: Optimizer = self._settings.optimizer(parameters) if own is None else own
        optimizer.register_step_post_hook(lambda *_: self._unlearner.after_step())
        if self._settings.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self._settings.scheduler(optimizer), "interval": "epoch"}}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Before ``begin``: go on from what ``state_dict`` gave."""
        self._resumed = state

    def restore_original(self) -> None:
        """When the fit is resumed, before ``begin``: give the model the weights from before unlearning."""
        original = self._resumed["unlearner"]["guard"]["original"] if self._resumed else {}
        with torch.no_grad():
            layers = self._layers(list(original))
            for name, parameter in moving(layers, self._biases(layers)[0]).items():
                if name in original:  # else other settings began: that is refused when the rest is loaded
                    parameter.copy_(original[name])

    def begin(self, space: RetainSpace, contains_forget: bool) -> None:
        """Make the projectors and take down where the original model stands; when the fit is resumed, go on from its last save.

        The model has the original weights.

        Args:
            space: Statistics of the training data.
            contains_forget: Whether the forget set is in them and has to be subtracted.

        Raises:
            ValueError: If the preflight refuses, or the biases are to move and the statistics are older than that.
        """
        self._started, self._first_epoch = time.perf_counter(), self._trainer.current_epoch
        module, trainer, split = self._module, self._trainer, self._split
        if contains_forget:
            chosen, place, samples = list(space.protected), self._settings.gram_place, space.provenance.share
            words = "Collecting the forget set"
            space = space.without(
                collect(module, self._forget, layers=chosen, place=place, samples=samples, trainer=trainer, description=words)
            )
        self.space = space
        layers = self._layers(list(space.protected))
        moved, self._frozen_biases = self._biases(layers)
        rules = {name: self._settings.rule_for(name) for name in layers}
        softly = {name: rule if isinstance(rule, Soft) else None for name, rule in rules.items()}
        keys = {name: (str(space.protected[name].gram), name in moved, softly[name]) for name in layers}
        by_key = Spectrum.of_all({key: space.gram_of(*key[:2]) for key in keys.values()}, {key: key[2] for key in keys.values() if key[2]})
        spectra = {name: by_key[key] for name, key in keys.items()}
        projectors = {name: Projector(spectrum, rules[name], weight_of(layers[name])) for name, spectrum in spectra.items()}
        scale, scaled = self._settings.scale_for(split.kind), {}
        if scale is not None:
            whole = {name: spectrum for name, spectrum in spectra.items() if isinstance(spectrum, Spectrum)}  # all: their rules are hard
            scaled = {name: scale.of(found, rules[name], layers[name], weight_of(layers[name])) for name, found in whole.items()}
        matrices = {name: spectrum.matrix for name, spectrum in spectra.items()}
        self._unlearner = Unlearner(
            self._settings,
            split.kind,
            UpdateGuard(
                layers,
                projectors,
                matrices,
                self._settings.balanced_for(split.kind),
                scaled,
                partial(distributed.reshard, module),
                moved,
            ),
            question(module, "unlearning_outputs"),
            split.classes,
            split.corrected,
            question(module, "unlearning_loss"),
            trainer.precision_plugin.forward_context,
        )
        if self._unlearner.guard.rounds and distributed.is_first():
            _LOGGER.warning(ROUNDED)
        scores, probabilities = score(module, self._forget, trainer=trainer)
        corrected = split.corrected_accuracy(probabilities)
        validation, answers = self._score_validation()
        self._unlearner.start(
            scores, validation, probabilities.shape[1], self._score_earlier(), corrected, answers, space.provenance.margins
        )
        if self._resumed is None:
            sizes = {f"{what}/{name}": float(getattr(p, what)) for name, p in projectors.items() for what in ("rank", "free")}
            self._log({**_live(self._unlearner.history[0]), **sizes})
        if self._settings.preflight:
            self._look_ahead()
        if self._resumed is not None:
            self._go_on(self._resumed)

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self._started -= state["seconds"]
        self._first_epoch = state["first_epoch"]
        self._end_if(self._unlearner.load_state_dict(state["unlearner"]))
        if self._trainer.current_epoch - self._first_epoch >= len(self._unlearner.history):
            self.end_epoch()  # saved in the last step of an epoch: Lightning passes over what comes at its end
        # In the middle of an epoch Lightning does not call ``on_train_epoch_start`` again.
        self._sampler.set_epoch(self._trainer.current_epoch)
        self.start_epoch()

    def state_dict(self) -> dict[str, Any] | None:
        """All that ``resume`` needs, as tensors and plain values; None before ``begin``."""
        if not hasattr(self, "_unlearner") or not self._unlearner.history:
            return None
        return {"first_epoch": self._first_epoch, "seconds": self._elapsed(), "unlearner": self._unlearner.state_dict()}

    def _look_ahead(self) -> None:
        forget, unlearner, settings = self._split.forget, self._unlearner, self._settings
        positions = chosen(len(forget))
        sizes = batch_sizes(len(positions), settings.batch_size)
        batches = SharedBatches(len(positions), sizes)
        samples = [positions[batch] for batch in batches]
        found = gradient(
            self._module,
            over(View(forget, positions), self._train, batches),
            lambda batch, number: unlearner.forget_loss(batch, samples[number]) * (sizes[number] / len(positions)),
            unlearner.guard.weights,
            self._trainer,
        )
        figures = what_survives(found, unlearner.guard, settings.trust_radius)
        self.preflight = advise(figures, self._split.kind, settings, unlearner.history[0], self.space.drift)
        if distributed.is_first():
            for warning in self.preflight.warnings:
                _LOGGER.warning(warning)
        if settings.preflight == "only":
            self._takeover.end_fit()
        elif self.preflight.refusal is not None:
            raise ValueError(self.preflight.refusal)

    def start_epoch(self) -> None:
        """Set each part's mode, and take down the order in which the forget samples come."""
        self.set_modes()
        self._order = self._sampler.batches()

    def set_modes(self) -> None:
        """Eval mode; with dropout if the settings ask for it."""
        self._module.eval()
        if self._settings.dropout:
            for part in self._module.modules():
                if isinstance(part, nn.modules.dropout._DropoutNd):
                    part.train()

    def _step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        loss = self._unlearner.loss(batch["forget"], batch.get("validation"), torch.tensor(self._order[batch_idx]))
        if self._module.automatic_optimization:
            return loss
        optimizer = self._module.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        self._module.manual_backward(loss)
        optimizer.step()  # type: ignore[union-attr]
        return None

    def before_step(self, optimizer: Optimizer) -> None:
        """Notice gradients that are not finite."""
        self._unlearner.check_gradients([parameter for group in optimizer.param_groups for parameter in group["params"]])

    def end_epoch(self) -> float:
        """Score, log, and end the fit if it is enough; returns the forget accuracy."""
        self._end_if(self._end_pass())
        return self._unlearner.history[-1].forget.accuracy

    def _end_pass(self) -> Decision | None:
        scores, probabilities = score(self._module, self._forget, trainer=self._trainer)
        corrected = self._split.corrected_accuracy(probabilities)
        decision = self._unlearner.end_epoch(scores, self._score_validation()[0], self._score_earlier(), corrected)
        interference = {f"interference/{name}": value for name, value in self._unlearner.guard.interference().items()}
        self._log({**_live(self._unlearner.history[-1]), **interference})
        return decision

    def _end_if(self, decision: Decision | None) -> None:
        self._decision = decision
        if self._trainer.strategy.reduce_boolean_decision(decision is not None):
            self._takeover.end_fit()

    def finish(self) -> Report:
        """Keep the right weights, let checkpoints keep them too, and report. ``space`` then belongs to the unlearned model."""
        if self._settings.preflight == "only":
            return self._report(Outcome(False, "only the preflight was asked for, nothing was changed", 0, 0), self._elapsed())
        outcome = self._unlearner.finish(self._decision)
        if not outcome.fulfilled and self._repair is not None:
            self.set_modes()
            passes = max(self._trainer.current_epoch, self._trainer.max_epochs or 0) - self._first_epoch
            decision = repair(self._unlearner, self._trainer, self._forget, self._repair, self._settings, passes, self._end_pass)
            outcome = self._unlearner.finish(decision)
        seconds = self._elapsed()
        split, interference = self._split, self._unlearner.guard.total_interference
        fulfilled = Fulfilled(split.kind, split.digest, split.entries(), len(split.forget), split.classes, interference)
        self.space = self.space.fulfil(fulfilled, fingerprint(self._module))
        return self._report(outcome, seconds)

    def _elapsed(self) -> float:
        return time.perf_counter() - self._started

    def _score_validation(self) -> tuple[Scores | None, Tensor | None]:
        return (None, None) if self._validation is None else score(self._module, self._validation, trainer=self._trainer)

    def _score_earlier(self) -> Scores | None:
        """Scores on what earlier requests took, one request after the other."""
        if not sum(map(len, self._earlier)):
            return None
        taken = View(self._split.forget.dataset, torch.cat([view.positions for view in self._earlier]))
        return score(self._module, over(taken, self._train), trainer=self._trainer)[0]

    def _log(self, values: Mapping[str, float]) -> None:
        for logger in self._trainer.loggers:
            logger.log_metrics({**values, "unlearning/seconds": self._elapsed()}, step=self._trainer.global_step)

    def _report(self, outcome: Outcome, seconds: float) -> Report:
        unlearner, split, settings = self._unlearner, self._split, self._settings
        models = {"original": unlearner.history[0], "unlearned": unlearner.history[unlearner.kept]}
        corrected = {name: epoch.corrected_accuracy for name, epoch in models.items() if epoch.corrected_accuracy is not None}
        used = {name: getattr(settings, f"{name}_for")(split.kind) for name in ("objective", "stop", "anchor", "balanced", "scale")}
        values = {item.name: used.get(item.name, getattr(settings, item.name)) for item in dataclasses.fields(settings)}
        return Report(
            request=request_record(split),
            method=MethodRecord(
                "pgu", unlearner.repaired_with > 0, {name: _shown(value) for name, value in values.items()}, unlearner.repaired_with or None
            ),
            models={name: _metrics(epoch) for name, epoch in models.items()},
            corrected_accuracy=corrected,
            outcome=outcome,
            preflight=self.preflight,
            interference=Interference(unlearner.guard.total_interference, unlearner.guard.interference()),
            layers={name: LayerRecord(p.dim, p.rank, p.free, p.clamped) for name, p in unlearner.guard.projectors.items()},
            frozen={**self.space.frozen, **self._frozen_biases},
            seconds={"unlearn": seconds},
            curve=unlearner.curve,
            earlier=self._earlier_requests(**models),
            environment=environment(self._module.device, self._trainer.world_size),
        )

    def _earlier_requests(self, original: Epoch, unlearned: Epoch) -> tuple[EarlierRequest, ...]:
        found = []
        for request, view, start in zip(self._fulfilled, self._earlier, accumulate(map(len, self._earlier), initial=0), strict=False):
            part = torch.arange(start, start + len(view))
            models = {
                name: {"forget_accuracy": epoch.earlier.select(part).accuracy}
                for name, epoch in (("original", original), ("unlearned", unlearned))
                if epoch.earlier is not None and len(view)
            }
            found.append(EarlierRequest(RequestRecord(request.kind, request.size, request.digest, request.classes), models))
        return tuple(found)


def request_record(split: Split) -> RequestRecord:
    """What a split's request was, without naming anyone."""
    return RequestRecord(split.kind, len(split.forget), split.digest, split.classes)


def environment(device: torch.device, processes: int) -> dict[str, str]:
    """Versions and hardware, for the report."""
    names = ("pgu-lightning", "torch", "lightning")
    return {
        **{name: version(name) for name in names},
        "python": platform.python_version(),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "processes": str(processes),
    }


def _live(epoch: Epoch) -> dict[str, float]:
    values = {
        "unlearning/step": float(epoch.step),
        "forget/accuracy": epoch.forget.accuracy,
        "forget/loss": epoch.forget.mean_loss,
        "interference/total": epoch.interference,
    }
    if epoch.kept is not None:
        values |= {"validation/accuracy": epoch.kept.accuracy, "validation/loss": epoch.kept.mean_loss}
    if epoch.auc is not None:
        values["forget/mia_auc"] = epoch.auc
    if epoch.earlier is not None:
        values["earlier/accuracy"] = epoch.earlier.accuracy
    if epoch.corrected_accuracy is not None:
        values["forget/corrected_accuracy"] = epoch.corrected_accuracy
    return values


def _shown(value: Any) -> str:
    """As in Python; a function by its name, since its repr has the address of this run."""
    return f"{value.__module__}.{value.__qualname__}" if isinstance(value, FunctionType) else repr(value)


def _metrics(epoch: Epoch) -> dict[str, float]:
    values = {"forget_accuracy": epoch.forget.accuracy}
    if epoch.kept is not None:
        values["validation_accuracy"] = epoch.kept.accuracy
    if epoch.auc is not None:
        values["mia_auc"] = epoch.auc
    return values
