"""The callback: Lightning's hooks and the phases of a fit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from pgu_lightning import distributed
from pgu_lightning.batches import over
from pgu_lightning.files import digest, retain_path
from pgu_lightning.passes import check_outputs, collect
from pgu_lightning.records import Preflight, Report
from pgu_lightning.repair import Repair, retained
from pgu_lightning.requests import ForgetRequest, Split
from pgu_lightning.settings import Settings
from pgu_lightning.statistics import RetainSpace, check_room, fingerprint, survey
from pgu_lightning.takeover import (
    Takeover,
    behind_averages,
    is_completed_later,
    mesh_of,
    refuse_averages,
    refuse_strategy,
    watch_saves,
)
from pgu_lightning.unlearning_fit import UnlearningFit


class Phase(StrEnum):
    """What the fit is doing."""

    LEARN = "learn"
    UNLEARN = "unlearn"
    DONE = "done"


class PGUCallback(L.Callback):
    """Takes down what the training data looks like inside each layer; later, makes the model forget without the retained data.

    Without ``forget`` an ordinary fit trains as always. At its end one pass over the training samples collects their statistics; they are
    written beside every checkpoint of the final weights, as ``NAME.retain.safetensors``, also beside one that you save after the fit.

    With ``forget`` and ``retain_space`` the fit unlearns: the training samples that the request names (or, with ``everything=True``, the
    whole training loader) are the forget set; the step, the optimizer and the loaders of the fit are replaced and given back at its end.
    An epoch is one pass over the forget set; the fit ends when the stop rule is met, at the latest after ``max_epochs``. Validation data
    steadies the answers and tells when it is enough. When the request is fulfilled, the file ``retain_space`` is replaced by one without
    the forget set.

    With ``forget`` and ``switch_at_epoch`` one fit does both.

    Example:
        >>> learn = PGUCallback()  # L.Trainer(max_epochs=30, callbacks=[learn]).fit(model, datamodule)
        >>> pgu = PGUCallback(ForgetRequest(classes=[3]), retain_space="model.retain.safetensors")
        >>> pgu.report is None  # until L.Trainer(max_epochs=100, callbacks=[pgu]).fit(model, datamodule)
        True

    Args:
        forget: What to forget; None only collects.
        retain_space: The statistics, or the file that holds them.
        switch_at_epoch: Learn for so many epochs, then unlearn for the rest of the fit. When something else ends learning early, such as
            EarlyStopping, unlearning begins then.
        settings: What belongs to the algorithm.
        layers: Shell patterns of the layers to protect and update (``"blocks.*"``); None: all that can be.
        repair: Retained data for the next step, where the stop rule is not met: a dataset or loader of retained samples, or how many (below
            1: what share) of those in the training loader. The model is then fine-tuned on them while it goes on forgetting.

    Attributes:
        space: The statistics that belong to the model as the fit left it; None before that.
        report: What was forgotten and what it cost; None before that.
        seconds: Wall-clock seconds of the stages so far.

    Raises:
        ValueError: If the arguments do not go together.
    """

    def __init__(
        self,
        forget: ForgetRequest | None = None,
        *,
        retain_space: RetainSpace | str | Path | None = None,
        switch_at_epoch: int | None = None,
        settings: Settings | None = None,
        layers: Sequence[str] | None = None,
        repair: Repair | None = None,
    ) -> None:
        if forget is None and not (retain_space is None and switch_at_epoch is None and repair is None):
            raise ValueError("retain_space, switch_at_epoch and repair say how to forget: give forget=ForgetRequest(...) too.")
        if forget is not None and (retain_space is None) == (switch_at_epoch is None):
            raise ValueError(
                "To forget in a fit of its own give retain_space=, the statistics of the trained model; to learn first in the same fit "
                "give switch_at_epoch=. Exactly one of them."
            )
        if switch_at_epoch is not None and switch_at_epoch < 1:
            raise ValueError(
                f"switch_at_epoch must be at least 1, got {switch_at_epoch}: there is nothing to forget before the first epoch."
            )
        if switch_at_epoch is not None and settings is not None and settings.preflight == "only":
            raise ValueError(
                'preflight="only" looks at a trained model: train it first, then give retain_space= instead of switch_at_epoch=.'
            )
        self.space: RetainSpace | None = None
        self.report: Report | None = None
        self._request, self._retain_space, self._switch_at = forget, retain_space, switch_at_epoch
        self._settings, self._patterns, self._repair = settings or Settings(), layers, repair
        self._phase = Phase.LEARN
        self._takeover: Takeover
        self._fit: UnlearningFit
        self._split: Split
        self._train: DataLoader[Any]
        self._given = ""  # says which retain space was given, if one was
        self._was_fulfilled = False
        self._checks_later = False
        self._saved: dict[Path, str] = {}
        self.seconds: dict[str, float] = {}

    @property
    def preflight(self) -> Preflight | None:
        """What is to be expected of unlearning, from the moment it begins; None before that, or if the settings leave it out."""
        return self._fit.preflight if hasattr(self, "_fit") else None

    # Before training

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Check everything that can be checked, and take over the fit if it shall only unlearn."""
        if stage != "fit":
            return
        refuse_strategy(trainer.strategy)
        watch_saves(trainer, self._checkpoint_saved, self._checkpoint_removed)
        self._phase, self._takeover, self.report = Phase.LEARN, Takeover(trainer, pl_module), None
        mesh, self._checks_later = mesh_of(trainer.strategy), is_completed_later(trainer, pl_module)
        distributed.follow(mesh)
        if mesh is None:
            self._takeover.watch_load(partial(self._loaded, trainer, pl_module))
        elif self._request is not None:
            self._takeover.refuse_resume(self._would_unlearn)
        if not self._checks_later:
            self._check_model(trainer, pl_module)
        trainer.callbacks = behind_averages(trainer.callbacks, self)  # type: ignore[attr-defined]
        if self._request is None:
            return
        refuse_averages(trainer.callbacks)  # type: ignore[attr-defined]
        self._train = self._takeover.train_loader()
        if self._retain_space is None:
            self._split = self._request.split(self._train.dataset)
            if self._repair is not None:
                retained(self._repair, self._split)
            self._check_switch(trainer)
            return
        given = self._retain_space
        self.space = given if isinstance(given, RetainSpace) else RetainSpace.load(given)
        check_room(self.space.layers, trainer.num_devices, unlearns=True)
        if not self._checks_later:
            self.space.check_layers(pl_module)
        self._given = digest([repr(self.space.provenance)])
        self._split_again(self._request, self.space)
        self._check_size(len(self._split.forget) + len(self._split.retain))
        self._enter(trainer, pl_module, list(self.space.protected), running=False)

    def _split_again(self, request: ForgetRequest, space: RetainSpace) -> None:
        """Split the training data, and note whether the space says that this very request is fulfilled: a resumed run may be done."""
        entries = request.split(self._train.dataset).entries()
        others = [earlier for earlier in space.provenance.fulfilled if not entries or earlier.entries != entries]
        self._was_fulfilled = len(others) < len(space.provenance.fulfilled)
        self._split = request.split(self._train.dataset, {entry for earlier in others for entry in earlier.entries})

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check a model that was not complete at ``setup``."""
        if self._checks_later:
            self._check_model(trainer, pl_module)
            if self._phase is Phase.UNLEARN:
                assert self.space is not None
                self.space.check_layers(pl_module)

    def _check_model(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        layers = survey(module, self._patterns)
        if self._retain_space is None:
            check_room(layers, trainer.num_devices, unlearns=self._request is not None)

    def _check_size(self, samples: int) -> None:
        assert self._request is not None
        assert self.space is not None
        collected = self.space.provenance.samples
        if self._request.everything and self.space.provenance.share < 1:
            raise ValueError(
                f"The retain space is of a share of {self.space.provenance.share} of the samples, chosen by their position in the training "
                "data, which a loader of the forget set alone does not tell. Give the whole training data and name what to forget, or "
                "collect from all samples, with Settings(samples=None)."
            )
        if not self._request.everything and samples != collected and not self.space.provenance.fulfilled:
            raise ValueError(
                f"The retain space holds {collected} samples, the training loader has {samples}. If the retained data is gone, give a "
                "loader of the forget set alone and ForgetRequest(everything=True)."
            )

    def _check_switch(self, trainer: L.Trainer) -> None:
        assert self._switch_at is not None
        if trainer.max_steps != -1:
            raise ValueError("max_steps would end the fit before the switch: use max_epochs with switch_at_epoch, it counts both phases.")
        if trainer.max_epochs not in (None, -1) and trainer.max_epochs <= self._switch_at:
            raise ValueError(f"max_epochs={trainer.max_epochs} counts both phases: it must be above switch_at_epoch={self._switch_at}.")

    def _enter(self, trainer: L.Trainer, module: L.LightningModule, protected: Sequence[str], running: bool) -> None:
        self._phase = Phase.UNLEARN
        fulfilled = self.space.provenance.fulfilled if self.space is not None else ()
        more = None if self._repair is None else retained(self._repair, self._split)
        self._fit = UnlearningFit(trainer, module, self._takeover, self._split, self._settings, self._patterns, fulfilled, more)
        self._fit.enter(protected, running)

    # Learning, and the switch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hold the fit open for unlearning; in a fit of its own, unlearning begins."""
        if self._request is not None:
            self._takeover.hold_open()
        if self._phase is Phase.UNLEARN:
            self._begin(trainer, pl_module)
        elif self._phase is Phase.DONE:
            self._takeover.end_fit()

    def _begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._fit.restore_original()
        if self._switch_at is not None:
            self.space = self._collect_retained(trainer, module)
        assert self.space is not None
        self.space.check(module)
        if self._was_fulfilled:
            raise ValueError("Already forgotten: the retain space says that this very request was fulfilled. There is nothing left to do.")
        self._fit.begin(self.space, contains_forget=self._switch_at is None)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Switch when it is time; while unlearning, no other callback ends the fit."""
        if self._phase is Phase.LEARN and self._switch_at is not None:
            stopped = trainer.should_stop and trainer.current_epoch >= self._takeover.user_min_epochs
            if stopped or trainer.current_epoch >= self._switch_at:
                self._switch(trainer, pl_module)
        if self._phase is Phase.UNLEARN:
            trainer.should_stop = False
            self._fit.start_epoch()

    def _switch(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.space = self._collect_retained(trainer, module)
        self._enter(trainer, module, list(self.space.protected), running=True)
        self._fit.begin(self.space, contains_forget=False)

    def _collect_retained(self, trainer: L.Trainer, module: L.LightningModule) -> RetainSpace:
        return self._collect(trainer, module, over(self._split.retain, self._train), "Collecting the retained data")

    def _collect(self, trainer: L.Trainer, module: L.LightningModule, loader: DataLoader[Any], description: str) -> RetainSpace:
        started = time.perf_counter()
        distributed.agree(module)
        place, samples = self._settings.gram_place, self._settings.samples
        space = collect(module, loader, layers=self._patterns, place=place, samples=samples, trainer=trainer, description=description)
        self.seconds["collect"] = time.perf_counter() - started
        return space

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Try the first batch of all before work is spent; while unlearning, see that no part went back to training mode."""
        if self._phase is Phase.UNLEARN:
            self._fit.set_modes()
        elif trainer.global_step == 0 and batch_idx == 0:
            check_outputs(pl_module, batch, trainer)

    # Unlearning

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """While unlearning: notice gradients that are not finite."""
        if self._phase is Phase.UNLEARN:
            self._fit.before_step(optimizer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """While unlearning: score, decide, log."""
        if self._phase is Phase.UNLEARN:
            pl_module.log("forget/accuracy", self._fit.end_epoch(), prog_bar=True, logger=False, sync_dist=True)

    # The end

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """After learning: collect. After unlearning: keep the right weights, write the reduced statistics, report."""
        if self._phase is Phase.UNLEARN:
            self._finish(trainer)
        elif self._phase is Phase.LEARN and self._request is not None:
            raise RuntimeError(
                f"The fit ended after epoch {trainer.current_epoch}, before it switched to unlearning at epoch {self._switch_at}: nothing "
                "was forgotten. Unlearn in a fit of its own, with retain_space=."
            )
        elif self._phase is Phase.LEARN:
            self.space = self._collect(trainer, pl_module, self._takeover.train_loader(), "Collecting")
            for path, weights in self._saved.items():
                if path.exists():
                    self._write_beside(trainer, path, weights)

    def _finish(self, trainer: L.Trainer) -> None:
        report = self._fit.finish()
        self.report, self._phase = report.replace(seconds={**self.seconds, **report.seconds}), Phase.DONE
        if self._settings.preflight == "only":
            return
        self.space = self._fit.space
        # The file goes last: a run that is killed before it is written is resumed from a checkpoint, and writes it then.
        self._takeover.save_final()
        self._replace_file(trainer)

    def _replace_file(self, trainer: L.Trainer) -> None:
        if self._fulfilled and self.space is not None and isinstance(self._retain_space, (str, Path)) and trainer.is_global_zero:
            self.space.save(self._retain_space)

    @property
    def _fulfilled(self) -> bool:
        return self.report is not None and self.report.outcome is not None and self.report.outcome.fulfilled

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give back what was replaced."""
        if stage == "fit":
            self._takeover.undo()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give back what was replaced: after an error Lightning does not call ``teardown``."""
        if hasattr(self, "_takeover"):
            self._takeover.undo()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Where the fit stands, as tensors and plain values.

        Until the request is fulfilled that includes the original weights; then it does not.
        """
        state = {"phase": Phase.LEARN.value, "saved": {str(path): weights for path, weights in self._saved.items()}}
        if self._phase is Phase.DONE and self.report is not None and self._fulfilled:
            return {**state, "phase": Phase.DONE.value, "request": self._identity(), "report": self.report.to_json()}
        fit = None if self._phase is Phase.LEARN else self._fit.state_dict()
        if fit is None:
            return state
        return {**state, "phase": Phase.UNLEARN.value, "request": self._identity(), "space": self._given, "fit": fit}

    def _identity(self) -> list[str]:
        """What must be the same in a fit that is resumed: kind and digest of the request, how unlearning begins, corrected labels."""
        corrected = [] if self._split.corrected is None else [digest([self._split.corrected.numpy().tobytes()])]
        return [self._split.kind, self._split.digest, "retain_space" if self._switch_at is None else "switch_at_epoch", *corrected]

    def _loaded(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: Mapping[str, Any], path: Path) -> None:
        """Go to the phase of the checkpoint that the fit is resumed from.

        Raises:
            RuntimeError: If this fit cannot go on from there.
        """
        state = checkpoint.get("callbacks", {}).get(self.state_key, {"phase": Phase.LEARN.value, "saved": {}})
        self._saved = {Path(file): weights for file, weights in state["saved"].items()} | {path: fingerprint(checkpoint["state_dict"])}
        if state["phase"] == Phase.LEARN.value:
            if self._phase is Phase.UNLEARN:
                raise RuntimeError(
                    f"{path} was not saved while unlearning, so this fit cannot go on from it. To unlearn that model load its weights, "
                    "with YourModule.load_from_checkpoint(path), and leave ckpt_path out."
                )
            return
        if self._request is None or state["request"] != self._identity():
            raise RuntimeError(
                f"{path} was saved by a fit that unlearns, for another request than this callback's or begun in another way. To resume it "
                "give the same forget= and retain_space= or switch_at_epoch=; to use its weights for something else load them, with "
                "YourModule.load_from_checkpoint(path), and leave ckpt_path out."
            )
        if state["phase"] == Phase.UNLEARN.value and state["space"] != self._given:
            raise RuntimeError(
                f"{path} was saved while unlearning with another retain space than this one. Give the one that it began with; if "
                "the request was fulfilled since then, that file no longer contains the forget set, and there is nothing to resume."
            )
        if state["phase"] == Phase.DONE.value and self._request.everything:
            raise RuntimeError(
                f"{path} is the result of a request that is fulfilled; of everything=True it cannot be told whether it was this one. Load "
                "its weights, with YourModule.load_from_checkpoint(path), and leave ckpt_path out."
            )
        done = Report.from_json(state["report"], str(path)) if state["phase"] == Phase.DONE.value else None
        if self._switch_at is not None:
            self._enter(trainer, module, list(done.layers if done else state["fit"]["unlearner"]["guard"]["original"]), running=False)
        if done is None:
            self._fit.resume(state["fit"])
        else:
            self._take_over_result(trainer, done, retain_path(path))

    def _take_over_result(self, trainer: L.Trainer, report: Report, beside: Path) -> None:
        """Everything is done already, except perhaps for the last file."""
        self._phase, self.report = Phase.DONE, report
        self.space = RetainSpace.load(beside) if beside.is_file() else None
        if not self._was_fulfilled:
            self._replace_file(trainer)

    def _would_unlearn(self, callbacks: Mapping[str, Any]) -> bool:
        return self._phase is Phase.UNLEARN or callbacks.get(self.state_key, {}).get("phase") == Phase.UNLEARN.value

    def _checkpoint_saved(self, trainer: L.Trainer, state: Mapping[str, Any], path: Path) -> None:
        self._saved[path] = fingerprint(state)
        if self._phase is not Phase.UNLEARN:
            self._write_beside(trainer, path, self._saved[path])

    def _checkpoint_removed(self, trainer: L.Trainer, path: Path) -> None:
        if self._saved.pop(path, None) is not None and trainer.is_global_zero:
            retain_path(path).unlink(missing_ok=True)

    def _write_beside(self, trainer: L.Trainer, path: Path, weights: str) -> None:
        if trainer.is_global_zero and self.space is not None and self.space.belongs_to(weights):
            self.space.save(retain_path(path))
