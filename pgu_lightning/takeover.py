"""The one file that bends a running fit, and gives it back.

Private parts of Lightning that are used here: ``fit_loop._data_source`` (``instance``, ``dataloader()``), ``fit_loop._combined_loader``
and the validation loop's ``_data_source``. Undocumented: ``fit_loop.setup_data``, ``fit_loop.min_epochs``, ``strategy.setup_optimizers``,
``fit_loop.run``, ``fit_loop.on_run_start``, ``fit_loop.on_run_end``, ``strategy.{load,save,remove}_checkpoint``, and ``meta.pt`` in a
checkpoint's folder. ``tests/test_takeover.py``, ``tests/test_resume.py`` and ``tests/test_processes.py`` notice when one of them changes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

_MISSING = object()
_AVERAGES = (WeightAveraging, StochasticWeightAveraging)

# What a module does in its own training has no place in unlearning: it may count on its own step having run.
_TRAIN_HOOKS = (
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_backward",
    "on_after_backward",
    "on_before_zero_grad",
    "on_before_optimizer_step",
    "optimizer_step",
    "optimizer_zero_grad",
    "lr_scheduler_step",
    "configure_gradient_clipping",
)


class Takeover:
    """Everything that is replaced in one fit, and the way back.

    Args:
        trainer: Of the fit.
        module: Its LightningModule.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._trainer, self._module = trainer, module
        self._undo: list[Callable[[], None]] = []
        self.user_min_epochs = trainer.fit_loop.min_epochs or 0

    def shadow(self, owner: Any, name: str, value: Any) -> None:
        """Put ``value`` in front of an attribute of one instance until ``undo``.

        The old entry of ``__dict__`` is kept and restored, since torch.compile keeps its own functions there.
        """
        old = vars(owner).get(name, _MISSING)
        vars(owner)[name] = value

        def undo() -> None:
            if old is _MISSING:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = old

        self._undo.append(undo)

    def assign(self, owner: Any, name: str, value: Any) -> None:
        """Set an attribute until ``undo``."""
        old = getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, old))

    def undo(self) -> None:
        """Give back all that was replaced, the latest first. May be called more than once."""
        while self._undo:
            self._undo.pop()()

    def watch_load(self, loaded: Callable[[Mapping[str, Any], Path], object]) -> None:
        """Call ``loaded`` with the checkpoint that the fit shall go on from, and its path, before anything is restored from it.

        So what the checkpoint's phase needs, its optimizer above all, is in place when Lightning restores it. (A strategy with
        ``restore_checkpoint_after_setup`` reads right into model and optimizer: with one, ``loaded`` would have to come before ``load``.)
        """
        strategy = self._trainer.strategy
        load = strategy.load_checkpoint

        def load_checkpoint(path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
            checkpoint = load(path, *args, **kwargs)
            loaded(checkpoint, Path(path))
            self._begin_and_end()
            return checkpoint

        self.shadow(strategy, "load_checkpoint", load_checkpoint)

    def _begin_and_end(self) -> None:
        """Lightning passes over a resumed fit that has no epoch left, and so over ``on_train_end``, whose work may not have been done."""
        loop = self._trainer.fit_loop
        run = loop.run

        def run_() -> None:
            passed_over = loop.done
            run()
            if passed_over:
                loop.on_run_start()
                loop.on_run_end()

        self.shadow(loop, "run", run_)

    def train_loader(self) -> DataLoader[Any]:
        """The user's own training loader.

        Raises:
            TypeError: If it is a collection of loaders.
        """
        loader = self._trainer.fit_loop._data_source.dataloader()
        if not isinstance(loader, DataLoader):
            raise TypeError(
                f"Unlearning needs one torch DataLoader with the training samples, got {type(loader).__name__}. Give a loader of the "
                "forget set alone, with ForgetRequest(everything=True)."
            )
        return loader

    def validation_loader(self) -> DataLoader[Any] | None:
        """The user's (first) validation loader, if there is one."""
        source = self._trainer.fit_loop.epoch_loop.val_loop._data_source
        if not source.is_defined() or self._trainer.limit_val_batches == 0:
            return None
        loaders = source.dataloader()
        first = loaders[0] if isinstance(loaders, (list, tuple)) and loaders else loaders
        return first if isinstance(first, DataLoader) else None

    def hold_open(self) -> None:
        """Let nothing but us end the fit before its last epoch: EarlyStopping would end it before the switch, or before the stop rule."""
        self._trainer.fit_loop.min_epochs = self._trainer.max_epochs if self._trainer.max_epochs not in (None, -1) else sys.maxsize
        self._undo.append(lambda: setattr(self._trainer.fit_loop, "min_epochs", self.user_min_epochs or None))

    def end_fit(self) -> None:
        """End the fit after this epoch."""
        self._trainer.fit_loop.min_epochs = 0
        self._trainer.should_stop = True

    def enter(
        self, step: Callable[[Any, int], Any], configure: Callable[[], Any], loaders: Mapping[str, DataLoader[Any]], running: bool
    ) -> None:
        """Make the fit train with other loaders, another step and another optimizer.

        Args:
            step: Called with batch and batch index; the batch is a dict by loader name.
            configure: Stands for ``configure_optimizers``.
            loaders: ``forget`` and perhaps ``validation``, with equally many batches.
            running: Whether training has begun already.
        """
        trainer, module, loop = self._trainer, self._module, self._trainer.fit_loop
        self.assign(loop._data_source, "instance", CombinedLoader(dict(loaders), "min_size"))
        self._undo.append(lambda: setattr(loop, "_combined_loader", None))
        for name, value in {"limit_train_batches": 1.0, "val_check_interval": 1.0, "log_every_n_steps": 1}.items():
            self.assign(trainer, name, value)
        for owner in (module, getattr(trainer, "datamodule", None)):
            self._keep_transfer(owner)
        for hook in _TRAIN_HOOKS:
            self.shadow(module, hook, MethodType(getattr(L.LightningModule, hook), module))
        self.shadow(module, "training_step", MethodType(lambda self, batch, batch_idx: step(batch, batch_idx), module))
        self.shadow(module, "configure_optimizers", MethodType(lambda self: configure(), module))
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint):
                self._silence(callback)
        if running:
            trainer.strategy.setup_optimizers(trainer)
            loop._combined_loader = None
            loop.setup_data()

    def _keep_transfer(self, owner: Any) -> None:
        """Hooks that move a batch expect the user's batch: give them one part of ours after the other."""
        for name in ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"):
            if owner is not None and is_overridden(name, owner):
                self.shadow(owner, name, MethodType(_part_by_part(getattr(owner, name)), owner))

    def _silence(self, checkpoint: ModelCheckpoint) -> None:
        """What was best before unlearning is not best now, and a monitored metric would pick a model that has not forgotten."""
        checkpoint.best_k_models = {}
        checkpoint.best_model_path = checkpoint.kth_best_model_path = ""
        checkpoint.best_model_score = checkpoint.current_score = None
        checkpoint.kth_value = torch.tensor(torch.inf if checkpoint.mode == "min" else -torch.inf)
        if checkpoint.monitor is not None:
            for hook in ("on_train_batch_end", "on_train_epoch_end", "on_validation_end"):
                self.shadow(checkpoint, hook, lambda *args, **kwargs: None)

    def refuse_resume(self, unlearns: Callable[[Mapping[str, Any]], bool]) -> None:
        """Refuse checkpoints that a strategy which loads the optimizer with the weights could not load into this fit.

        Args:
            unlearns: Whether this fit, given the callback states of a checkpoint by key, would have to go on unlearning.
        """
        load = self._trainer.strategy.load_checkpoint

        def load_checkpoint(path: Any, *args: Any, **kwargs: Any) -> Any:
            if unlearns(_callback_states(Path(path))):
                raise RuntimeError(
                    f"{type(self._trainer.strategy).__name__} cannot resume unlearning from {path}: it would load an optimizer that this "
                    "fit does not have. Use two fits: train and save, then unlearn in a fit of its own with retain_space=, whose weights "
                    "the module loads itself; a fit that was cut short while unlearning starts again from the trained model."
                )
            return load(path, *args, **kwargs)

        self.shadow(self._trainer.strategy, "load_checkpoint", load_checkpoint)

    def save_final(self) -> None:
        """Let every ModelCheckpoint that keeps a best model keep the weights as they are now."""
        for callback in self._trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.save_top_k != 0:
                metrics = {
                    **self._trainer.callback_metrics,
                    "epoch": torch.tensor(self._trainer.current_epoch),
                    "step": torch.tensor(self._trainer.global_step),
                }
                path = callback.best_model_path or callback.format_checkpoint_name(metrics)
                callback.best_model_path = path
                for saved in {path, callback.last_model_path} - {""}:
                    self._trainer.save_checkpoint(saved, callback.save_weights_only)


