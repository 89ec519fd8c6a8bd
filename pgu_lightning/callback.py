"""The callback: Lightning's hooks and the phases of a fit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import lightning as L
from torch.optim import Optimizer

from pgu_lightning import distributed
from pgu_lightning.passes import check_outputs, collect
from pgu_lightning.records import Preflight, Report
from pgu_lightning.requests import ForgetRequest, Split
from pgu_lightning.statistics import RetainSpace, fingerprint, survey
from pgu_lightning.takeover import Takeover, is_completed_later, mesh_of, refuse_strategy, watch_saves
from pgu_lightning.unlearner import Settings
from pgu_lightning.unlearning_fit import UnlearningFit, over


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
    ) -> None:
        if forget is None and (retain_space is not None or switch_at_epoch is not None):
            raise ValueError("retain_space and switch_at_epoch say how to forget: give forget=ForgetRequest(...) too.")
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
        self._settings, self._patterns = settings or Settings(), layers
        self._phase = Phase.LEARN
        self._takeover: Takeover
        self._fit: UnlearningFit
        self._split: Split
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
        if mesh is not None and self._request is not None:
            self._takeover.refuse_resume(self._would_unlearn)
        if not self._checks_later:
            survey(pl_module, self._patterns)
        if self._request is None:
            return
        samples = self._takeover.train_loader().dataset
        if self._retain_space is None:
            self._split = self._request.split(samples)
            self._check_switch(trainer)
            return
        given = self._retain_space
        self.space = given if isinstance(given, RetainSpace) else RetainSpace.load(given)
        if not self._checks_later:
            self.space.check(pl_module)
        earlier = {entry for request in self.space.provenance.fulfilled for entry in request.entries}
        self._split = self._request.split(samples, earlier)
        self._check_size(len(self._split.forget) + len(self._split.retain))
        self._enter(trainer, pl_module, running=False)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check a model that was not complete at ``setup``."""
        if self._checks_later:
            survey(pl_module, self._patterns)
            if self._phase is Phase.UNLEARN:
                assert self.space is not None
                self.space.check(pl_module)

    def _check_size(self, samples: int) -> None:
        assert self._request is not None
        assert self.space is not None
        collected = self.space.provenance.samples
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

    def _enter(self, trainer: L.Trainer, module: L.LightningModule, running: bool) -> None:
        assert self.space is not None
        self._phase = Phase.UNLEARN
        fulfilled = self.space.provenance.fulfilled
        self._fit = UnlearningFit(trainer, module, self._takeover, self._split, self._settings, self._patterns, fulfilled)
        self._fit.enter(list(self.space.protected), running)

    # Learning, and the switch

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Hold the fit open for unlearning; in a fit of its own, unlearning begins."""
        if self._request is not None:
            self._takeover.hold_open()
        if self._phase is Phase.UNLEARN:
            assert self.space is not None
            self._fit.begin(self.space, contains_forget=True)

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
        started = time.perf_counter()
        distributed.agree(module)
        retained = over(self._split.retain, self._takeover.train_loader())
        self.space = collect(module, retained, layers=self._patterns, trainer=trainer, description="Collecting the retained data")
        self.seconds["collect"] = time.perf_counter() - started
        self._enter(trainer, module, running=True)
        self._fit.begin(self.space, contains_forget=False)

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
        elif self._request is not None:
            raise RuntimeError(
                f"The fit ended after epoch {trainer.current_epoch}, before it switched to unlearning at epoch {self._switch_at}: nothing "
                "was forgotten. Unlearn in a fit of its own, with retain_space=."
            )
        else:
            started = time.perf_counter()
            distributed.agree(pl_module)
            self.space = collect(pl_module, self._takeover.train_loader(), layers=self._patterns, trainer=trainer)
            self.seconds["collect"] = time.perf_counter() - started
            for path, weights in self._saved.items():
                if path.exists():
                    self._write_beside(trainer, path, weights)

    def _finish(self, trainer: L.Trainer) -> None:
        report = self._fit.finish()
        self.report, self._phase = report.replace(seconds={**self.seconds, **report.seconds}), Phase.DONE
        if self._settings.preflight == "only":
            return
        self.space = self._fit.space
        fulfilled = report.outcome is not None and report.outcome.fulfilled
        if fulfilled and isinstance(self._retain_space, (str, Path)) and trainer.is_global_zero:
            self.space.save(self._retain_space)
        self._takeover.save_final()

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
        """The phase, so that a checkpoint from the middle of unlearning is not taken for one from learning."""
        return {"phase": self._phase.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that the fit can go on from here.

        Raises:
            RuntimeError: If the checkpoint was saved while unlearning.
        """
        if state_dict["phase"] == Phase.UNLEARN.value:
            raise RuntimeError(
                "This checkpoint was saved in the middle of unlearning, which cannot be resumed: start from the trained model's."
            )

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a learning fit as an unlearning one: its optimizer and loops are others.

        Raises:
            RuntimeError: If a fit that unlearns was given a checkpoint to resume from.
        """
        if self._phase is Phase.UNLEARN:
            raise RuntimeError(
                "Do not give ckpt_path to a fit that unlearns: load the weights first, with YourModule.load_from_checkpoint(path)."
            )

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


def retain_path(checkpoint: str | Path) -> Path:
    """Where the statistics of a checkpoint lie: beside it.

    Example:
        >>> retain_path("runs/model.ckpt").as_posix()
        'runs/model.retain.safetensors'
    """
    return Path(checkpoint).with_suffix(".retain.safetensors")
