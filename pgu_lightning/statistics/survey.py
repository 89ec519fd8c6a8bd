"""Which layers of a model can be protected, and why the others cannot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import nn
from torch.nn.utils import parametrize

from pgu_lightning import distributed
from pgu_lightning.statistics.layers import as_matrix, bias_of, supported, weight_of

_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")


@dataclass(frozen=True)
class LayerInfo:
    """One layer that owns parameters.

    Attributes:
        name: Its name in the model, without the prefixes that wrappers add.
        kind: Its type's name.
        gram: Key of its Gram matrix in the retain space; None if the layer is frozen.
        shape: Shape of its weight as (groups, out, dim), or of its first parameter (empty before it is initialised) if it is frozen.
        frozen_because: Why it is not updated; None if it is protected.
    """

    name: str
    kind: str
    gram: str | None
    shape: tuple[int, ...]
    frozen_because: str | None = None


def canonical(name: str) -> str:
    """A module's or parameter's name without the prefixes of torch.compile, checkpointing and sharding wrappers.

    Example:
        >>> canonical("_orig_mod.net._checkpoint_wrapped_module.0")
        'net.0'
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "").replace("." + wrapper.rstrip("."), "")
    return name


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Canonical name and module of everything in ``model`` that owns parameters directly."""
    for name, module in model.named_modules():
        owns = any(True for _ in module.parameters(recurse=False))
        if (owns or parametrize.is_parametrized(module)) and not isinstance(module, parametrize.ParametrizationList):
            yield canonical(name), module


def survey(model: nn.Module, patterns: Sequence[str] | None = None) -> tuple[LayerInfo, ...]:
    """List every layer that owns parameters: protected, or frozen and why. What is said is of the weight; of biases, ``biases`` says it.

    ``nn.MultiheadAttention`` is two layers: the module stands for its in-projection, ``out_proj`` for itself.

    Args:
        model: Any module.
        patterns: Shell patterns of layer names (``"blocks.*"``); only layers that match one are updated. None: all that can be protected.

    Returns:
        One entry a layer, in the order of ``model.named_modules()``.

    Raises:
        ValueError: If a pattern matches no layer, or no layer can be protected.

    Example:
        >>> [(layer.name, layer.frozen_because) for layer in survey(nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)))]
        [('0', None), ('1', 'normalisation parameters are not moved')]
    """
    layers = list(named_layers(model))
    for pattern in patterns or ():
        if not any(fnmatch(name, pattern) for name, _ in layers):
            raise ValueError(f"layers={pattern!r} matches no layer. The model has: {', '.join(name for name, _ in layers)}")
    owners = _owners(layers)
    found = tuple(_describe(name, module, owners, patterns) for name, module in layers)
    if all(layer.gram is None for layer in found):
        reasons = "; ".join(f"{layer.name}: {layer.frozen_because}" for layer in found) or "it has no parameters"
        raise ValueError(f"No layer of {type(model).__name__} can be protected ({reasons}).")
    return found


def biases(model: nn.Module, names: Iterable[str]) -> tuple[dict[str, nn.Parameter], dict[str, str]]:
    """Which biases of protected layers may move, each as one more column of its layer's matrix, and why the others may not.

    Args:
        model: Any module.
        names: Of its protected layers.

    Returns:
        The biases by layer name, and the reasons by the biases' own names.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ConvTranspose1d(3, 1, 2))
        >>> found, frozen = biases(model, ["0", "1"])
        >>> list(found), frozen
        (['0'], {'1.bias': 'ConvTranspose1d does not add it once to each row of its product'})
    """
    modules = dict(named_layers(model))
    owners = _owners(modules.items())
    found: dict[str, nn.Parameter] = {}
    frozen: dict[str, str] = {}
    for layer in names:
        module = modules[layer]
        for part, parameter in module.named_parameters(recurse=False):
            others = [name for name in owners[id(parameter)] if name != layer]
            if parameter is weight_of(module):
                continue
            if parameter is not bias_of(module):
                reason = f"{distributed.kind_of(module)} does not add it once to each row of its product"
            elif others:
                reason = f"it is tied to {', '.join(others)}"
            elif not parameter.requires_grad:
                reason = "the model has frozen it (requires_grad is False)"
            elif not distributed.averaged(parameter):
                reason = "its gradient is not averaged over the processes: no fully_shard holds it"
            else:
                found[layer] = parameter
                continue
            frozen[f"{layer}.{part}"] = reason
    return found, frozen


def _owners(layers: Iterable[tuple[str, nn.Module]]) -> dict[int, list[str]]:
    """The names of the layers that own a parameter, by its id."""
    owners: dict[int, list[str]] = {}
    for name, module in layers:
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return owners


def _describe(name: str, module: nn.Module, owners: dict[int, list[str]], patterns: Sequence[str] | None) -> LayerInfo:
    reason = _reason(name, module, owners, patterns)
    if reason is None:
        shape = tuple(as_matrix(module, torch.empty(weight_of(module).shape, device="meta")).shape)
        return LayerInfo(name, distributed.kind_of(module), name, shape)
    first = next(module.parameters())
    shape = () if isinstance(first, nn.parameter.UninitializedParameter) else tuple(first.shape)
    return LayerInfo(name, distributed.kind_of(module), None, shape, reason)


def _reason(name: str, module: nn.Module, owners: dict[int, list[str]], patterns: Sequence[str] | None) -> str | None:
    if parametrize.is_parametrized(module):
        return "its weight is parametrized"
    if not supported(module):
        kind = distributed.kind_of(module)
        return "normalisation parameters are not moved" if "Norm" in kind else f"{kind} is not a layer whose input rows are known"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return "max_norm rewrites its weight in the forward pass"
    if isinstance(module, nn.Embedding) and module.sparse:
        return "its gradient is sparse (sparse=True)"
    if isinstance(module, nn.MultiheadAttention) and not module._qkv_same_embed_dim:
        return "its queries, keys and values have weights of their own (kdim, vdim)"
    weight = weight_of(module)
    if not isinstance(weight, nn.Parameter) or isinstance(weight, nn.parameter.UninitializedParameter):
        return "its weight is not an initialised parameter"
    others = [other for other in owners[id(weight)] if other != name]
    if others:
        return f"its weight is tied to {', '.join(others)}"
    if not weight.requires_grad:
        return "the model has frozen it (requires_grad is False)"
    if not distributed.averaged(weight):
        return "its gradient is not averaged over the processes: no fully_shard holds it"
    if patterns is not None and not any(fnmatch(name, pattern) for pattern in patterns):
        return "not selected by layers="
    return None
