"""One run at a time in a folder."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from pgu_lightning.files import atomic_write


def follows() -> bool:
    """Whether another process of this run writes for this one; known before there is a process group, as whoever started it says.

    torchrun names each process by its number over all machines; Slurm's number may differ from it, and Lightning's own launcher counts
    the processes of a machine and the machines apart.
    """
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return any(int(os.environ.get(name, "0")) != 0 for name in names)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Inside, no other run writes to ``folder``. The operating system gives the lock back when a run is killed.

    Helper processes of a distributed run write nothing of their own: the first process holds the folder for them.

    Args:
        folder: Is there already.

    Raises:
        RuntimeError: If another run holds it.
    """
    if follows():
        yield
        return
    lock, holder = FileLock(folder / ".lock"), folder / ".holder"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        other = holder.read_text() if holder.exists() else "another run"
        raise RuntimeError(f"{folder} is in use by {other}. Wait for it, end it, or give another hydra.run.dir=.") from None
    try:
        text = f"process {os.getpid()} on {platform.node()}, begun {datetime.now():%Y-%m-%d %H:%M:%S}"
        atomic_write(holder, lambda path: path.write_text(text))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
