"""Files that are either the old or the new one, digests, and nothing unpickled."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a temporary file beside ``path``, then rename it over ``path``.

    A reader sees the old file or the new one, never a part. When ``write`` raises (a full disk, say) the old file is as it was.

    Args:
        path: Where the file shall be; missing folders are made.
        write: Called with the temporary path.

    Returns:
        ``path``.

    Example:
        >>> folder = Path(tempfile.mkdtemp())
        >>> atomic_write(folder / "a.txt", lambda temporary: temporary.write_text("whole")).read_text()
        'whole'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 over ``parts`` in their order, as hexadecimal digits; where one part ends counts.

    Example:
        >>> digest(["a", "b"]) == digest(["ab"])
        False
    """
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def read_tensors(path: Path, form: str, again: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a whole safetensors file of one of our formats. Nothing is unpickled.

    Args:
        path: The file.
        form: What its metadata must have as ``format``.
        again: How to make it again, a sentence for the error.

    Returns:
        Its metadata and its tensors by name.

    Raises:
        ValueError: If the file is damaged, cut short, or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: what is read is a map of the file, and would change with it, or crash the process when it is cut short.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}). {again}") from error
    if metadata.get("format") != form:
        raise ValueError(f"{path} is a safetensors file, but not a {form!r}: it says {metadata.get('format')!r}.")
    return metadata, tensors


def retain_path(checkpoint: str | Path) -> Path:
    """Where the statistics of a checkpoint lie: beside it.

    Example:
        >>> retain_path("runs/model.ckpt").as_posix()
        'runs/model.retain.safetensors'
    """
    return Path(checkpoint).with_suffix(".retain.safetensors")
