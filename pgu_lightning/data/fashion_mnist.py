from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from pgu_lightning.data.arrays import ArrayDataset, Common, ImageData, Normalize, carve

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


class FashionMNIST(ImageData):
    """70,000 pictures of clothes of 28 x 28 pixels (Xiao et al., arXiv 1708.07747), read from the four IDX files.

    Training and validation images are disjoint parts of the official training set, the test images are the official 10,000.
    A sample's id is ``train/ROW`` or ``test/ROW``, with its row in the official file.

    Args:
        root: Folder with the four files, or with a folder ``fashion-mnist`` that has them; None: where Debian's package puts them.
        train_size: Number of training images.
        validation_size: Number of validation images.
        **common: Arguments of :class:`ImageData`.
    """

    def __init__(
        self, root: str | Path | None = None, train_size: int = 59_000, validation_size: int = 1_000, **common: Unpack[Common]
    ) -> None:
        super().__init__(class_names=CLASSES, shape=(1, 28, 28), **common)
        self.folder = _find(root)
        self.train_size = train_size
        self.validation_size = validation_size

    def splits(self) -> tuple[ArrayDataset, ArrayDataset, ArrayDataset]:
        """Images as uint8, normalised when a sample is read."""
        official, test = self._read("train"), self._read("t10k")
        train, validation = carve(len(official), self.train_size, self.validation_size, self.split_seed)

        def part(source: ArrayDataset, rows: torch.Tensor, name: str) -> ArrayDataset:
            ids = [f"{name}/{row}" for row in rows.tolist()]
            return ArrayDataset(source.images[rows], source.targets[rows], ids, Normalize([0.286], [0.353]))

        return part(official, train, "train"), part(official, validation, "train"), part(test, torch.arange(len(test)), "test")

    def _read(self, prefix: str) -> ArrayDataset:
        images = read_idx(self.folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(self.folder / f"{prefix}-labels-idx1-ubyte.gz")
        if images.shape != (len(labels), *self.shape[1:]) or labels.ndim != 1 or labels.max(initial=0) >= self.num_classes:
            raise ValueError(
                f"the files {prefix}-* in {self.folder} are not Fashion-MNIST: expected (N, 28, 28) images and N labels below "
                f"{self.num_classes}, got images {images.shape} and labels {labels.shape} up to {labels.max(initial=0)}"
            )
        return ArrayDataset(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels))


def read_idx(path: str | Path) -> np.ndarray:
    """Read a gzipped IDX file of unsigned bytes.

    Args:
        path: The ``.gz`` file.

    Returns:
        The array, uint8, with the file's own dimensions.

    Raises:
        ValueError: If the file is no such file or is damaged.
    """
    again = "download it again, or reinstall dataset-fashion-mnist"
    try:
        with gzip.open(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file ({error}): {again}") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} starts with {data[:4].hex() or 'nothing'}; an IDX file of unsigned bytes starts with 000008: {again}")
    start = 4 + 4 * data[3]
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], dtype=">u4")) if len(data) >= start else ()
    if len(data) < start or len(data) - start != math.prod(shape):
        raise ValueError(f"{path} announces {data[3]} dimensions {shape}, and has {max(len(data) - start, 0)} bytes for them: {again}")
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape).copy()


def _find(root: str | Path | None) -> Path:
    places = [DEBIAN] if root is None else [Path(root), Path(root) / "fashion-mnist"]
    for place in places:
        if all((place / name).is_file() for name in FILES):
            return place
    raise FileNotFoundError(
        f"Fashion-MNIST is not in {' or '.join(map(str, places))}: run `apt-get install dataset-fashion-mnist` and leave data.root unset, "
        f"or put the four files {', '.join(FILES)} under data.root"
    )
