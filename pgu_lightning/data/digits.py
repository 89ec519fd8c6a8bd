from __future__ import annotations

from typing import Unpack

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pgu_lightning.data.arrays import ArrayDataset, Common, ImageData


class Digits(ImageData):
    """1,797 scanned digits of 8 x 8 pixels that come with scikit-learn: 1,200 for training, 150 for validation, 447 for test.

    Stratified by class. A sample's id is its row in ``sklearn.datasets.load_digits``.

    Args:
        **common: Arguments of :class:`ImageData`.
    """

    def __init__(self, **common: Unpack[Common]) -> None:
        super().__init__(class_names=[str(digit) for digit in range(10)], shape=(1, 8, 8), **common)

    def splits(self) -> tuple[ArrayDataset, ArrayDataset, ArrayDataset]:
        """Images in [0, 1]."""
        images, targets = load_digits(return_X_y=True)
        train, rest = train_test_split(range(len(targets)), train_size=1200, stratify=targets, random_state=self.split_seed)
        validation, test = train_test_split(rest, train_size=150, stratify=targets[rest], random_state=self.split_seed)
        pixels, labels = torch.from_numpy(images / 16).float().view(-1, *self.shape), torch.from_numpy(targets)

        def part(rows: list[int]) -> ArrayDataset:
            return ArrayDataset(pixels[rows], labels[rows], ids=[str(row) for row in rows])

        return part(train), part(validation), part(test)
