"""Loaders that are made after a user's, and taken up again in the middle of an epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset


class Resumable(DataLoader[Any]):
    """A loader in ``SharedOrder`` that Lightning takes up again in the middle of an epoch."""

    _done = _skip = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator begins at its first batch: workers do not look ahead before Lightning has set the sampler's epoch.
        self._done, self._skip = self._skip, 0
        self.sampler.start = self._done * self.batch_size  # type: ignore[attr-defined, operator]
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """How many batches of the epoch were given."""
        return {"batches": self._done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Pass over as many, once."""
        self._skip = state["batches"] % len(self)


def over(
    dataset: Dataset[Any],
    like: DataLoader[Any],
    batch_size: int | None = None,
    sampler: Any = None,
    shuffle: bool = False,
    make: type[DataLoader[Any]] = DataLoader,
) -> DataLoader[Any]:
    """A loader of ``dataset`` with another one's collate function and workers, and its batch size unless another is given."""
    return make(
        dataset,
        batch_size=batch_size or like.batch_size or 128,
        sampler=sampler,
        shuffle=shuffle,
        collate_fn=like.collate_fn,
        num_workers=like.num_workers,
        pin_memory=like.pin_memory,
        multiprocessing_context=like.multiprocessing_context,
        persistent_workers=like.num_workers > 0,
    )
