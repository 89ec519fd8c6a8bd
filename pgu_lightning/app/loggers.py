"""The loggers of a run: made from the configuration, told what it is about, and in the end what came of it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from pgu_lightning.app.config import public
from pgu_lightning.records import Report
from pgu_lightning.report import figures

_LOGGER = logging.getLogger(__name__)


def make(config: DictConfig) -> tuple[Logger, ...]:
    """The configured loggers that work here.

    What a logger lacks does not stop the run: without its package it is left out, and wandb that cannot be reached or has no key writes
    offline; each says so in one line. The report needs none of them.

    Args:
        config: By name, each logger's ``_target_`` and arguments.
    """
    loggers = []
    for name, entry in config.items():
        chosen = {key: value for key, value in _names().items() if entry.get(key) is None} if "WandbLogger" in entry._target_ else {}
        try:
            logger = instantiate(entry, **chosen)
        except InstantiationException as error:
            if not isinstance(error.__cause__, ImportError):
                raise
            _LOGGER.warning(f"logger.{name!s} is left out, its package cannot be imported ({error.__cause__}): install it, or logger=none.")
            continue
        if isinstance(logger, WandbLogger) and not _starts(logger):
            # Lightning's offline alone sets a variable, which wandb has read already
            logger = instantiate(entry, **chosen, offline=True, mode="offline")
        loggers.append(logger)
    return tuple(loggers)


def _names() -> dict[str, Any]:
    """What makes runs findable in wandb: their choices as tags; in a sweep its folder as group and the overrides as name."""
    if not HydraConfig.initialized():
        return {}
    hydra = HydraConfig.get()
    tags = [str(hydra.runtime.choices[group]) for group in ("data", "model", "forget", "method") if group in hydra.runtime.choices]
    if hydra.mode != RunMode.MULTIRUN:
        return {"tags": tags}
    # wandb takes at most 128 characters; a folder's end and a job's number tell more than what they begin with
    name = " ".join([str(hydra.job.num), *(f"{key}={value}" for key, value in public(hydra.overrides.task).items())])
    return {"tags": [*tags, "sweep"], "group": hydra.sweep.dir[-128:], "name": name[:128]}


def _starts(logger: WandbLogger) -> bool:
    import wandb

    try:
        _ = logger.experiment
    except wandb.errors.Error as error:
        _LOGGER.warning(f"wandb cannot be reached ({str(error).splitlines()[0]}): the run is kept offline, `wandb sync` sends it later.")
        return False
    return True


def begin(loggers: Collection[Logger], layers: Collection[str], config: Mapping[str, Any]) -> None:
    """Before unlearning: the axes of the live metrics, and the configuration. Called on every process; the first one's loggers write.

    Args:
        loggers: Of the run.
        layers: Names of the layers that may change.
        config: Plain values, without the names of those to forget.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            from pgu_lightning.report.wandb import define_metrics

            define_metrics(logger.experiment, layers)
        logger.log_hyperparams(dict(config))


def end(loggers: Collection[Logger], report: Report, folder: Path) -> None:
    """The final figures to each; to wandb also tables, charts, and the run's files as artifacts. Called on one process.

    Args:
        loggers: Of the run.
        report: What to log.
        folder: Of the run.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            from pgu_lightning.report.wandb import log_report

            log_report(logger.experiment, report, folder)
            logger.experiment.finish()
        else:
            numbers = {name: float(value) for name, value in figures(report).items() if not isinstance(value, str)}
            logger.log_metrics(numbers, step=report.outcome.steps if report.outcome else 0)
            logger.finalize("success")


def abandon() -> None:
    """Close a wandb run that an error left open, lest the next run of the same process logs into it."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish(exit_code=1)