def _part_by_part(hook: Callable[..., Any]) -> Callable[..., Any]:
    def apply(owner: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(batch, dict) and "forget" in batch and batch.keys() <= {"forget", "validation"}:
            return {name: hook(part, *args, **kwargs) for name, part in batch.items()}
        return hook(batch, *args, **kwargs)

    return apply


def _callback_states(path: Path) -> Mapping[str, Any]:
    checkpoint = torch.load(path / "meta.pt" if path.is_dir() else path, map_location="cpu", weights_only=True)
    return checkpoint.get("callbacks", {})


def refuse_strategy(strategy: Any) -> None:
    """Check that weights can be projected under this strategy.

    Raises:
        TypeError: If they cannot.
    """
    if isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)):
        raise TypeError(
            f"{type(strategy).__name__} flattens weights before it shards them, so that no process knows which rows it holds. Use "
            "ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1) and call `fully_shard` in `configure_model`; or "
            "strategy='ddp', or one device."
        )


def is_completed_later(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Whether the model gets layers, shards or another number type between ``setup`` and ``on_fit_start``."""
    return is_overridden("configure_model", module) or isinstance(trainer.precision_plugin, (HalfPrecision, DoublePrecision))


def mesh_of(strategy: Any) -> Any:
    """The device mesh over which weights are sharded; None where every process has them whole."""
    return strategy.device_mesh if isinstance(strategy, ModelParallelStrategy) else None


def behind_averages(callbacks: Sequence[L.Callback], own: L.Callback) -> list[L.Callback]:
    """The same callbacks, with our own behind those that average weights: the fit ends with what they write in their ``on_train_end``."""
    places = [place for place, callback in enumerate(callbacks) if isinstance(callback, _AVERAGES)]
    if not places or callbacks.index(own) > places[-1]:
        return list(callbacks)
    ahead, behind = callbacks[: places[-1] + 1], callbacks[places[-1] + 1 :]
    return [*(callback for callback in ahead if callback is not own), own, *behind]


def refuse_averages(callbacks: Sequence[L.Callback]) -> None:
    """Check that the weights of an unlearning fit are its own.

    Raises:
        ValueError: If a callback averages weights over the fit.
    """
    names = [type(callback).__name__ for callback in callbacks if isinstance(callback, _AVERAGES)]
    if names:
        raise ValueError(
            f"{' and '.join(names)} would mix weights from before unlearning into the result. Learn with it, and forget in a fit of its "
            "own, without it, with retain_space=."
        )


def watch_saves(
    trainer: L.Trainer, saved: Callable[[L.Trainer, Mapping[str, Any], Path], object], removed: Callable[[L.Trainer, Path], object]
) -> None:
    """Call ``saved``, with the model's state, and ``removed`` after each checkpoint that is written or removed, after the fit too.

    This is not undone: a user's ``trainer.save_checkpoint`` comes after the fit.
    """
    strategy = trainer.strategy
    if "save_checkpoint" in vars(strategy):
        return
    save, remove = strategy.save_checkpoint, strategy.remove_checkpoint

    def save_checkpoint(checkpoint: dict[str, Any], filepath: Any, *args: Any, **kwargs: Any) -> None:
        state = checkpoint["state_dict"]  # a strategy that writes a folder takes it out
        save(checkpoint, filepath, *args, **kwargs)
        saved(trainer, state, Path(filepath))

    def remove_checkpoint(filepath: Any) -> None:
        remove(filepath)
        removed(trainer, Path(filepath))

    vars(strategy).update(save_checkpoint=save_checkpoint, remove_checkpoint=remove_checkpoint)
