"""Requests that depend on the data: a random part of it, or what was poisoned."""

from __future__ import annotations

import torch

from pgu_lightning.data import ImageData
from pgu_lightning.requests import ForgetRequest


def samples(data: ImageData, size: float, seed: int) -> ForgetRequest:
    """Ask for random training samples.

    Args:
        data: The data module, set up.
        size: A number of samples, or below 1 a share of the training data.
        seed: Chooses them.

    Raises:
        ValueError: If there are not that many samples, or none would be chosen.
    """
    count = len(data.train)
    chosen = round(size * count) if size < 1 else int(size)
    if not 0 < chosen < count:
        raise ValueError(f"forget.size={size} of {count} training samples is {chosen}: choose at least 1 and fewer than all.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return ForgetRequest(indices=order[:chosen].sort().values.tolist())


def poison(data: ImageData, size: int) -> ForgetRequest:
    """Ask for the training samples whose labels the data module made wrong.

    Args:
        data: The data module, set up with ``poison=size``.
        size: Number of wrong labels.

    Raises:
        ValueError: If there are none, or another number of them.
    """
    if not 0 < size == len(data.poisoned):
        raise ValueError(
            f"forget.size={size} wrong labels are to be forgotten and data.poison={len(data.poisoned)} were made: both must be one number."
        )
    return ForgetRequest(indices=data.poisoned.tolist(), kind="poison")
