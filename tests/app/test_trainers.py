"""The application on several processes and machines."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys

import pytest
from hydra.utils import instantiate
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only

from pgu_lightning.records import Report
from tests.app.test_configs import composed
from tests.helpers.processes import ROOT

# Reports of one process with the seeds 0 to 3 differ by up to .017, 0, .012, .043 and .20.
BOUNDS = {"forget_accuracy": 0.02, "retain_accuracy": 0.01, "test_accuracy": 0.02, "forget_test_accuracy": 0.07, "mia_auc": 0.15}


def start(*arguments, launcher=()):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"):
        environment.pop(name, None)
    command = [sys.executable, "-m", *launcher, "pgu_lightning", "logger=none", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True)


def finish(*processes):
    try:
        for process in processes:
            out, _ = process.communicate(timeout=240)
            assert process.returncode == 0, out[-4000:]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_slurm_says_how_many(tmp_path, monkeypatch):
    """The configuration takes the job's size; Lightning finds the rest."""
    for name, value in {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "forget",
        "SLURM_NTASKS": "8",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_JOB_NODELIST": "a[1-2]",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # the Trainer sets it for the whole process: restored afterwards
    config = composed("trainer=slurm", "trainer.accelerator=cpu", tmp_path=tmp_path)
    trainer = instantiate(config.trainer, logger=False)
    assert (trainer.num_devices, trainer.num_nodes, trainer.world_size, trainer.global_rank) == (4, 2, 8, 5)
    assert isinstance(trainer.strategy.cluster_environment, SLURMEnvironment)


@pytest.mark.slow
@pytest.mark.parametrize("request_", [("forget=class",), ("forget=samples", "forget.size=120")], ids=["class", "samples"])
def test_two_processes_report_what_one_does(tmp_path, request_):
    """Within what another seed would do: on two processes a training batch is twice as large, so the originals differ."""
    reports = []
    for option in ("default", "ddp_sim"):
        finish(start(f"trainer={option}", *request_, f"cache={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / option}"))
        reports.append(Report.load(tmp_path / option / "report.json"))
    one, two = reports
    assert (one.environment["processes"], two.environment["processes"]) == ("1", "2")
    assert one.request == two.request
    assert one.outcome.fulfilled
    assert two.outcome.fulfilled
    assert one.sizes == two.sizes
    assert one.layers.keys() == two.layers.keys()
    for name, metrics in one.models.items():
        for metric, value in metrics.items():
            assert two.models[name][metric] == pytest.approx(value, abs=BOUNDS[metric]), (name, metric)
    assert max(one.interference.total, two.interference.total) < 0.001


@pytest.mark.slow
def test_two_machines_leave_one_report(tmp_path):
    """Each has a process whose number on its own machine is 0; one of them writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = (f"cache={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}")
    options = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.num_nodes=2", "model.epochs=2", *folders)
    torchrun = ("torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}")
    finish(*(start(*options, launcher=(*torchrun, f"--node-rank={number}", "-m")) for number in range(2)))
    report = Report.load(tmp_path / "run" / "report.json")
    assert report.environment["processes"] == "2"
    assert len(list((tmp_path / "cache").glob("original-*/model.ckpt"))) == 1
