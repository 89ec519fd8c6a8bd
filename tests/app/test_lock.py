from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pgu_lightning.app.lock import hold

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
