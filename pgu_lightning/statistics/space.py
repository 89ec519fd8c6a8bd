"""What the retained data looks like inside each layer, as a value and as a file."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from pgu_lightning import distributed
from pgu_lightning.files import atomic_write, digest, read_tensors
from pgu_lightning.statistics.gram import Gram
from pgu_lightning.statistics.survey import LayerInfo, canonical

FORMAT = "pgu-lightning retain space 1"
_SUMS = ".sums."  # no name of a layer begins with a dot


@dataclass(frozen=True)
class Fulfilled:
    """An earlier request that this space no longer contains: digests only, so that an overlap with a later one can be refused.

    Attributes:
        kind: Of the request.
        digest: SHA-256 of its sorted ids.
        entries: ``Split.entries()``, 16 hexadecimal digits a sample.
        size: Number of samples.
        classes: The labels that went entirely.
        interference: Relative squared change of the protected layers' response to the retained data that the request cost.
    """

    kind: str
    digest: str
    entries: tuple[str, ...]
    size: int = 0
    classes: tuple[int, ...] = ()
    interference: float = 0.0


@dataclass(frozen=True)
class Provenance:
    """Where the statistics come from.

    Attributes:
        weights: Fingerprint of the weights at which they were collected.
        samples: Number of samples.
        transforms: The dataset's transform, in words.
        successors: Fingerprints of the models that came of these weights by unlearning.
        fulfilled: The requests that were subtracted.
        share: Of the samples, those that were looked at: chosen by their position in the dataset.
        margins: Quantiles of the model's margins on the samples, evenly spaced, ascending: with which a forget set's are compared.
    """

    weights: str
    samples: int
    transforms: str = "None"
    successors: tuple[str, ...] = ()
    fulfilled: tuple[Fulfilled, ...] = ()
    share: float = 1.0
    margins: tuple[float, ...] = ()


def fingerprint(state: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over a model's state dict: names, types, shapes and bytes; sharded tensors are put together, so every process has to call it.

    Args:
        state: A module or its state dict.

    Example:
        >>> fingerprint(nn.Linear(1, 1)) == fingerprint(nn.Linear(1, 1))
        False
    """
    tensors = state.state_dict() if isinstance(state, nn.Module) else state
    named = sorted((canonical(name), value) for name, value in tensors.items() if isinstance(value, Tensor))

    def parts() -> Iterable[str | bytes]:
        for name, value in named:
            yield f"{name} {value.dtype} {tuple(value.shape)}"
            yield distributed.full(value).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return digest(parts())


