"""Trained models by a digest of everything that determines them, so that runs that share a stage train it once."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from pgu_lightning.app.lock import follows
from pgu_lightning.files import digest


class Cache:
    """Folders that are made once.

    A folder is made under another name and renamed when it is whole, so a run that was killed leaves nothing that another would take for a
    result. Runs that want the same folder at the same time wait for the one that makes it.

    Args:
        root: Where the folders lie.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, kind: str, key: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """The folder for ``key``, made by ``make`` if it is not there yet.

        Args:
            kind: First part of its name, for people.
            key: All that determines its contents; plain values.
            make: Fills the folder that it is given and returns facts to keep beside, plain values.

        Returns:
            The folder and the facts.
        """
        text = json.dumps(key, sort_keys=True, default=str)
        folder = self._root / f"{kind}-{digest([text])[:16]}"
        self._root.mkdir(parents=True, exist_ok=True)
        if follows():
            return self._follow(folder, make)
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                partial = _partial(folder)
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                facts = dict(make(partial))
                (partial / "key.json").write_text(text)
                (partial / "facts.json").write_text(json.dumps(facts))
                partial.rename(folder)
        return folder, json.loads((folder / "facts.json").read_text())

    @staticmethod
    def _follow(folder: Path, make: Callable[[Path], Mapping[str, Any]]) -> tuple[Path, dict[str, Any]]:
        """A helper process of a distributed run trains along, but the first process decides and writes."""
        if not folder.exists():
            make(_partial(folder))
        while not folder.exists():
            time.sleep(0.05)
        return folder, json.loads((folder / "facts.json").read_text())


def _partial(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")
