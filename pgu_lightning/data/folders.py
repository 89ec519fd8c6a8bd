"""Images that stay in their files until they are used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from pgu_lightning.data.arrays import LabelledImages, Transform

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


class FileImages(LabelledImages):
    """Images decoded when a sample is read: RGB, resized to ``size`` x ``size`` pixels where they have another size.

    Args:
        root: Folder that the ids are relative to.
        paths: One file a sample, below ``root``; the ids are their relative paths.
        targets: (N,), integers.
        size: Height and width in pixels.
        transform: Called with one float32 image of shape (3, size, size).
    """

    def __init__(self, root: Path, paths: Sequence[Path], targets: Sequence[int], size: int, transform: Transform | None = None) -> None:
        super().__init__(torch.tensor(targets, dtype=torch.int64), [path.relative_to(root).as_posix() for path in paths], transform)
        self.paths = list(paths)
        self.size = size

    def image(self, index: int) -> Tensor:
        """Decode one file.

        Args:
            index: Number of the sample.

        Returns:
            (3, size, size), uint8.

        Raises:
            ValueError: If the file is not an image or is damaged.
        """
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                picture = file.convert("RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as an image ({error}): replace or remove it") from error
        if picture.size != (self.size, self.size):
            picture = picture.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    def content(self) -> Iterator[bytes]:
        """The size and the bytes of all files."""
        yield str(self.size).encode()
        for path in self.paths:
            yield path.read_bytes()


def existing_root(root: str | Path | None, contents: str) -> Path:
    """``root`` as a path.

    Args:
        root: The option ``data.root``.
        contents: What it should hold, for the message.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: If it is not set or is no folder.
    """
    if root is None:
        raise FileNotFoundError(f"data.root is not set: set data.root=FOLDER to the folder with {contents}")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"data.root={root} is not a folder: it must be the folder with {contents}")
    return Path(root)


def image_files(folder: Path) -> list[Path]:
    """The image files directly in ``folder``, sorted by name; hidden ones are left out."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))


def unreadable(paths: Sequence[Path]) -> list[Path]:
    """Those of ``paths`` that are no images, judged by their headers and, where the format has them, checksums."""
    bad = []
    for path in paths:
        try:
            with Image.open(path) as file:
                file.verify()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
            bad.append(path)
    return bad
