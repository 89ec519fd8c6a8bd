from __future__ import annotations

from pathlib import Path
from typing import Unpack

import numpy as np

from pgu_lightning.data.arrays import Common, ImageData, Normalize
from pgu_lightning.data.folders import SUFFIXES, FileImages, existing_root, image_files, unreadable

SPLITS = ("train", "val", "test")
WANTED = f"one folder of images ({', '.join(SUFFIXES)}) for each class, or with such folders in each of {', '.join(SPLITS)}"


class ImageFolder(ImageData):
    """Your own images: ``root/CLASS/*.png``, or ``root/{train,val,test}/CLASS/*.png``; decoded when they are used.

    Without the three folders each class is split by the fractions, at least one image to each part. The classes are the sorted names of the
    folders. A sample's id is its path below ``root``.

    Args:
        root: The folder.
        size: Height and width in pixels to which images are resized.
        validation_fraction: Share of each class for validation; not used where ``root`` has the three folders.
        test_fraction: Share of each class for test; not used where ``root`` has the three folders.
        **common: Arguments of :class:`ImageData`.

    Raises:
        ValueError: If the fractions leave nothing to train on.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        size: int = 64,
        validation_fraction: float = 0.1,
        test_fraction: float = 0.2,
        **common: Unpack[Common],
    ) -> None:
        if validation_fraction <= 0 or test_fraction <= 0 or validation_fraction + test_fraction >= 1:
            raise ValueError(
                "data.validation_fraction and data.test_fraction must be positive and together below 1, "
                f"got {validation_fraction} and {test_fraction}"
            )
        self.root = existing_root(root, WANTED)
        self.presplit = (self.root / "train").is_dir()
        self.fractions = (validation_fraction, test_fraction)
        super().__init__(class_names=_classes(self.root, self.presplit), shape=(3, size, size), **common)

    def splits(self) -> tuple[FileImages, FileImages, FileImages]:
        """Paths and labels; every file's header is checked first."""
        parts = self._presplit() if self.presplit else self._split()
        bad = unreadable([path for part in parts for path, _ in part])
        if bad:
            raise ValueError(f"{len(bad)} files cannot be read as images, replace or remove them: {', '.join(map(str, bad[:10]))}")
        train, validation, test = (
            FileImages(self.root, [path for path, _ in part], [label for _, label in part], self.shape[1], Normalize([0.5] * 3, [0.5] * 3))
            for part in parts
        )
        return train, validation, test

    def _presplit(self) -> list[list[tuple[Path, int]]]:
        return [
            [(path, label) for label, name in enumerate(self.class_names) for path in image_files(self.root / split / name)]
            for split in SPLITS
        ]

    def _split(self) -> list[list[tuple[Path, int]]]:
        generator = np.random.default_rng(self.split_seed)
        parts: list[list[tuple[Path, int]]] = [[], [], []]
        for label, name in enumerate(self.class_names):
            paths = image_files(self.root / name)
            validation = min(max(1, round(self.fractions[0] * len(paths))), len(paths) - 2)
            test = min(max(1, round(self.fractions[1] * len(paths))), len(paths) - validation - 1)
            order = [(paths[row], label) for row in generator.permutation(len(paths))]
            parts[1] += order[:validation]
            parts[2] += order[validation : validation + test]
            parts[0] += order[validation + test :]
        return parts


def _classes(root: Path, presplit: bool) -> list[str]:
    """The names of the classes, after checking that every split has images of each."""
    splits = [root / split for split in SPLITS] if presplit else [root]
    missing = [str(split) for split in splits if not split.is_dir()]
    if missing:
        raise FileNotFoundError(
            f"data.root={root} has a folder train, but not {', '.join(missing)}: "
            "add it, or put the classes directly under data.root to have them split"
        )
    names = sorted({path.name for split in splits for path in split.iterdir() if path.is_dir() and not path.name.startswith(".")})
    if len(names) < 2:
        raise ValueError(
            f"data.root={root} has {len(names)} class folders {names}, at least 2 are needed: it must be a folder with {WANTED}"
        )
    least = 1 if presplit else 3
    counts = {split / name: len(image_files(split / name)) if (split / name).is_dir() else 0 for split in splits for name in names}
    few = [f"{folder} has {count}" for folder, count in counts.items() if count < least]
    if few:
        raise ValueError(f"each class needs at least {least} images ({', '.join(SUFFIXES)}): {'; '.join(few[:10])}")
    return names
