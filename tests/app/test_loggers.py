"""A logger that does not work here says so and does not stop the run."""

from __future__ import annotations

import csv
import logging

import pytest
import wandb
from hydra.errors import InstantiationException
from hydra.types import RunMode
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pgu_lightning.app import loggers
from pgu_lightning.report import figures
from tests.app.test_configs import composed
from tests.report.sample import rich


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where wandb writes everything; it finds no key and nobody to ask."""
    for name in ("WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "HOME", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.setenv(name, "")  # restored afterwards, also where Lightning sets it
        monkeypatch.delenv(name)
    yield tmp_path
    loggers.abandon()
    wandb.teardown()


def test_a_missing_package_leaves_its_logger_out(folder, monkeypatch, caplog):
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    made = loggers.make(composed("logger=many", tmp_path=folder).logger)
    assert [type(logger).__name__ for logger in made] == ["CSVLogger", "TensorBoardLogger"]
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "logger.wandb is left out" in warning.message
    assert "\n" not in warning.message


def test_another_error_is_not_hidden():
    config = OmegaConf.create({"csv": {"_target_": "lightning.pytorch.loggers.CSVLogger", "folder": "x"}})
    with pytest.raises(InstantiationException, match="folder"):
        loggers.make(config)


def test_wandb_without_a_key_goes_on_offline(folder, caplog):
    (logger,) = loggers.make(composed("logger=wandb", "logger.wandb.offline=false", tmp_path=folder).logger)
    assert logger.experiment.offline
    (message,) = (record.message for record in caplog.records if record.name == "pgu_lightning.app.loggers")
    assert message.startswith("wandb cannot be reached (No API key configured.")
    assert message.endswith("the run is kept offline, `wandb sync` sends it later.")


def test_wandb_without_a_network_goes_on_offline(folder, monkeypatch, caplog):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    (logger,) = loggers.make(composed("logger=wandb", "logger.wandb.offline=false", tmp_path=folder).logger)
    assert logger.experiment.offline
    assert len([record for record in caplog.records if "kept offline" in record.message]) == 1


def test_an_abandoned_run_is_closed(folder):
    loggers.make(composed("logger=wandb", tmp_path=folder).logger)
    assert wandb.run is not None
    loggers.abandon()
    assert wandb.run is None


def test_csv_and_tensorboard_hold_the_final_figures(folder):
    made = loggers.make(composed("logger=many", "~logger.wandb", tmp_path=folder).logger)
    loggers.begin(made, ["layer"], {"seed": 7, "method": {"name": "pgu"}})
    loggers.end(made, rich(), folder)
    expected = {name: float(value) for name, value in figures(rich()).items() if not isinstance(value, str)}
    assert {"final/average_gap", "final/unlearned/mia_auc", "seconds/unlearn", "outcome/fulfilled"} <= expected.keys()
    csv_logger = next(logger for logger in made if isinstance(logger, CSVLogger))
    with open(f"{csv_logger.log_dir}/metrics.csv") as file:  # noqa: PTH123
        (row,) = csv.DictReader(file)
    assert {name: float(value) for name, value in row.items() if name != "step"} == pytest.approx(expected)
    events = EventAccumulator(str(next(folder.glob("tensorboard/*")))).Reload()
    shown = {name: events.Scalars(name)[-1].value for name in events.Tags()["scalars"] if name in expected}
    assert shown == pytest.approx(expected, rel=1e-6)


def test_a_sweeps_run_is_named_by_its_overrides_without_people(monkeypatch):
    class Job:
        num = 3

    class Hydra:
        job, mode = Job, RunMode.MULTIRUN
        runtime = OmegaConf.create({"choices": {"data": "digits", "method": "pgu"}})
        sweep = OmegaConf.create({"dir": "outputs/sweeps/a"})
        overrides = OmegaConf.create({"task": ["seed=1", "+forget.ids=[anna,bert]"]})

    monkeypatch.setattr(loggers.HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(loggers.HydraConfig, "get", lambda: Hydra)
    assert loggers._names() == {"tags": ["digits", "pgu", "sweep"], "group": "outputs/sweeps/a", "name": "3 seed=1"}
