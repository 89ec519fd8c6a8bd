from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pgu_lightning.app.lock import follows, hold

HOLDS = """
import pathlib, sys, time
from pgu_lightning.app.lock import hold
with hold(pathlib.Path(sys.argv[1])):
    print(1, flush=True)
    time.sleep(99)
"""


@pytest.fixture
def other(tmp_path):
    """Another run that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "1\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path, other):
    with pytest.raises(RuntimeError, match=rf"in use by process {other.pid} on .*, begun 20.*hydra.run.dir"), hold(tmp_path):
        pytest.fail("both hold the folder")


def test_a_killed_run_holds_nothing(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with hold(tmp_path):
        assert f"process {os.getpid()} " in (tmp_path / ".holder").read_text()
    with hold(tmp_path):
        pass


def test_one_that_failed_holds_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path):
        _ = 1 / 0
    with hold(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_helper_processes_of_the_first_may_enter(tmp_path, other, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with hold(tmp_path):
        pass


@pytest.mark.parametrize(
    ("variables", "helps"),
    [
        ({}, False),
        ({"LOCAL_RANK": "1"}, True),  # Lightning's own launcher
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, False),  # torchrun
        ({"RANK": "8", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0", "SLURM_PROCID": "0"}, True),  # torchrun in a Slurm job counts the machines as it likes
        ({"RANK": "0", "LOCAL_RANK": "0", "SLURM_PROCID": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, False),
        ({"SLURM_PROCID": "8", "SLURM_LOCALID": "0"}, True),
    ],
    ids=str,
)
def test_one_process_of_all_machines_writes(monkeypatch, variables, helps):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert follows() == helps
