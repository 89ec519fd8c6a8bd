"""Keeps a model's weights inside what the projectors allow, whatever the optimizer did."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor, nn

from pgu_lightning import distributed
from pgu_lightning.projection.projector import Projector
from pgu_lightning.projection.scale import ScaledSpace
from pgu_lightning.statistics.layers import as_matrix, one_row_each, weight_of

Update = Mapping[str, Tensor]
"""A change of what a guard moves, named and shaped as its ``weights``; of sharded weights this process's part."""

_NOTHING: Mapping[str, Tensor] = MappingProxyType({})


class UpdateGuard:
    """Filters the *update* of named layers after each optimizer step.

    The gradient is left alone: an optimizer with weight decay, element-wise scaling or value clipping leaves any subspace that its
    gradients lie in, so filtering what it did is the only thing that holds for all of them. Weights are kept as original + change, with
    the change accumulated on its own, so that rounding of the weights does not add up along protected directions.

    Of sharded weights each process works on its part, since the filter multiplies from the right: rows do not mix. Only where rows are
    split, or a part is no whole number of the matrix' rows, the update is put together first. Numbers are of all parts together.

    Args:
        layers: The modules to guard, by name; their weight is written to.
        projectors: One a layer.
        matrices: The retained data's Gram matrix of each layer, (groups, dim, dim), without negative eigenvalues.
        balanced: Weigh the layers against each other so that the whole update, not each layer's alone, forgets most for its interference.
        scaled: The part of the retained space that is scaled, by layer; None: no layer's.
        written: Called after the weights were changed.
        biases: The biases that move too, by layer. Such a layer's matrix is [W | b]; its projector and Gram are of rows with a one behind.

    Attributes:
        projectors: As given.
        weights: All that moves: each layer's weight under the layer's name, its bias under ``bias_key`` of that.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        projectors: Mapping[str, Projector],
        matrices: Mapping[str, Tensor],
        balanced: bool = False,
        scaled: Mapping[str, ScaledSpace] | None = None,
        written: Callable[[], object] = lambda: None,
        biases: Mapping[str, nn.Parameter] | None = None,
    ) -> None:
        self._layers = dict(layers)
        self.weights = moving(layers, biases or {})
        self._keys = {name: [key for key in (name, bias_key(name)) if key in self.weights] for name in layers}
        self.projectors = projectors
        self._scaled = scaled or {}
        self._written = written
        # A scale mixes rows.
        self._local = {
            name: distributed.has_whole_rows(self.weights[name])
            and one_row_each(layer, self.weights[name])
            and distributed.alike([self.weights[key] for key in self._keys[name]])
            and name not in self._scaled
            for name, layer in layers.items()
        }
        self._original = {name: part.clone() for name, part in self._parts().items()}
        # x + -0.0 is x to the bit, also where x is -0.0
        self._change = {name: torch.full_like(part, -0.0) for name, part in self._original.items()}
        self._matrices = {name: matrices[name].to(self._original[name].device, _matrix_type(self._original[name])) for name in layers}
        self._take_down_original()
        self._scales = self._balance() if balanced else dict.fromkeys(layers, 1.0)
        self._released = False

    def _take_down_original(self) -> None:
        """What is asked of the original weights, and of the change, again and again."""
        self._energy, self._length = self.response(self._original), math.sqrt(sum(self.squares(self._original).values()))
        self._changed: dict[str, float] | None = None

    def _parts(self) -> dict[str, Tensor]:
        return {name: distributed.local(weight) for name, weight in self.weights.items()}

    def _together(self, name: str, update: Update) -> dict[str, Tensor]:
        """As much of a layer's update as the projector needs at once: the parts themselves, or the whole."""
        return {key: update[key] if self._local[name] else distributed.whole(update[key], self.weights[key]) for key in self._keys[name]}

    def _columns(self, name: str, together: Mapping[str, Tensor]) -> list[Tensor]:
        """Views of a layer's weight and bias as (groups, out, columns)."""
        weight, *bias = (together[key] for key in self._keys[name])
        matrix = weight.view(1, len(weight), weight.shape[1:].numel()) if self._local[name] else as_matrix(self._layers[name], weight)
        return [matrix, *(part.view(*matrix.shape[:2], 1) for part in bias)]

    def _matrix(self, name: str, update: Update) -> Tensor:
        return torch.cat(self._columns(name, self._together(name, update)), -1)

    def _balance(self) -> dict[str, float]:
        """The least sum of tr(D M D^T) / tr(W M W^T) over the layers for a given fall of the loss has D = tr(W M W^T) G (M + a)^-1 in each.

        The filter's gains are a (M + a)^-1 with a in proportion to the mean eigenvalue: what is missing is tr(W M W^T) / mean eigenvalue.
        """
        means = {name: float(matrix.diagonal(dim1=-2, dim2=-1).mean()) for name, matrix in self._matrices.items()}
        scales = {name: self._energy[name] / mean for name, mean in means.items() if mean > 0}
        largest = max(scales.values(), default=1.0) or 1.0
        return {name: scales.get(name, largest) / largest for name in self._layers}

    @property
    def rounds(self) -> bool:
        """Whether a weight is in half precision, so that writing an update to it loses more than is filtered."""
        return any(weight.dtype.itemsize < 4 for weight in self.weights.values())

    def gradient_product(self, update: Update) -> float:
        """Inner product of the weights' gradients with ``update``: the loss's slope along it."""
        gradients = {name: distributed.local(weight.grad) for name, weight in self.weights.items() if weight.grad is not None}
        return sum(self._sums(_numbers({name: (gradient * update[name]).sum() for name, gradient in gradients.items()})).values())

    def squares(self, update: Update) -> dict[str, float]:
        """The squared length of each layer's update."""
        parts = self._sums(_numbers({key: torch.linalg.vector_norm(change, dtype=torch.float64) ** 2 for key, change in update.items()}))
        return {name: sum(parts[key] for key in keys) for name, keys in self._keys.items()}

    def _sums(self, values: Mapping[str, float]) -> dict[str, float]:
        return dict(zip(values, distributed.sum_shards(list(values.values()), [self.weights[name] for name in values]), strict=True))

    @torch.no_grad()
    def response(self, update: Update, known: Mapping[str, Tensor] = _NOTHING) -> dict[str, float]:
        """tr(D M D^T) by layer, for an update D and the retained data's Gram M.

        Args:
            update: What D is of each layer.
            known: Of some layers, what ``proposal`` found already: of this process's part.
        """
        values = _numbers({name: known[name] if name in known else self._response(name, update) for name in self._layers})
        found = {**values, **self._sums({name: value for name, value in values.items() if self._local[name]})}
        return {name: max(value, 0.0) if value == value else value for name, value in found.items()}  # rounding may bring it below

    def _response(self, name: str, update: Update) -> Tensor:
        matrix = self._matrix(name, update).to(self._matrices[name].dtype)
        return ((matrix @ self._matrices[name]) * matrix).sum()

    def relative(self, update: Update, known: Mapping[str, Tensor] = _NOTHING) -> float:
        """Sum tr(D M D^T) / sum tr(W M W^T): squared change of the response to the retained data, relative to the original response.

        Args:
            update: D.
            known: As in ``response``.
        """
        return self._relative(self.response(update, known))

    def _relative(self, response: Mapping[str, float]) -> float:
        energy = sum(self._energy.values())
        return sum(response.values()) / energy if energy else 0.0

    def longest(self, update: Update) -> float:
        """The factor by which ``update`` is as long as the original weights together."""
        length = math.sqrt(sum(self.squares(update).values()))
        return self._length / length if length and self._length else 1.0

    def _response_of_change(self) -> dict[str, float]:
        if self._changed is None:
            self._changed = self.response(self._change)
        return self._changed

    def interference(self) -> dict[str, float]:
        """The relative squared change of each layer's response to the retained data since the start, to first order."""
        changed = self._response_of_change()
        return {name: changed[name] / energy if energy else 0.0 for name, energy in self._energy.items()}

    @property
    def total_interference(self) -> float:
        """As ``interference``, over all layers together."""
        return self._relative(self._response_of_change())

    @torch.no_grad()
    def proposal(self) -> tuple[Update, dict[str, Tensor]]:
        """What the optimizer did since the last ``commit``, filtered; the weights are put back.

        Returns:
            The update, and its response in the layers where filtering it says that too: for ``response`` and ``relative``.
        """
        update = {name: self._original[name] + self._change[name] for name in self.weights}
        for name, part in self._parts().items():
            torch.sub(part, update[name], out=update[name])
        known: dict[str, Tensor] = {}
        if not self._released:
            known = self.filter_(update)
            self.balance_(update)
        self.undo()
        return update, {name: response * self._scales[name] ** 2 for name, response in known.items()}

    def release(self) -> None:
        """From now on updates pass as they are: for steps that look at the retained data itself."""
        self._released = True

    @torch.no_grad()
    def filter_(self, update: Update) -> dict[str, Tensor]:
        """Take from ``update`` what may not pass, in place.

        Returns:
            tr(D M D^T) of what is left, in the layers where that costs next to nothing; of sharded layers of this process's part.
        """
        known = {}
        for name in self._layers:
            together, dtype = self._together(name, update), _matrix_type(update[name])
            columns = self._columns(name, together)
            matrix = (columns[0] if len(columns) == 1 else torch.cat(columns, -1)).to(dtype)
            allowed, response = self.projectors[name].measured(matrix)
            if name in self._scaled:
                allowed = allowed + self._scaled[name](matrix, self._matrix(name, self._original).to(dtype))
            elif response is not None:
                known[name] = response
            for column, part in zip(columns, allowed.split([column.shape[-1] for column in columns], -1), strict=True):
                column.copy_(part)
            for key, whole in together.items():
                if whole is not update[key]:
                    update[key].copy_(distributed.part_of(whole, self.weights[key]))
        return known

    @torch.no_grad()
    def balance_(self, update: Update) -> None:
        """Weigh the layers of ``update`` against each other, in place."""
        for name, keys in self._keys.items():
            for key in keys if self._scales[name] != 1 else ():
                update[key].mul_(self._scales[name])

    @torch.no_grad()
    def undo(self) -> None:
        """Put the weights back to where the last ``commit`` left them."""
        for name, part in self._parts().items():
            torch.add(self._original[name], self._change[name], out=part)
        self._written()

    @torch.no_grad()
    def commit(self, update: Update, length: float = 1.0) -> None:
        """Make ``length * update`` part of the change."""
        for name, change in self._change.items():
            change.add_(update[name], alpha=length)
        self._changed = None
        self.undo()

    @contextmanager
    def moved(self, update: Update, length: float) -> Iterator[None]:
        """Inside, the weights have moved by ``length * update``; afterwards they are back."""
        with torch.no_grad():
            for name, part in self._parts().items():
                part.add_(update[name], alpha=length)
        self._written()
        try:
            yield
        finally:
            self.undo()

    @contextmanager
    def at_original(self) -> Iterator[None]:
        """Inside, the model is the original."""
        with torch.no_grad():
            for name, part in self._parts().items():
                part.copy_(self._original[name])
        self._written()
        try:
            yield
        finally:
            self.undo()

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The original weights and the change, named as ``weights``."""
        return {"original": dict(self._original), "change": {name: change.clone() for name, change in self._change.items()}}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go to a state that ``state_dict`` gave.

        Raises:
            ValueError: If it is of other layers.
        """
        for part, own in (("original", self._original), ("change", self._change)):
            if state[part].keys() != own.keys():
                raise ValueError(f"the saved state is of the layers {sorted(state[part])}, the model has {sorted(own)}")
            for name, value in own.items():
                value.copy_(state[part][name])
        self._take_down_original()
        self.undo()


def bias_key(layer: str) -> str:
    """The name of a layer's bias among what moves."""
    return f"{layer}.bias"


def moving(layers: Mapping[str, nn.Module], biases: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """What moves of some layers: their weights by the layers' names, and their biases by ``bias_key``."""
    return {name: _weight(layer) for name, layer in layers.items()} | {bias_key(name): bias for name, bias in biases.items()}


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = weight_of(layer)
    if not isinstance(weight, nn.Parameter):
        raise TypeError(f"{type(layer).__name__}.weight is not a parameter")
    return weight


def _numbers(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Scalars as numbers: a device is waited for once, not for each."""
    device = next(iter(tensors.values())).device if tensors else None
    together = [tensor.to(device, torch.float64) for tensor in tensors.values()]
    return dict(zip(tensors, torch.stack(together).tolist(), strict=True)) if together else {}


def _matrix_type(weight: Tensor) -> torch.dtype:
    return torch.promote_types(weight.dtype, torch.float32)
