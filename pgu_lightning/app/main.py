"""The command ``pgu-lightning``."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pgu_lightning.app import loggers
from pgu_lightning.app.experiment import run


@hydra.main(version_base="1.3", config_path="pkg://pgu_lightning.conf", config_name="config")
def main(config: DictConfig) -> float | None:
    """Train, collect, forget, compare, report; returns the average gap to the retrained model, where there is one."""
    # Lightning announces accelerators and products at INFO and warns of itself; what matters of a run is in the table and the report.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        return run(config, Path(HydraConfig.get().runtime.output_dir)).average_gap
    finally:
        loggers.abandon()
