"""How far each layer's response to the retained data moved, measured on that data: what interference is held against."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from pgu_lightning import distributed
from pgu_lightning.mixin import question
from pgu_lightning.passes import forward_pass
from pgu_lightning.records import MeasuredLayer
from pgu_lightning.statistics import named_layers, weight_of
from pgu_lightning.statistics.attention import projected, side_by_side, source
from pgu_lightning.statistics.layers import as_matrix, bias_of, rows

_SAMPLES = 32  # whose rows are formed at once: a convolution's patches are many times its input


def measured_interference(
    original: nn.Module, unlearned: nn.Module, loader: DataLoader[Any], layers: Collection[str]
) -> dict[str, MeasuredLayer]:
    """Relative squared changes of each layer's response to the samples of a loader.

    Of a layer with weight W before and W + D after, which receives the rows x before and x' after: ``own`` is sum |D x|^2 / sum |W x|^2,
    what interference is by the statistics; ``with_inputs`` is sum |(W + D) x' - W x|^2 / sum |W x|^2, with what the layers before it did. A
    bias that moved is a column of W for an input of one.

    Args:
        original: The model before.
        unlearned: The model after, on the same device; it is left in eval mode.
        loader: The retained samples.
        layers: Names of layers.

    Returns:
        By name; a layer whose response was nothing is left out.
    """
    before, after = (dict(named_layers(model)) for model in (original, unlearned))
    augmented = {name for name in layers if _moved(bias_of(before[name]), bias_of(after[name]))}
    old, new = ({name: _matrix(part[name], name in augmented) for name in layers} for part in (before, after))
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in layers}
    changed: dict[str, list[Tensor]] = {name: [] for name in layers}
    counting = True

    def ahead(batch: Any, counts: bool) -> None:
        """Show the batch to the model after, before it is shown to the model before."""
        nonlocal counting
        counting = counts
        for inputs in changed.values():
            inputs.clear()
        with _watched(unlearned, layers, lambda name, x: changed[name].append(x)):
            question(unlearned, "unlearning_outputs")(batch)  # type: ignore[arg-type]

    def compare(name: str, x: Tensor) -> None:
        other = changed[name].pop(0)
        for part, theirs in zip(x.split(_SAMPLES), other.split(_SAMPLES), strict=True):
            inputs, moved = (_rows(before[name], each, name in augmented) for each in (part, theirs))
            response = inputs @ old[name].mT
            own, whole = inputs @ (new[name] - old[name]).mT, moved @ new[name].mT - response
            if counting:
                sums[name] += torch.stack([part.square().sum(dtype=torch.float64) for part in (own, whole, response)]).cpu()

    unlearned.eval()
    with _watched(original, layers, compare):
        forward_pass(original, loader, lambda *_: None, "Measuring interference", ahead)
    totals = {name: distributed.sum_(value).tolist() for name, value in sums.items()}
    return {name: MeasuredLayer(own / whole, moved / whole) for name, (own, moved, whole) in totals.items() if whole > 0}


def _matrix(layer: nn.Module, augmented: bool) -> Tensor:
    weight, bias = as_matrix(layer, weight_of(layer).detach()), bias_of(layer)
    if not augmented or bias is None:
        return weight
    return torch.cat([weight, bias.detach().view(*weight.shape[:2], 1)], -1)


@contextmanager
def _watched(model: nn.Module, layers: Collection[str], see: Callable[[str, Tensor], object]) -> Iterator[None]:
    """Inside, ``see`` is called with a layer's name and what it receives, at each of its calls."""
    modules, handles = dict(named_layers(model)), []

    def hook(name: str, received: Callable[..., Any]) -> Any:
        def seen(called: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            parts = received((called, inputs, named))
            see(name, side_by_side(parts) if received is projected else parts[0])

        return seen

    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it passes over the layers in attention
    for name in layers:
        called, received = source(modules[name], modules.get(name.rpartition(".")[0]))
        handles.append(called.register_forward_pre_hook(hook(name, received), with_kwargs=True))
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for handle in handles:
            handle.remove()


def _moved(before: Tensor | None, after: Tensor | None) -> bool:
    return before is not None and after is not None and not torch.equal(before, after)


def _rows(layer: nn.Module, x: Tensor, augmented: bool) -> Tensor:
    """With a one behind each where the bias counts."""
    found = rows(layer, x)
    return torch.cat([found, found.new_ones(*found.shape[:2], 1)], -1) if augmented else found
