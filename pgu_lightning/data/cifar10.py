from __future__ import annotations

import tarfile
import zlib
from pathlib import Path
from typing import Unpack

import numpy as np
import torch

from pgu_lightning.data.arrays import ArrayDataset, Common, ImageData, Normalize, carve
from pgu_lightning.data.folders import existing_root

ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
TRAIN, TEST = tuple(f"data_batch_{number}.bin" for number in range(1, 6)), ("test_batch.bin",)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WANTED = f"CIFAR-10's binary version: {ARCHIVE} from https://www.cs.toronto.edu/~kriz/cifar.html, or its unpacked folder {FOLDER}"


class CIFAR10(ImageData):
    """60,000 photographs of 32 x 32 pixels (Krizhevsky, 2009) from the official *binary* version; nothing is unpickled.

    Training and validation images are disjoint parts of the official training set, the test images are the official 10,000.
    A sample's id is ``train/ROW`` or ``test/ROW``, counted through the official files in their order.

    Args:
        root: Folder with the ``.bin`` files, with their folder ``cifar-10-batches-bin``, or with ``cifar-10-binary.tar.gz``.
        train_size: Number of training images.
        validation_size: Number of validation images.
        **common: Arguments of :class:`ImageData`.
    """

    def __init__(
        self, root: str | Path | None = None, train_size: int = 49_000, validation_size: int = 1_000, **common: Unpack[Common]
    ) -> None:
        super().__init__(class_names=CLASSES, shape=(3, 32, 32), **common)
        self.source = _find(existing_root(root, WANTED))
        self.train_size = train_size
        self.validation_size = validation_size

    def splits(self) -> tuple[ArrayDataset, ArrayDataset, ArrayDataset]:
        """Images as uint8, normalised when a sample is read."""
        files = _read_archive(self.source) if self.source.is_file() else {name: (self.source / name).read_bytes() for name in TRAIN + TEST}
        images, labels = self._decode(files, TRAIN)
        test_images, test_labels = self._decode(files, TEST)
        train, validation = carve(len(labels), self.train_size, self.validation_size, self.split_seed)
        transform = Normalize([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])

        def part(rows: torch.Tensor) -> ArrayDataset:
            return ArrayDataset(images[rows], labels[rows], [f"train/{row}" for row in rows.tolist()], transform)

        test = ArrayDataset(test_images, test_labels, [f"test/{row}" for row in range(len(test_labels))], transform)
        return part(train), part(validation), test

    def _decode(self, files: dict[str, bytes], names: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Records of one label byte and 3 x 32 x 32 pixel bytes."""
        record = 1 + 3 * 32 * 32
        for name in names:
            size = len(files[name])
            if not size or size % record or np.frombuffer(files[name], np.uint8)[::record].max() >= self.num_classes:
                raise ValueError(
                    f"{name} in {self.source} is damaged: expected records of {record} bytes that start with a label below "
                    f"{self.num_classes}, got {size} bytes; download {ARCHIVE} again"
                )
        records = torch.from_numpy(np.concatenate([np.frombuffer(files[name], np.uint8).reshape(-1, record) for name in names]))
        return records[:, 1:].reshape(-1, *self.shape).clone(), records[:, 0].long()


def _find(root: Path) -> Path:
    """The folder or archive to read."""
    for folder in (root, root / FOLDER):
        present = [name for name in TRAIN + TEST if (folder / name).is_file()]
        if present:
            missing = sorted(set(TRAIN + TEST) - set(present))
            if missing:
                raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: unpack {ARCHIVE} again")
            return folder
    if (root / ARCHIVE).is_file():
        return root / ARCHIVE
    for pickled in (root / "data_batch_1", root / "cifar-10-batches-py", root / "cifar-10-python.tar.gz"):
        if pickled.exists():
            raise ValueError(
                f"{pickled} is CIFAR-10's python version, a pickle that could run any code, and is not opened: put into data.root {WANTED}"
            )
    raise FileNotFoundError(f"data.root={root} has none of CIFAR-10's files: put into it {WANTED}")


def _read_archive(path: Path) -> dict[str, bytes]:
    """The files of the archive by name, in memory."""
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = Path(member.name).name
                content = archive.extractfile(member) if name in TRAIN + TEST else None
                if content is not None:
                    files[name] = content.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole archive ({error}): download it again") from error
    missing = sorted(set(TRAIN + TEST) - files.keys())
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: download it again")
    return files
