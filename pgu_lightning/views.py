"""A dataset seen through positions, and its columns through every nesting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset
from tqdm import tqdm


class View(Dataset[Any]):
    """A dataset seen through positions, without a copy of the data.

    Args:
        dataset: A map-style dataset.
        positions: (N,) int64, places in ``dataset``.

    Raises:
        TypeError: If the positions are not a one-dimensional int64 tensor.
    """

    def __init__(self, dataset: Dataset[Any], positions: Tensor) -> None:
        if positions.dtype != torch.int64 or positions.ndim != 1:
            raise TypeError(f"positions must be int64 of shape (N,), got {positions.dtype} of shape {tuple(positions.shape)}.")
        self.dataset = dataset
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.positions[index])]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        positions = self.positions[indices].tolist()
        if hasattr(self.dataset, "__getitems__"):
            return self.dataset.__getitems__(positions)
        return [self.dataset[position] for position in positions]


def labels(dataset: Dataset[Any]) -> Tensor:
    """The label of each sample.

    Taken from the attribute ``targets`` or ``labels``, or the second of a ``TensorDataset``'s two tensors, looked for through ``Subset``,
    ``View`` and ``ConcatDataset``. Where there is none every sample is read: ``(x, y)``, or a mapping with ``label``, ``labels`` or
    ``target``.

    Args:
        dataset: A map-style dataset.

    Returns:
        (N,) int64.

    Raises:
        TypeError: If the dataset is not map-style, or its labels are not one whole number a sample.
        ValueError: If ``targets`` or ``labels`` has another length than the dataset.
    """
    found = column(dataset, _own_labels)
    if found is None:
        samples = tqdm(range(size_of(dataset)), desc="Reading labels", unit="sample", leave=False)
        found = _whole([_label(dataset[index]) for index in samples], dataset)
    return cast(Tensor, found)


def _own_labels(dataset: Dataset[Any]) -> Tensor | None:
    own = getattr(dataset, "targets", None)
    own = getattr(dataset, "labels", None) if own is None else own
    if own is None and isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        own = dataset.tensors[1]
    return None if own is None else _whole(own, dataset)


def _whole(values: Any, dataset: Dataset[Any]) -> Tensor:
    try:
        tensor = values if isinstance(values, Tensor) else torch.as_tensor(plain(values))
    except (TypeError, ValueError, RuntimeError):
        tensor = None
    if tensor is not None and tensor.shape == (0,):
        return tensor.long()
    if tensor is None or tensor.ndim != 1 or tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        what = type(values).__name__ if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
        raise TypeError(
            f"The labels of {type(dataset).__name__} must be one whole number a sample, got {what}. Set `dataset.targets` to integer "
            "labels, or choose with indices=, ids= or where=."
        )
    return tensor.long().cpu()


def _label(sample: Any) -> Any:
    if isinstance(sample, Mapping):
        for key in ("label", "labels", "target"):
            if key in sample:
                return sample[key]
    elif isinstance(sample, tuple | list) and len(sample) == 2:
        return sample[1]
    raise TypeError(
        f"A sample must be (x, y) or a mapping with 'label', 'labels' or 'target' to have a label, got {type(sample).__name__}. "
        "Set `dataset.targets` to integer labels, one a sample."
    )


def size_of(dataset: Dataset[Any]) -> int:
    """Number of samples of a map-style dataset.

    Raises:
        TypeError: If it can only be iterated over.
    """
    if isinstance(dataset, IterableDataset) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f"A request splits a map-style dataset (__len__ and __getitem__), and {type(dataset).__name__} can only be iterated over. Put "
            "the samples to forget into a map-style dataset, and fit on a DataLoader over it with ForgetRequest(everything=True)."
        )
    return len(dataset)


def column(dataset: Dataset[Any], find: Callable[[Dataset[Any]], Any]) -> Any:
    """What ``find`` says of a dataset, one entry a sample (tensor or list), through every nesting; None where it finds nothing.

    Args:
        dataset: A map-style dataset.
        find: Called with it, or with the datasets that it nests.

    Raises:
        ValueError: If a column has another length than its dataset.
    """
    values = find(dataset)
    if values is not None:
        values = values if isinstance(values, Tensor) else list(values)
        if len(values) != size_of(dataset):
            raise ValueError(
                f"{type(dataset).__name__} has {size_of(dataset)} samples, but a column of {len(values)} entries: one a sample."
            )
        return values
    if isinstance(dataset, Subset | View):
        values = column(dataset.dataset, find)
        positions = dataset.positions if isinstance(dataset, View) else torch.as_tensor(dataset.indices, dtype=torch.int64)
        if isinstance(values, list):
            return [values[position] for position in positions.tolist()]
        return None if values is None else values[positions]
    if isinstance(dataset, ConcatDataset):
        parts = [column(part, find) for part in dataset.datasets]
        if all(isinstance(part, Tensor) for part in parts):
            return torch.cat(parts)
        return None if any(part is None for part in parts) else list(chain.from_iterable(parts))
    return None


def plain(values: Any) -> Any:
    """Tensors and arrays as lists, the rest as it is."""
    return values.tolist() if hasattr(values, "tolist") else values
