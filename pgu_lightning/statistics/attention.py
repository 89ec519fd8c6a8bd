"""The two products inside ``nn.MultiheadAttention``, whose projections are no layers that are called.

The in-projection is one weight, (3 embed_dim, embed_dim): three groups, of the queries, keys and values. The out-projection is a linear
layer whose forward is passed over; what it is given is what the attention returns when the identity is in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pgu_lightning.statistics.layers import as_matrix, rows, supported, weight_of

Call = tuple[Any, tuple[Any, ...], Mapping[str, Any]]  # a module and what it is called with


def first_argument(call: Call) -> list[Tensor]:
    """What most layers multiply their weight with."""
    _, inputs, named = call
    return [(*inputs, *named.values())[0]]


def projected(call: Call) -> list[Tensor]:
    """Query, key and value, batch first; one for all where they are the same."""
    attention, inputs, named = call
    given = dict(zip(("query", "key", "value"), inputs, strict=False)) | dict(named)
    if given["query"] is given["key"] is given["value"]:
        return [_batch_first(attention, given["query"])]
    return [_batch_first(attention, given[name]) for name in ("query", "key", "value")]


def attended(call: Call) -> list[Tensor]:
    """The heads' output that the out-projection is given, batch first."""
    attention, inputs, named = call
    identity: Any = nn.Identity()
    weight = weight_of(attention.out_proj)
    identity.weight, identity.bias = torch.eye(attention.embed_dim).to(weight.device, weight.dtype), None
    # The weights are shared, the model is left alone, and no hook is called. (What fully_shard makes of a class cannot be copied.)
    twin = nn.MultiheadAttention.__new__(nn.MultiheadAttention)
    vars(twin).update(vars(attention), _modules={"out_proj": identity})
    return [_batch_first(attention, twin.forward(*inputs, **named)[0])]


def source(module: nn.Module, owner: nn.Module | None) -> tuple[nn.Module, Callable[[Call], Sequence[Tensor]]]:
    """Whose calls show what ``module`` receives, and how to read it off a call.

    Args:
        module: The layer.
        owner: The module that it is a direct part of.
    """
    if isinstance(owner, nn.MultiheadAttention) and owner.out_proj is module and supported(owner):
        return owner, attended
    return module, projected if isinstance(module, nn.MultiheadAttention) else first_argument


def _batch_first(attention: nn.Module, x: Tensor) -> Tensor:
    return x if attention.batch_first or x.dim() == 2 else x.transpose(0, 1)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Inputs of several products, (..., dim) each, as (products, rows, dim); rows of zeros behind the shorter ones add nothing."""
    return pad_sequence([part.flatten(0, -2) for part in parts], batch_first=True)


@rows.register
def _(layer: nn.MultiheadAttention, x: Tensor) -> Tensor:
    return x


@as_matrix.register
def _(layer: nn.MultiheadAttention, weight: Tensor) -> Tensor:
    return weight.view(3, layer.embed_dim, layer.embed_dim)


@weight_of.register
def _(layer: nn.MultiheadAttention) -> Any:
    return layer.in_proj_weight
