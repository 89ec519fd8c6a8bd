"""Runs a script in a process group of its own, and ends what it started; or plays one process of many."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

from pgu_lightning import distributed

ROOT = Path(__file__).parents[2]


def run_script(path: Path, *arguments: str, timeout: float = 240, killed: bool = False) -> str:
    """Standard output of a Python script; its error output is shown if it fails, or was not killed when it should be."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT", "MASTER_ADDR"):
        environment.pop(name, None)
    command = [sys.executable, str(path), *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        # Lightning catches SIGTERM, and a helper process may outlive the first one.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == (-signal.SIGKILL if killed else 0), err[-4000:]
    return out


def as_rank(rank: int, world: int):
    """Inside, the package takes this process for one of many; collectives are not available."""
    return patch.multiple(distributed, rank=lambda: rank, world=lambda: world, _active=lambda: world > 1)
