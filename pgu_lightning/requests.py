"""What shall be forgotten: a request, and the dataset it splits in two."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pgu_lightning.files import digest
from pgu_lightning.views import View, column, labels, plain, size_of

Kind = Literal["class", "samples", "poison"]


@dataclass(frozen=True)
class ForgetRequest:
    """What a trained model shall forget. Exactly one of the first five arguments is given.

    A request is refused whole, before any work, when any part of it does not fit: an id that is not in the dataset, one that is named
    twice, nothing matched, everything matched. Sequences may be lists, tensors, arrays, ranges, any iterable; they are kept as tuples.

    Args:
        classes: Labels; all their samples are forgotten.
        indices: Positions in the training dataset.
        ids: Values of the dataset's ``id_attribute``, compared and kept as text (``7`` is ``"7"``). An id that several samples share, such
            as a person's, forgets them all.
        where: Called with each entry of the dataset's ``metadata`` (a sequence, one entry a sample); true for what shall be forgotten.
        everything: The dataset is the forget set and nothing else.
        kind: By default ``"class"`` for ``classes`` and ``"samples"`` for the rest.
        corrected: The right labels of samples whose labels are wrong (``kind="poison"``): one for each entry of ``indices`` or ``ids``, or
            for each sample with ``everything=True``, in that order. They are learnt while the wrong ones are forgotten.
        id_attribute: Attribute of the dataset that holds the ids, one a sample. It is looked for through ``Subset``, ``View`` and
            ``ConcatDataset``, as are labels and metadata.

    Raises:
        TypeError: For entries of another type (bool and float are not whole numbers).
        ValueError: For none or several ways to choose, no entry, an entry given twice, a negative index, a kind that does not fit, or
            corrected labels that do not.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> dataset = TensorDataset(torch.zeros(6, 2), torch.tensor([0, 1, 2, 0, 1, 2]))
        >>> split = ForgetRequest(classes=[2]).split(dataset)
        >>> split.forget.positions.tolist(), split.retain.positions.tolist()
        ([2, 5], [0, 1, 3, 4])
        >>> ForgetRequest(ids=["ann", "bob"])
        ForgetRequest(samples, 2 ids, digest 9cb097c3)
    """

    classes: Sequence[int] | None = None
    indices: Sequence[int] | None = None
    ids: Sequence[str | int] | None = None
    where: Callable[[Any], bool] | None = None
    everything: bool = False
    kind: Kind | None = None
    id_attribute: str = "ids"
    corrected: Sequence[int] | None = None

    def __post_init__(self) -> None:
        sequences: dict[str, tuple[type, ...]] = {"classes": (int,), "indices": (int,), "ids": (str, int)}
        given = [f"{way}=" for way in (*sequences, "where") if getattr(self, way) is not None] + ["everything=True"] * bool(self.everything)
        if len(given) != 1:
            raise ValueError(f"Give exactly one of classes=, indices=, ids=, where=, everything=True; got {' and '.join(given) or 'none'}.")
        if self.where is not None and not callable(self.where):
            raise TypeError(f"where must be a function of a sample's metadata, got {type(self.where).__name__}.")
        kind = self.kind or ("class" if self.classes is not None else "samples")
        if kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}.")
        if kind == "class" and self.classes is None and not self.everything:
            raise ValueError(f"kind 'class' goes with classes= or everything=True, got {given[0]}.")
        object.__setattr__(self, "kind", kind)
        for way, types in sequences.items():
            if getattr(self, way) is not None:
                object.__setattr__(self, way, _frozen(way, getattr(self, way), *types))
        negative = [index for index in self.indices or () if index < 0]
        if negative:
            raise ValueError(f"indices count from 0, got {_some(negative)}.")
        if self.corrected is not None:
            object.__setattr__(self, "corrected", self._checked(self.corrected))

    def _checked(self, corrected: Any) -> tuple[int, ...]:
        """The corrected labels, if they go with the rest of the request."""
        if self.kind != "poison":
            raise ValueError(
                f"Corrected labels (corrected=, in a csv the column label) go with wrong ones, kind='poison'; the kind is {self.kind!r}."
            )
        if self.classes is not None or self.where is not None:
            raise ValueError("corrected= needs an order of the samples: choose them with indices=, ids= or everything=True.")
        given = _entries("corrected", corrected, int)
        named = self.indices if self.indices is not None else self.ids
        if named is not None and len(named) != len(given):
            raise ValueError(f"corrected= has {len(given)} labels for {len(named)} samples: one for each, in the same order.")
        if min(given) < 0:
            raise ValueError(f"corrected= holds labels, which count from 0, got {_some([label for label in given if label < 0])}.")
        return given

    def __repr__(self) -> str:
        # A list of what to forget is personal data, and a repr ends in logs: it counts and does not name.
        corrected = ", labels corrected" if self.corrected is not None else ""
        for way in ("classes", "indices", "ids"):
            entries = getattr(self, way)
            if entries is not None:
                known = "" if way == "classes" else f", digest {digest(sorted(map(str, entries)))[:8]}"
                return f"ForgetRequest({self.kind}, {len(entries)} {way}{known}{corrected})"
        return f"ForgetRequest({self.kind}, {'everything' if self.everything else 'where'}{corrected})"

    @classmethod
    def from_file(cls, path: str | Path, kind: Kind | None = None, id_attribute: str = "ids") -> ForgetRequest:
        """Read a request from a UTF-8 file.

        Args:
            path: ``.csv`` whose first line names exactly one column ``id``, ``index`` or ``class``, and perhaps a column ``label`` with the
                corrected labels (other columns are left alone); ``.json`` with a list of ids or an object with one of ``classes``,
                ``indices``, ``ids`` and perhaps ``kind`` and ``corrected``; or ``.txt`` with one id a line, where blank lines and lines
                that start with ``#`` do not count.
            kind: As in the constructor; goes before a kind in the file.
            id_attribute: As in the constructor.

        Returns:
            The request.

        Raises:
            ValueError: If the file is not as above, or what it asks for would be refused; the message has the lines or keys.
        """
        path = Path(path)
        readers = {".csv": _read_csv, ".json": _read_json, ".txt": _read_txt}
        if path.suffix.lower() not in readers:
            raise ValueError(f"{path}: a request is read from {', '.join(readers)}, not from {path.suffix or 'a file without a suffix'}.")
        try:
            chosen = readers[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
            return cls(**{"id_attribute": id_attribute, **chosen, **({"kind": kind} if kind else {})})
        except (TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{path}: {error}") from error

    def split(self, dataset: Dataset[Any], earlier: Collection[str] = ()) -> Split:
        """Split a map-style dataset into what is forgotten and what is retained. Images are not read where labels are kept as a column.

        Args:
            dataset: The training dataset.
            earlier: ``Split.entries()`` of earlier requests on this dataset: these samples are not retained, and cannot be asked for again.

        Returns:
            The two views, which share the dataset.

        Raises:
            TypeError: If the dataset can only be iterated over, or its labels are not whole numbers.
            ValueError: If the request or its corrected labels do not fit the dataset, or it overlaps an earlier one.
        """
        size = size_of(dataset)
        mask = self._mask(dataset, size)
        if not mask.any():
            raise ValueError(f"{self} matches none of the {size} samples.")
        if mask.all() and not self.everything:
            raise ValueError(
                f"{self} matches all {size} samples, so nothing would be retained. Pass everything=True if the dataset holds only what "
                "shall be forgotten; to forget all training data, train a new model."
            )
        gone = torch.zeros(size, dtype=torch.bool)
        if not self.everything:
            gone[positions_of(earlier, size)] = True
        again = (mask & gone).nonzero().flatten().tolist()
        if again:
            raise ValueError(f"Already forgotten by an earlier request: the samples at positions {_some(again)}. Leave them out.")
        if (mask | gone).all() and not self.everything:
            raise ValueError(f"{self} matches all samples that earlier requests left: nothing would be retained. Train a new model.")
        forget, retain = (View(dataset, part.nonzero().flatten()) for part in (mask, ~(mask | gone)))
        classes: tuple[int, ...] = ()
        if self.kind == "class":
            classes = tuple(sorted(self.classes)) if self.classes is not None else tuple(labels(dataset).unique().tolist())
        names = forget.positions.tolist() if self.ids is None else self.ids
        return Split(forget, retain, cast(Kind, self.kind), classes, digest(sorted(map(str, names))), self._corrections(forget))

    def _corrections(self, forget: View) -> Tensor | None:
        """The corrected label of each forget sample, in the order of the view, (samples,) int64."""
        if self.corrected is None:
            return None
        if len(self.corrected) != len(forget):
            named = f"{len(forget)} samples" if self.everything else f"{len(self.corrected)} ids, which {len(forget)} samples have"
            raise ValueError(f"corrected= has {len(self.corrected)} labels for {named}: one for each sample. Choose them with indices=.")
        right = torch.tensor(self.corrected)
        if self.indices is not None:
            right = right[torch.tensor(self.indices).argsort()]
        elif self.ids is not None:
            texts = [str(plain(name)) for name in plain(_attribute(forget, self.id_attribute, "ids="))]
            right = torch.tensor([dict(zip(self.ids, self.corrected, strict=True))[text] for text in texts])
        same = (right == labels(forget)).nonzero().flatten()
        if len(same):
            raise ValueError(
                f"corrected= gives samples the label that they have already, at positions {_some(forget.positions[same].tolist())}: it "
                "cannot be forgotten and learnt. Leave these samples out, or correct the list."
            )
        return right

    def _mask(self, dataset: Dataset[Any], size: int) -> Tensor:
        """True for what is forgotten, (size,)."""
        if self.everything:
            return torch.ones(size, dtype=torch.bool)
        if self.classes is not None:
            of_samples = labels(dataset)
            known = set(of_samples.unique().tolist())
            unknown = [label for label in self.classes if label not in known]
            if unknown:
                raise ValueError(f"No sample has the label {_some(unknown)}; the dataset has {_some(sorted(known))}.")
            return torch.isin(of_samples, torch.tensor(self.classes))
        if self.where is not None:
            return torch.tensor([bool(self.where(entry)) for entry in _attribute(dataset, "metadata", "where=")], dtype=torch.bool)
        mask = torch.zeros(size, dtype=torch.bool)
        if self.indices is not None:
            unknown = [index for index in self.indices if index >= size]
            if unknown:
                raise ValueError(f"The dataset has {size} samples, so there is none at {_some(unknown)}.")
            mask[torch.tensor(self.indices)] = True
        elif self.ids is not None:
            wanted = set(self.ids)
            texts = [str(plain(name)) for name in plain(_attribute(dataset, self.id_attribute, "ids="))]
            hits = [position for position, text in enumerate(texts) if text in wanted]
            found = {texts[position] for position in hits}
            missing = [name for name in self.ids if name not in found]
            if missing:
                raise ValueError(f"Not among the dataset's {self.id_attribute!r} (compared as text): {_some(missing)}.")
            mask[torch.tensor(hits)] = True
        return mask


@dataclass(frozen=True)
class Split:
    """A dataset in two parts.

    Attributes:
        forget: What shall be forgotten.
        retain: The rest, without what earlier requests took; empty for ``everything=True``.
        kind: The kind of the request.
        classes: The labels that are gone entirely, ascending (class requests only).
        digest: SHA-256 of the sorted ids, as text; of the sorted positions for requests without ids.
        corrected: The right label of each forget sample, (samples,) int64; None where the request gives none.
    """

    forget: View
    retain: View
    kind: Kind
    classes: tuple[int, ...]
    digest: str
    corrected: Tensor | None = None

    def entries(self, part: View | None = None) -> tuple[str, ...]:
        """16 hexadecimal digits for each forget sample, in order: what to remember of a request so that a later one can be held against it.

        Args:
            part: Another view of the same dataset; None is the forget set.

        They are made from the dataset's length and the position: they hold no id, and say nothing once the dataset has another length.
        A dataset of the forget set and nothing else has none: its positions say nothing of the training data.
        """
        size = size_of(self.forget.dataset)
        if len(self.forget) == size:
            return ()
        return tuple(_entry(size, position) for position in (self.forget if part is None else part).positions.tolist())

    def corrected_accuracy(self, probabilities: Tensor) -> float | None:
        """The share of the forget set that gets its corrected label; None where the request gives none.

        Args:
            probabilities: A model's answers, (samples, classes), in the order of ``forget``.

        Raises:
            ValueError: If the model answers more or less than once a sample.
        """
        if self.corrected is None:
            return None
        if len(probabilities) != len(self.corrected):
            raise ValueError(
                f"Corrected labels are one a sample, and the model gives {len(probabilities)} answers for {len(self.corrected)} samples: "
                "leave corrected= out."
            )
        return (probabilities.argmax(1) == self.corrected).double().mean().item()


def positions_of(entries: Collection[str], size: int) -> Tensor:
    """Where the samples of earlier requests lie in a dataset of ``size`` samples.

    Args:
        entries: ``Split.entries()`` of the earlier requests.
        size: Number of samples of the dataset; for another length than the requests' none is found.

    Returns:
        Ascending positions, int64.

    Example:
        >>> dataset = torch.utils.data.TensorDataset(torch.zeros(4, 1), torch.tensor([0, 1, 1, 0]))
        >>> positions_of(ForgetRequest(classes=[1]).split(dataset).entries(), size=4)
        tensor([1, 2])
    """
    known = set(entries)
    return torch.tensor([position for position in range(size) if _entry(size, position) in known] if known else [], dtype=torch.int64)


def _entry(size: int, position: int) -> str:
    return digest([f"{size}:{position}"])[:16]


def _attribute(dataset: Dataset[Any], name: str, way: str) -> Any:
    values = column(dataset, lambda one: getattr(one, name, None))
    if values is None:
        other = " or name another with id_attribute=" if way == "ids=" else ""
        raise ValueError(
            f"{way} needs `dataset.{name}`, and {type(dataset).__name__} has none. Set it to a sequence, one entry a sample{other}."
        )
    return values


def _frozen(name: str, values: Any, *types: type) -> tuple[Any, ...]:
    """The entries as a tuple, each once; text where text is allowed."""
    entries = _entries(name, values, *types)
    if len(set(entries)) < len(entries):
        raise ValueError(f"{name} names more than once: {_some([entry for entry, times in Counter(entries).items() if times > 1])}.")
    return entries


def _entries(name: str, values: Any, *types: type) -> tuple[Any, ...]:
    values = plain(values)
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence, got {type(values).__name__}; one entry is [entry].")
    entries = [entry.item() if getattr(entry, "ndim", None) == 0 else entry for entry in values]
    if not entries:
        raise ValueError(f"{name} is empty: name at least one.")
    wrong = [entry for entry in entries if isinstance(entry, bool) or not isinstance(entry, types)]
    if wrong:
        raise TypeError(f"{name} must be {'text or ' if str in types else ''}whole numbers, got {_some(wrong)}.")
    if str in types:
        entries = [str(entry) for entry in entries]
    return tuple(entries)


def _some(entries: Sequence[Any], show: Callable[[Any], str] = repr) -> str:
    """At most ten of them."""
    return ", ".join(map(show, entries[:10])) + (f" and {len(entries) - 10} more" if len(entries) > 10 else "")


def _read_txt(text: str) -> dict[str, Any]:
    lines = (line.strip() for line in text.split("\n"))
    return {"ids": [line for line in lines if line and not line.startswith("#")]}


def _read_csv(text: str) -> dict[str, Any]:
    columns = {"id": "ids", "index": "indices", "class": "classes"}
    rows = csv.reader(io.StringIO(text), strict=True)
    header = [cell.strip() for cell in next(rows, [])]
    found = [cell for cell in header if cell in columns]
    if len(found) != 1:
        raise ValueError(f"line 1 must name exactly one column {', '.join(columns)}; it names {' and '.join(found) or 'none'}.")
    filled = [(rows.line_num, [cell.strip() for cell in row]) for row in rows if any(cell.strip() for cell in row)]

    def cells(title: str) -> list[Any]:
        place = header.index(title)
        found = [(line, row[place] if place < len(row) else "") for line, row in filled]
        pattern = r".+" if title == "id" else r"-?[0-9]+"
        wrong = [f"line {line} has {cell!r}" for line, cell in found if not re.fullmatch(pattern, cell, re.DOTALL)]
        if wrong:
            raise ValueError(f"{title} must be {'text' if title == 'id' else 'a whole number'}; {_some(wrong, str)}.")
        return [cell if title == "id" else int(cell) for _, cell in found]

    return {columns[found[0]]: cells(found[0]), **({"corrected": cells("label")} if "label" in header else {})}


def _read_json(text: str) -> dict[str, Any]:
    content = json.loads(text)
    if isinstance(content, list):
        return {"ids": content}
    ways = ("classes", "indices", "ids")
    if not isinstance(content, dict):
        raise ValueError(f"expected a list of ids or an object with one of {', '.join(ways)}, got {type(content).__name__}.")
    unknown = sorted(content.keys() - {*ways, "kind", "corrected"})
    if unknown:
        raise ValueError(f"unknown keys {_some(unknown)}; an object has one of {', '.join(ways)}, and perhaps kind and corrected.")
    return content
