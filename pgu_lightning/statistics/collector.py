"""Hooks that take down what each layer receives while the model looks at data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pgu_lightning import distributed
from pgu_lightning.statistics.attention import Call, side_by_side, source
from pgu_lightning.statistics.gram import Gram
from pgu_lightning.statistics.layers import bias_of, row_sum, second_moment, weight_of
from pgu_lightning.statistics.survey import LayerInfo, named_layers

_HALF = (torch.float16, torch.bfloat16)


class Collector:
    """Adds up the Gram matrices of a model's layers over every forward pass made inside its ``with`` block.

    The Gram is computed in a forward *pre*-hook, so later in-place operations do no harm, and no activation is kept.

    Args:
        model: Any module.
        layers: What ``survey(model)`` found.
        on_cpu: Keys of the matrices that are summed on the CPU, because the device has no room; the others are where the inputs are.

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

    def __init__(self, model: nn.Module, layers: Sequence[LayerInfo], on_cpu: Collection[str] = ()) -> None:
        self.mask: Tensor | None = None
        self.counts = True
        self._layers = tuple(layers)
        self._on_cpu = on_cpu
        self._modules = dict(named_layers(model))
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._row_sums: dict[str, Tensor] = {}
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
            if not self.counts:
                return
            with torch.no_grad():
                parts = [self._unmasked(module, distributed.full(x)) for x in received((called, inputs, named))]
                x = parts[0] if len(parts) == 1 else side_by_side(parts)
                if not x.numel():
                    return
                with torch.autocast(x.device.type, enabled=False):
                    x = x.float() if x.dtype in _HALF else x
                    matrix, rows = second_moment(module, x)
                    sums = row_sum(module, x) if bias_of(module) is not None else None
            if key in self._on_cpu:
                matrix = matrix.cpu()
            if sums is not None:
                self._row_sums[key] = self._row_sums.get(key, 0) + sums.to(matrix.device)
            self._sums[key] = self._sums[key].add_(matrix) if key in self._sums else matrix
            self._rows[key] = self._rows.get(key, 0) + rows

        return hook

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
            matrix = self._sums.get(layer.gram)
            if matrix is None:
                weight = weight_of(self._modules[layer.name])
                matrix = torch.zeros(layer.shape[0], layer.shape[2], layer.shape[2], dtype=torch.float64, device=weight.device)
            matrix = distributed.sum_(matrix)
            rows = int(distributed.sum_(torch.tensor(self._rows.get(layer.gram, 0), device=matrix.device)))
            sums = None
            if bias_of(self._modules[layer.name]) is not None:
                sums = distributed.sum_(self._row_sums.get(layer.gram, matrix.new_zeros(matrix.shape[:2])))
            if rows:
                grams[layer.gram] = Gram(matrix.cpu(), rows, None if sums is None else sums.cpu())
                layers.append(layer)
            else:
                layers.append(replace(layer, gram=None, frozen_because="its forward was never called"))
        return grams, tuple(layers)
