"""Hooks that take down what each layer receives while the model looks at data."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pgu_lightning import distributed
from pgu_lightning.statistics.attention import Call, first_argument, projected, side_by_side, source
from pgu_lightning.statistics.gram import Gram
from pgu_lightning.statistics.layers import bias_of, geometry, row_sum, weight_of
from pgu_lightning.statistics.moment import Moment, moment
from pgu_lightning.statistics.survey import LayerInfo, named_layers

NEVER_CALLED = "its forward was never called"
_HALF = (torch.float16, torch.bfloat16)


class Collector:
    """Adds up the Gram matrices of a model's layers over every forward pass made inside its ``with`` block.

    The Gram is computed in a forward *pre*-hook, so later in-place operations do no harm, and no activation is kept but a few rows that
    wait for others.

    With ``share``, layers that are given the very same tensor in every call (queries, keys and values, for example) have one sum, that of
    the first of them. This is found out in the first call and checked in each: ``agrees`` says whether it held.

    Args:
        model: Any module.
        layers: What ``survey(model)`` found.
        on_cpu: Keys of the matrices that are summed on the CPU, because the device has no room; the others are where the inputs are.
        share: Whether layers with the same input have one matrix.

    Attributes:
        mask: Which rows of the next forward pass are real: a boolean tensor that matches the leading dimensions of the layers' inputs,
            such as (batch, tokens) for padded sequences. None: all.
        counts: Whether the next forward pass is of data at all, and not made only to keep other processes company.

    Example:
        >>> from pgu_lightning.statistics.survey import survey
        >>> model = nn.Sequential(nn.Linear(2, 1))
        >>> collector = Collector(model, survey(model))
        >>> with collector:
        ...     _ = model(torch.ones(3, 2))
        >>> grams, layers = collector.result()
        >>> grams["0"].rows, grams["0"].matrix.tolist()
        (3, [[[3.0, 3.0], [3.0, 3.0]]])
    """

    def __init__(self, model: nn.Module, layers: Sequence[LayerInfo], on_cpu: Collection[str] = (), share: bool = False) -> None:
        self.mask: Tensor | None = None
        self.counts = True
        self._layers = tuple(layers)
        self._on_cpu, self._share = on_cpu, share
        self._modules = dict(named_layers(model))
        self._sums: dict[str, Moment] = {}
        self._row_sums: dict[str, Tensor] = {}
        self._calls: Counter[str] = Counter()
        self._leaders: dict[str, str] = {}
        self._received: dict[tuple[int, Hashable], tuple[weakref.ref[Tensor], int, str]] = {}
        self._agrees = True
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Collector:
        # The fast path of attention and of transformer layers passes over the layers in them.
        self._fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        for layer in self._layers:
            if layer.gram is not None:
                module = self._modules[layer.name]
                called, received = source(module, self._modules.get(layer.name.rpartition(".")[0]))
                hook = self._hook(layer.gram, module, received)
                self._handles.append(called.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self._fast_path)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hook(self, key: str, module: nn.Module, received: Callable[[Call], Sequence[Tensor]]) -> Any:
        def hook(called: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            call = called, inputs, named
            if not self.counts or self._led(key, module, first_argument(call)[0] if received is first_argument else None):
                return
            with torch.no_grad():
                parts = [self._unmasked(module, distributed.full(x)) for x in received(call)]
                x = side_by_side(parts) if received is projected else parts[0]
                if not x.numel():
                    return
                with torch.autocast(x.device.type, enabled=False):
                    x = x.float() if x.dtype in _HALF else x
                    if key not in self._sums:
                        self._sums[key] = moment(module, torch.device("cpu") if key in self._on_cpu else None)
                    self._sums[key].add(x)
                    if bias_of(module) is not None:
                        self._row_sums[key] = self._row_sums.get(key, 0) + row_sum(module, x)

        return hook

    def _led(self, key: str, module: nn.Module, x: Tensor | None) -> bool:
        """Whether another layer's sum has what this call of a layer is given."""
        self._calls[key] += 1
        leader, kind = key, geometry(module)
        if self._share and x is not None and kind is not None and not x.is_inference():  # an inference tensor's changes are not counted
            seen = self._received.get((id(x), kind))
            if seen is not None and seen[0]() is x and seen[1] == x._version:
                leader = seen[2]
            else:
                if len(self._received) > 2 * len(self._layers):
                    self._received = {place: seen for place, seen in self._received.items() if seen[0]() is not None}
                self._received[id(x), kind] = weakref.ref(x), x._version, key
        # Each call of the first layer goes with one of the other, until the next.
        if self._leaders.setdefault(key, leader) != leader or self._calls[leader] != self._calls[key]:
            self._agrees = False
        return leader != key

    def agrees(self) -> bool:
        """Whether layers that shared a sum were given the same tensors in every call, on every process; every process has to ask."""
        shares = distributed.gather(self._leaders)
        merged = {key: leader for share in shares for key, leader in share.items()}
        agrees = self._agrees and all(share.items() <= merged.items() for share in shares)
        self._leaders = merged
        return distributed.everywhere(agrees and all(self._calls[key] == self._calls[leader] for key, leader in merged.items()))

    def _unmasked(self, module: nn.Module, x: Tensor) -> Tensor:
        mask = self.mask
        # The second dimension of a convolution's input is channels, never tokens.
        if mask is not None and x.shape[: mask.dim()] == mask.shape and (mask.dim() == 1 or not hasattr(module, "kernel_size")):
            return x[mask]
        return x

    def result(self) -> tuple[Mapping[str, Gram], tuple[LayerInfo, ...]]:
        """The sums over all processes, on the CPU, and the layers; those that no forward pass reached are now frozen."""
        grams: dict[str, Gram] = {}
        layers: list[LayerInfo] = []
        for layer in self._layers:
            if layer.gram is None:
                layers.append(layer)
                continue
            key = self._leaders.get(layer.gram, layer.gram)
            if key == layer.gram:
                gram = self._total(layer, key)
                if gram.rows:
                    grams[key] = gram
            reached = key in grams
            layers.append(replace(layer, gram=key) if reached else replace(layer, gram=None, frozen_because=NEVER_CALLED))
        return grams, tuple(layers)

    def _total(self, layer: LayerInfo, key: str) -> Gram:
        groups, dim, weight = layer.shape[0], layer.shape[2], weight_of(self._modules[layer.name])
        if key in self._sums:
            with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):  # there may be rows that still wait
                matrix, count = self._sums.pop(key).result()
        else:
            matrix, count = torch.zeros(groups, dim, dim, dtype=torch.float64, device=weight.device), 0
        if len(matrix) < groups:  # one that stands for all, since attention's queries, keys and values were the same
            matrix = matrix.repeat(groups, 1, 1)
        matrix = distributed.sum_(matrix)
        count = int(distributed.sum_(torch.tensor(count, device=matrix.device)))
        sums = None
        if bias_of(self._modules[layer.name]) is not None:
            sums = self._row_sums.pop(key, torch.zeros(groups, dim, dtype=torch.float64, device=weight.device))
            sums = distributed.sum_(sums).cpu()
        return Gram(matrix.cpu(), count, sums)
