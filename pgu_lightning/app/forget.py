"""Requests that depend on the data: a random part of it, the first of each class, or what was poisoned; one or several in a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pgu_lightning.data import ImageData
from pgu_lightning.requests import ForgetRequest


def samples(data: ImageData, size: float, seed: int, requests: int = 1) -> list[ForgetRequest]:
    """Ask for random training samples.

    Args:
        data: The data module, set up.
        size: A number of samples, or below 1 a share of the training data; of each request.
        seed: Chooses them.
        requests: So many requests, one after the other.

    Raises:
        ValueError: If there are not that many samples, or none would be chosen.
    """
    count = len(data.train)
    chosen = round(size * count) if size < 1 else int(size)
    if requests < 1:
        raise ValueError(f"forget.requests={requests}: ask at least once.")
    if not 0 < chosen * requests < count:
        times = f", {requests} times," if requests > 1 else ""
        raise ValueError(
            f"forget.size={size}{times} of {count} training samples is {chosen * requests}: choose at least 1 and fewer than all."
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [ForgetRequest(indices=part.sort().values.tolist()) for part in order[: chosen * requests].split(chosen)]


def classes(data: ImageData, count: int, requests: int = 1) -> list[ForgetRequest]:
    """Ask for whole classes, those with the lowest labels first.

    Args:
        data: The data module, set up.
        count: Classes of each request.
        requests: So many requests, one after the other.

    Raises:
        ValueError: If none would be chosen, or no class would be left.
    """
    if not 0 < count * requests < data.num_classes or requests < 1:
        raise ValueError(
            f"forget.count={count} classes, {requests} times, of {data.num_classes}: choose at least one, and fewer than all together."
        )
    return [ForgetRequest(classes=range(start, start + count)) for start in range(0, count * requests, count)]


def first(data: ImageData, size: int, classes: Sequence[int] | None = None, requests: int = 1) -> list[ForgetRequest]:
    """Ask for the first training samples of each class, then for the next, and so on, as the PGU paper does.

    Args:
        data: The data module, set up.
        size: Samples of each class and request.
        classes: Of these classes; None: of all.
        requests: So many requests, one after the other.

    Raises:
        ValueError: If a class has too few samples, or a request would be empty.
    """
    if size < 1 or requests < 1:
        raise ValueError(f"forget.size={size} and forget.requests={requests} must be at least 1.")
    chosen: list[list[int]] = [[] for _ in range(requests)]
    for label in range(data.num_classes) if classes is None else classes:
        positions = (data.train.targets == label).nonzero().flatten()
        if len(positions) < size * requests:
            raise ValueError(
                f"forget.size={size}, {requests} times: class {label} has {len(positions)} training samples. Lower one of the two."
            )
        for request, part in zip(chosen, positions[: size * requests].split(size), strict=True):
            request += part.tolist()
    return [ForgetRequest(indices=sorted(request)) for request in chosen]


def poison(data: ImageData, size: int | None = None, corrected: bool = False) -> ForgetRequest:
    """Ask for the training samples whose labels the data module made wrong.

    Args:
        data: The data module, set up with ``poison`` or ``swap``.
        size: Number of wrong labels, to make sure; None: as many as there are.
        corrected: Give the true labels with the request.

    Raises:
        ValueError: If there are none, or another number of them.
    """
    made = len(data.poisoned)
    if not made or size not in (None, made):
        raise ValueError(f"forget.size={size} wrong labels are to be forgotten and {made} were made: both must be one number, above 0.")
    right = data.clean_targets.tolist() if corrected else None
    return ForgetRequest(indices=data.poisoned.tolist(), kind="poison", corrected=right)


def swapped(data: ImageData, per_class: int, corrected: bool = False) -> ForgetRequest:
    """Ask for the training samples whose labels the data module exchanged between paired classes.

    Args:
        data: The data module, set up with ``swap``.
        per_class: Its ``swap``, to make sure.
        corrected: Give the true labels with the request.

    Raises:
        ValueError: If it is another number, or none.
    """
    if data.swap != per_class:
        raise ValueError(f"forget.per_class={per_class} and data.swap={data.swap} must be one number: leave data.swap alone.")
    return poison(data, corrected=corrected)
