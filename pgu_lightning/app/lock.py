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


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Inside, no other run writes to ``folder``. The operating system gives the lock back when a run is killed.

    Helper processes of a distributed run write nothing of their own: the first process holds the folder for them.

    Args:
        folder: Is there already.

    Raises:
        RuntimeError: If another run holds it.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
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
