"""The command ``pgu-lightning``."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pgu_lightning.app import loggers
from pgu_lightning.app.config import nearest
from pgu_lightning.app.experiment import run
from pgu_lightning.app.sweep import run_job


@hydra.main(version_base="1.3", config_path="pkg://pgu_lightning.conf", config_name="config")
def job(config: DictConfig) -> float | None:
    """Train, collect, forget, compare, report; returns what a sweep that optimises minimises: the figure that ``objective`` names."""
    # Lightning announces accelerators and products at INFO and warns of itself; what matters of a run is in the table and the report.
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    composed = HydraConfig.get()
    output = Path(composed.runtime.output_dir)
    try:
        report = run_job(config, output, composed.overrides.task) if composed.mode == RunMode.MULTIRUN else run(config, output)
    finally:
        loggers.abandon()
    return None if report is None else getattr(report, config.objective)


def main() -> None:
    """Run :func:`job`; a misspelt group, option or key is answered with the nearest that there is."""
    try:
        job()
    except SystemExit as ended:
        if (meant := nearest(ended.__context__)) is not None:
            print(meant, file=sys.stderr)
        raise
