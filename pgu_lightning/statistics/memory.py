"""What Gram matrices take in memory, before they are collected, and which of them a device has room for."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

import torch

from pgu_lightning.statistics.survey import LayerInfo

_AT_WORK = 3
"""Matrices of the largest layer's size that stay free: products, rows that wait for others, what a convolution is put together from."""

_UNLEARNING = 4
"""Float64 copies on the CPU when unlearning begins: of all data, of the retained data, the eigenvectors of these, V diag(values) V^T."""


def gram_bytes(layers: Sequence[LayerInfo]) -> dict[str, int]:
    """Bytes of each Gram matrix of a model, by its key: groups x dim x dim in float64.

    Args:
        layers: What ``survey(model)`` found; frozen ones have no matrix.

    Example:
        >>> from torch import nn
        >>> from pgu_lightning.statistics import survey
        >>> gram_bytes(survey(nn.Sequential(nn.Linear(1000, 10), nn.ReLU(), nn.Linear(10, 2))))
        {'0': 8000000, '2': 800}
    """
    return {layer.gram: 8 * layer.shape[0] * layer.shape[2] ** 2 for layer in layers if layer.gram is not None}


def in_words(sizes: Mapping[str, int]) -> str:
    """The sum of ``sizes``, and the largest.

    Example:
        >>> in_words({"blocks.3.mlp.fc1": 134_217_728, "blocks.3.mlp.fc2": 1_644_167_168})
        '1.8 GB, of these 1.6 GB for blocks.3.mlp.fc2'
    """
    largest = max(sizes, key=lambda key: sizes[key])
    return f"{sum(sizes.values()) / 1e9:.1f} GB, of these {sizes[largest] / 1e9:.1f} GB for {largest}"


def check_room(layers: Sequence[LayerInfo], processes: int = 1, unlearns: bool = False) -> None:
    """Refuse what the machine's memory cannot hold: every process has all matrices on the CPU, at the end of collecting once.

    Args:
        layers: What ``survey(model)`` found.
        processes: How many of them this machine has.
        unlearns: Whether these processes unlearn too.

    Raises:
        ValueError: If they need more than there is.
    """
    sizes, there_is, copies = gram_bytes(layers), _memory(), _UNLEARNING if unlearns else 1
    if copies * sum(sizes.values()) * processes > there_is:
        raise ValueError(
            f"The statistics need {in_words(sizes)}. {processes} process(es) of this machine hold them {copies} time(s) each, and it has "
            f'{there_is / 1e9:.1f} GB of memory. Choose layers, with layers=["blocks.1?.*"] for example, or use fewer processes a machine.'
        )


def offloaded(sizes: Mapping[str, int], free: float) -> frozenset[str]:
    """The matrices that have to be summed on the CPU, so that the others fit a device: the largest that still fit stay.

    Args:
        sizes: ``gram_bytes``.
        free: Bytes of the device that nobody uses.

    Example:
        >>> sorted(offloaded({"small": 1, "middle": 10, "large": 100, "another": 100}, free=415))
        ['another']
        >>> sorted(offloaded({"small": 1, "large": 100}, free=401))
        []
    """
    free -= _AT_WORK * max(sizes.values(), default=0)
    away = set()
    for key in sorted(sizes, key=lambda key: -sizes[key]):
        if sizes[key] <= free:
            free -= sizes[key]
        else:
            away.add(key)
    return frozenset(away)


def free_on(device: torch.device) -> float:
    """Bytes of a device that are free or that torch keeps for reuse; infinity where that cannot be told."""
    if device.type != "cuda":
        return float("inf")
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _memory() -> int:
    """Bytes of this machine's memory."""
    if not hasattr(os, "sysconf"):  # on Windows nothing is refused
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