@dataclass(frozen=True)
class RetainSpace:
    """The Gram matrices of all protected layers over a set of samples.

    Example:
        >>> from pgu_lightning import collect
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> data = torch.utils.data.TensorDataset(torch.ones(3, 2), torch.zeros(3, dtype=torch.long))
        >>> space = collect(model, torch.utils.data.DataLoader(data))
        >>> space.provenance.samples, sorted(space.grams)
        (3, ['0'])
        >>> space.check(model)

    Attributes:
        grams: Gram matrix by key.
        layers: Every layer that owns parameters; ``layer.gram`` is a key of ``grams``.
        provenance: Where the statistics come from.
    """

    grams: Mapping[str, Gram]
    layers: tuple[LayerInfo, ...]
    provenance: Provenance

    @property
    def protected(self) -> dict[str, LayerInfo]:
        """The layers that may be updated, by name."""
        return {layer.name: layer for layer in self.layers if layer.gram is not None}

    @property
    def frozen(self) -> dict[str, str]:
        """Why the other layers are not updated, by name."""
        return {layer.name: layer.frozen_because or "" for layer in self.layers if layer.gram is None}

    @property
    def drift(self) -> float:
        """How far the response to the retained data may have moved since this was collected, relative to its size.

        The sum of the square roots of the fulfilled requests' interference: by the triangle inequality no less than the root of the whole.
        """
        return sum(math.sqrt(request.interference) for request in self.provenance.fulfilled)

    def gram_of(self, key: str, augmented: bool) -> Gram:
        """The Gram under ``key``; augmented: that of the same rows with a one behind each.

        Raises:
            ValueError: If the statistics are older than the sums of rows.
        """
        if augmented and self.grams[key].sums is None:
            raise ValueError(
                f'bias="augment" needs the sums of the rows of {key}, and this retain space was collected before they were taken down. '
                'Collect again with `collect(model, loader)`, or use bias="frozen".'
            )
        return self.grams[key].augmented() if augmented else self.grams[key]

    def without(self, forget: RetainSpace) -> RetainSpace:
        """Subtract the forget set: what remains is the Gram of the retained data.

        Args:
            forget: Collected over samples that this space contains, at the same weights.

        Raises:
            ValueError: If the two do not fit together.
        """
        problems = []
        if forget.provenance.weights not in {self.provenance.weights, *self.provenance.successors}:
            problems.append("they were collected at different weights")
        if forget.provenance.samples >= self.provenance.samples:
            problems.append(f"{forget.provenance.samples} samples are to be taken from {self.provenance.samples}")
        if forget.provenance.share != self.provenance.share:
            problems.append(f"a share of {self.provenance.share} of the samples was looked at here and of {forget.provenance.share} there")
        theirs: dict[str, Gram] = {}
        # Of a small forget set perhaps no sample was to be looked at: there is nothing to subtract then.
        if not forget.grams and forget.provenance.share < 1:
            theirs = {key: Gram(torch.zeros_like(gram.matrix), 0, _zeros(gram.sums)) for key, gram in self.grams.items()}
        elif self.protected.keys() != forget.protected.keys():
            problems.append(f"they have different layers: {', '.join(sorted(self.protected.keys() ^ forget.protected.keys()))}")
        else:
            # By layer, not by key: which layers share a matrix may differ, in a file from before they did.
            theirs = {str(layer.gram): forget.grams[str(forget.protected[name].gram)] for name, layer in self.protected.items()}
            problems += [
                f"{key} has {self.grams[key].matrix.shape} here and {gram.matrix.shape} there"
                for key, gram in theirs.items()
                if self.grams[key].matrix.shape != gram.matrix.shape
            ]
        if problems:
            raise ValueError(
                f"The forget set cannot be subtracted: {'; '.join(problems)}. Collect both with the same model, `collect(model, loader)`."
            )
        if forget.provenance.transforms != self.provenance.transforms:
            warnings.warn(
                f"The retain space was collected with the transform {self.provenance.transforms} and the forget set with "
                f"{forget.provenance.transforms}: full minus forget is the retained data only if both see the same inputs.",
                stacklevel=2,
            )
        grams = {key: gram - theirs[key] for key, gram in self.grams.items()}
        samples = self.provenance.samples - forget.provenance.samples
        return dataclasses.replace(self, grams=grams, provenance=dataclasses.replace(self.provenance, samples=samples))

    def fulfil(self, request: Fulfilled, successor: str) -> RetainSpace:
        """Note that ``request`` was subtracted and that the weights with fingerprint ``successor`` came of it."""
        provenance = dataclasses.replace(
            self.provenance,
            successors=(*self.provenance.successors, successor),
            fulfilled=(*self.provenance.fulfilled, request),
        )
        return dataclasses.replace(self, provenance=provenance)

    def belongs_to(self, weights: str) -> bool:
        """Whether ``weights`` is the fingerprint of the model that this space was collected at, or of what unlearning made of it last."""
        return weights in {self.provenance.weights, *self.provenance.successors[-1:]}

    def check_layers(self, model: nn.Module) -> None:
        """Check that ``model`` has the layers of this space.

        Raises:
            ValueError: If it is another model.
        """
        names = {canonical(name) for name, _ in model.named_modules()}
        missing = [layer.name for layer in self.protected.values() if layer.name not in names]
        if missing:
            raise ValueError(f"The retain space belongs to another model: {type(model).__name__} has no layer {', '.join(missing)}.")

    def check(self, model: nn.Module) -> None:
        """Check that this space belongs to ``model``.

        Raises:
            ValueError: If the layers or the weights are others than those it was collected at.
        """
        self.check_layers(model)
        if not self.belongs_to(fingerprint(model)):
            raise ValueError(
                "The retain space was collected at other weights than the model has now. Load the checkpoint that lies beside it, or "
                "collect again with `collect(model, loader)`."
            )

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, atomically."""
        tensors = {key: gram.matrix.contiguous() for key, gram in self.grams.items()}
        tensors |= {_SUMS + key: gram.sums.contiguous() for key, gram in self.grams.items() if gram.sums is not None}
        description = json.dumps(
            {
                "rows": {key: gram.rows for key, gram in self.grams.items()},
                "layers": [dataclasses.asdict(layer) for layer in self.layers],
                "provenance": dataclasses.asdict(self.provenance),
            }
        )
        metadata = {"format": FORMAT, "description": description, "digest": digest([description, fingerprint(tensors)])}
        return atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))

    @classmethod
    def load(cls, path: str | Path) -> RetainSpace:
        """Read what ``save`` wrote. Nothing is unpickled.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is damaged, cut short, or of another kind.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no retain space {path}. Training with PGUCallback() writes one beside the checkpoint; "
                "`collect(model, loader).save(path)` makes one later."
            )
        metadata, tensors = read_tensors(path, FORMAT, "Collect again with `collect(model, loader)`.")
        try:
            description = _DESCRIPTION.validate_json(metadata["description"])
            grams = {key: Gram(tensors[key], rows, tensors.get(_SUMS + key)) for key, rows in description.rows.items()}
        except (ValidationError, KeyError) as error:
            raise ValueError(f"{path} has a damaged description: {error}") from error
        if metadata.get("digest") != digest([metadata["description"], fingerprint(tensors)]):
            raise ValueError(
                f"{path} is damaged: it does not have the digest that it was written with. Collect again with `collect(model, loader)`."
            )
        space = cls(grams, description.layers, description.provenance)
        space._check_numbers(path, tensors)
        return space

    def _check_numbers(self, path: Path, tensors: Mapping[str, Any]) -> None:
        problems = [
            f"{key}: a matrix that is not described" for key in tensors.keys() - {name for key in self.grams for name in (key, _SUMS + key)}
        ]
        for layer in self.protected.values():
            gram = self.grams.get(layer.gram or "")
            wanted = (*layer.shape[:1], *layer.shape[-1:], *layer.shape[-1:])
            if gram is None:
                problems.append(f"{layer.name}: no matrix")
            elif tuple(gram.matrix.shape) != wanted or gram.matrix.dtype != torch.float64:
                problems.append(f"{layer.name}: {tuple(gram.matrix.shape)} {gram.matrix.dtype} instead of {wanted} float64")
            elif not bool(gram.matrix.isfinite().all()):
                problems.append(f"{layer.name}: values that are not finite")
            elif gram.sums is not None and not (tuple(gram.sums.shape) == wanted[:2] and bool(gram.sums.isfinite().all())):
                problems.append(f"{layer.name}: sums of rows that do not fit its matrix, or are not finite")
        if problems:
            raise ValueError(f"{path} is damaged: {'; '.join(problems)}. Collect again with `collect(model, loader)`.")


def _zeros(sums: Tensor | None) -> Tensor | None:
    return None if sums is None else torch.zeros_like(sums)


@dataclass(frozen=True)
class _Description:
    rows: dict[str, int]
    layers: tuple[LayerInfo, ...]
    provenance: Provenance


_DESCRIPTION = TypeAdapter(_Description)
