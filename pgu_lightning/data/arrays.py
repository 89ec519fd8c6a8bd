"""Labelled images in memory, and the data module that every data set here is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TypedDict

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pgu_lightning.files import digest

Transform = Callable[[Tensor], Tensor]


class Normalize:
    """``(image - mean) / std`` by channel; its ``repr`` is part of a data set's digest.

    Args:
        mean: One value a channel.
        std: One value a channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._repr = f"Normalize(mean={tuple(mean)}, std={tuple(std)})"
        self.mean = torch.tensor(mean).view(-1, 1, 1)
        self.std = torch.tensor(std).view(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """Normalise one image, (C, H, W), or a batch of them."""
        return (image - self.mean) / self.std

    def __repr__(self) -> str:
        return self._repr


class LabelledImages(Dataset[tuple[Tensor, int]], ABC):
    """A map-style data set of ``(image, label)``; subclasses say where an image comes from.

    Attributes:
        targets: Labels, (N,), int64.
        ids: A name for each sample, or None.
        transform: Called with one float32 image, or None.
    """

    def __init__(self, targets: Tensor, ids: Sequence[str] | None, transform: Transform | None) -> None:
        self.targets = targets.to(torch.int64)
        self.ids = None if ids is None else list(ids)
        self.transform = transform

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """One image before the transform, (C, H, W), float32 or uint8."""

    @abstractmethod
    def content(self) -> Iterator[bytes]:
        """The stored bytes of all images."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.image(index)
        if image.dtype == torch.uint8:
            image = image.float() / 255
        return image if self.transform is None else self.transform(image), int(self.targets[index])


class ArrayDataset(LabelledImages):
    """Images that lie in memory.

    Args:
        images: (N, C, H, W), float32, or uint8 in 0..255, which is scaled to [0, 1] when a sample is read.
        targets: (N,), integers.
        ids: A name for each sample.
        transform: Called with one float32 image of shape (C, H, W).

    Raises:
        ValueError: If the lengths differ or the images have another type.

    Example:
        >>> image, label = ArrayDataset(torch.full((2, 1, 4, 4), 255, dtype=torch.uint8), torch.tensor([3, 7]))[1]
        >>> image.shape, image.max().item(), label
        (torch.Size([1, 4, 4]), 1.0, 7)
    """

    def __init__(self, images: Tensor, targets: Tensor, ids: Sequence[str] | None = None, transform: Transform | None = None) -> None:
        if images.ndim != 4 or images.dtype not in (torch.float32, torch.uint8):
            raise ValueError(f"images must be (N, C, H, W) in float32 or uint8, got {tuple(images.shape)} in {images.dtype}")
        if len(images) != len(targets) or (ids is not None and len(ids) != len(targets)):
            named = "" if ids is None else f", {len(ids)} ids"
            raise ValueError(f"one target and one id for each image expected: {len(images)} images, {len(targets)} targets{named}")
        super().__init__(targets, ids, transform)
        self.images = images

    def image(self, index: int) -> Tensor:
        """One image as it is stored."""
        return self.images[index]

    def content(self) -> Iterator[bytes]:
        """Shape, type and bytes of the whole array."""
        yield f"{tuple(self.images.shape)} {self.images.dtype}".encode()
        yield self.images.contiguous().numpy().tobytes()


class Common(TypedDict, total=False):
    """Arguments that every :class:`ImageData` takes."""

    batch_size: int
    seed: int
    num_workers: int
    poison: int
    swap: int
    split_seed: int


class ImageData(L.LightningDataModule, ABC):
    """Train, validation and test images for classification. Subclasses implement :meth:`splits`.

    Args:
        class_names: One name a class.
        shape: (C, H, W) of one image.
        batch_size: Samples in a batch, for all three loaders.
        seed: Chooses which labels are poisoned, and with what; nothing else depends on it.
        num_workers: Processes of each loader.
        poison: Number of training labels to replace by a wrong class.
        swap: Number of training labels of each class to exchange with the class it is paired with: 0 with 1, 2 with 3 and so on; of an odd
            number of classes the last stays as it is.
        split_seed: Chooses the splits, so that runs with different ``seed`` see the same ones.

    Attributes:
        num_classes: Number of classes.
        train: Training data (after ``setup``).
        validation: Validation data, never trained on (after ``setup``).
        test: Test data (after ``setup``).
        poisoned: Ascending indices of the poisoned training samples, (P,), int64 (after ``setup``).
        clean_targets: Their true labels, (P,), int64 (after ``setup``).

    Raises:
        ValueError: If ``poison`` or ``swap`` is negative, or both are given.
    """

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    poisoned: Tensor
    clean_targets: Tensor

    def __init__(
        self,
        class_names: Sequence[str],
        shape: Sequence[int],
        batch_size: int = 128,
        seed: int = 0,
        num_workers: int = 0,
        poison: int = 0,
        swap: int = 0,
        split_seed: int = 0,
    ) -> None:
        super().__init__()
        if poison < 0:
            raise ValueError(f"data.poison is a number of training labels, 0 for none; got {poison}")
        if swap < 0 or (swap and poison):
            raise ValueError(
                f"data.swap is a number of labels of each class, 0 for none, and goes without data.poison; got {swap} and {poison}"
            )
        channels, height, width = shape
        self.class_names = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.shape = (int(channels), int(height), int(width))
        self.batch_size = batch_size
        self.seed = seed
        self.num_workers = num_workers
        self.poison = poison
        self.swap = swap
        self.split_seed = split_seed

    @abstractmethod
    def splits(self) -> tuple[LabelledImages, LabelledImages, LabelledImages]:
        """Training, validation and test data with their true labels; depends on ``split_seed``, not on ``seed``."""

    def setup(self, stage: str | None = None) -> None:
        """Load the splits and poison the labels; a second call does nothing.

        Args:
            stage: All stages load the same.

        Raises:
            ValueError: If more labels shall be poisoned than there are.
        """
        if hasattr(self, "train"):
            return
        train, validation, test = self.splits()
        if self.poison > len(train):
            raise ValueError(f"data.poison={self.poison}, but there are {len(train)} training samples: lower it, or raise data.train_size")
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(train), generator=generator)
        self.poisoned = (self._of_each_class(order, train.targets) if self.swap else order[: self.poison]).sort().values
        self.clean_targets = train.targets[self.poisoned]
        if self.swap:
            wrong = self.clean_targets ^ 1
        else:
            steps = torch.randint(1, self.num_classes, (self.poison,), generator=generator)
            wrong = (self.clean_targets + steps) % self.num_classes
        train.targets = train.targets.index_copy(0, self.poisoned, wrong)
        self.train, self.validation, self.test = train, validation, test

    def _of_each_class(self, order: Tensor, targets: Tensor) -> Tensor:
        paired = range(self.num_classes // 2 * 2)
        chosen = [order[targets[order] == label][: self.swap] for label in paired]
        short = [label for label, part in zip(paired, chosen, strict=True) if len(part) < self.swap]
        if short:
            raise ValueError(f"data.swap={self.swap}, but class {short[0]} has fewer training samples: lower it, or raise data.train_size")
        return torch.cat(chosen)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The training data, shuffled anew in each epoch."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The validation data in order."""
        return self._loader(self.validation)

    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """The test data in order."""
        return self._loader(self.test)

    def digest(self) -> str:
        """SHA-256 over the images, labels and transforms of all splits (after ``setup``): a key for what was trained on them."""
        return digest(self._content())

    def _loader(self, dataset: LabelledImages, shuffle: bool = False) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(dataset, self.batch_size, shuffle=shuffle, num_workers=self.num_workers, persistent_workers=self.num_workers > 0)

    def _content(self) -> Iterator[str | bytes]:
        for split in (self.train, self.validation, self.test):
            yield from split.content()
            yield split.targets.numpy().tobytes()
            yield repr(split.transform)


def carve(count: int, train_size: int, validation_size: int, split_seed: int) -> tuple[Tensor, Tensor]:
    """Disjoint random indices for training and validation out of ``count`` training samples.

    The validation indices are the same for every ``train_size``, and a smaller training set is a part of a larger one.

    Args:
        count: Number of samples there are.
        train_size: Number of training indices.
        validation_size: Number of validation indices.
        split_seed: Seed of the permutation.

    Returns:
        The training and the validation indices, (train_size,) and (validation_size,), int64.

    Raises:
        ValueError: If a size is not positive or both together exceed ``count``.

    Example:
        >>> train, validation = carve(10, 6, 4, split_seed=0)
        >>> sorted([*train.tolist(), *validation.tolist()]) == list(range(10))
        True
    """
    if train_size < 1 or validation_size < 1 or train_size + validation_size > count:
        raise ValueError(
            f"data.train_size={train_size} and data.validation_size={validation_size} must each be at least 1, together at most {count}, "
            "the number of official training images (validation images are never trained on): lower one of them"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(split_seed))
    return order[validation_size : validation_size + train_size], order[:validation_size]
