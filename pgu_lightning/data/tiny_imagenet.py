from __future__ import annotations

from pathlib import Path
from typing import Unpack

import torch

from pgu_lightning.data.arrays import Common, ImageData, Normalize, carve
from pgu_lightning.data.folders import FileImages, existing_root, image_files

FOLDER = "tiny-imagenet-200"
WANTED = f"the unpacked {FOLDER}.zip (wnids.txt, words.txt, train, val)"


class TinyImageNet(ImageData):
    """Photographs of 64 x 64 pixels in 200 classes, from the official folder; decoded when they are used.

    The official validation images are the test images here, since the official test labels are not public; training and validation images
    are disjoint parts of the official training set. A sample's id is its path in the official folder.

    Args:
        root: The folder ``tiny-imagenet-200``, or the one it lies in.
        train_size: Number of training images.
        validation_size: Number of validation images.
        **common: Arguments of :class:`ImageData`.
    """

    def __init__(
        self, root: str | Path | None = None, train_size: int = 90_000, validation_size: int = 10_000, **common: Unpack[Common]
    ) -> None:
        folder = existing_root(root, WANTED)
        self.folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        wanted = ("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt")
        missing = [name for name in wanted if not (self.folder / name).exists()]
        if missing:
            raise FileNotFoundError(f"{self.folder} lacks {', '.join(missing)}: data.root must be the folder with {WANTED}")
        self.wnids = (self.folder / "wnids.txt").read_text().split()
        words = dict(line.split("\t", 1) for line in (self.folder / "words.txt").read_text().splitlines() if "\t" in line)
        super().__init__(class_names=[words.get(wnid, wnid).split(",")[0].strip() for wnid in self.wnids], shape=(3, 64, 64), **common)
        self.train_size = train_size
        self.validation_size = validation_size

    def splits(self) -> tuple[FileImages, FileImages, FileImages]:
        """Paths and labels; no image is opened yet."""
        missing = [wnid for wnid in self.wnids if not (self.folder / "train" / wnid / "images").is_dir()]
        if missing:
            raise FileNotFoundError(
                f"{self.folder / 'train'} lacks the folders of {len(missing)} classes ({', '.join(missing[:5])}, ...): unpack again"
            )
        official = [(path, label) for label, wnid in enumerate(self.wnids) for path in image_files(self.folder / "train" / wnid / "images")]
        train, validation = carve(len(official), self.train_size, self.validation_size, self.split_seed)

        def part(samples: list[tuple[Path, int]]) -> FileImages:
            paths, labels = [path for path, _ in samples], [label for _, label in samples]
            return FileImages(self.folder, paths, labels, self.shape[1], Normalize([0.480, 0.448, 0.398], [0.277, 0.269, 0.282]))

        def rows(indices: torch.Tensor) -> list[tuple[Path, int]]:
            return [official[row] for row in indices.tolist()]

        return part(rows(train)), part(rows(validation)), part(self._annotated())

    def _annotated(self) -> list[tuple[Path, int]]:
        annotations = self.folder / "val" / "val_annotations.txt"
        labels = {wnid: label for label, wnid in enumerate(self.wnids)}
        samples, bad = [], []
        for number, line in enumerate(annotations.read_text().splitlines(), start=1):
            fields = line.split("\t")
            path = self.folder / "val" / "images" / fields[0]
            if len(fields) < 2 or fields[1] not in labels or not path.is_file():
                bad.append(number)
            else:
                samples.append((path, labels[fields[1]]))
        if bad or not samples:
            raise ValueError(
                f"{annotations} should have lines of an image in val/images, a tab and one of the ids of wnids.txt; "
                f"{len(bad)} lines have not (first: {bad[:5]}), {len(samples)} have: unpack {FOLDER}.zip again"
            )
        return samples
