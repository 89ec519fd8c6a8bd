"""Every collective of the package, and all that is known of sharded tensors. On one process each of these is the identity.

Processes that hold different samples form the *data group*: all of them, unless ``follow`` was told of a mesh in which tensor-parallel
processes share their samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate

_data_group: dist.ProcessGroup | None = None  # like torch's default group it is a property of the process
_averages_gradients = True


def follow(mesh: DeviceMesh | None) -> None:
    """Take the data group from a device mesh with a dimension ``"data_parallel"``; None: all processes hold different samples.

    On a mesh nobody but ``fully_shard`` averages gradients, so plain weights are not ``averaged`` there.
    """
    global _data_group, _averages_gradients
    _data_group = None if mesh is None else mesh["data_parallel"].get_group()
    _averages_gradients = mesh is None


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _active() -> bool:
    return _processes() > 1 and dist.get_world_size(_data_group) > 1


def rank() -> int:
    """This process's number in the data group, from 0."""
    return dist.get_rank(_data_group) if _active() else 0


def world() -> int:
    """Number of processes in the data group."""
    return dist.get_world_size(_data_group) if _active() else 1


def is_first() -> bool:
    """Whether this is the process that speaks for all."""
    return _processes() == 1 or dist.get_rank() == 0


def _device() -> torch.device:
    """Where tensors have to be for a collective over all processes."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


# Over processes with different samples


def sum_(tensor: Tensor) -> Tensor:
    """Sum ``tensor`` over the data group, in place, and return it."""
    if _active():
        sent = tensor.to(_device()) if tensor.device.type == "cpu" else tensor  # NCCL takes no CPU tensors
        dist.all_reduce(sent, group=_data_group)
        if sent is not tensor:
            tensor.copy_(sent)
    return tensor


def mean(tensor: Tensor) -> Tensor:
    """The mean of ``tensor`` over the data group, as a new tensor."""
    return sum_(tensor.detach().clone()) / world()


def share(rows: int, like: Tensor) -> float:
    """The factor for a mean over this process's ``rows``, so that averaging over processes gives the mean over all rows.

    Args:
        rows: Rows of the global batch that this process holds.
        like: A tensor on the device that collectives run on.
    """
    if not _active():
        return 1.0
    total = int(sum_(torch.tensor(rows, device=like.device)))  # not of like's type: half precision counts to 256
    return rows * world() / total if total else 0.0


def gather(value: Any) -> list[Any]:
    """Every ``value`` of the data group, in order of rank. CPU tensors and plain objects."""
    if not _active():
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value, group=_data_group)
    return values


# Over all processes


def everywhere(flag: bool) -> bool:
    """Whether ``flag`` is true on every process."""
    if _processes() == 1:
        return flag
    failing = torch.tensor(int(not flag), device=_device())
    dist.all_reduce(failing)
    return int(failing) == 0


def share_out(costs: Sequence[float], processes: int) -> list[list[int]]:
    """Which of the tasks each process does, so that none has much more to do than another.

    The dearest first, each to the process that has least so far: at most 4/3 of the best (Graham, 1969).

    Example:
        >>> share_out([1, 8, 3, 4], 2)
        [[1], [3, 2, 0]]
    """
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [0.0] * processes
    for task in sorted(range(len(costs)), key=lambda task: -costs[task]):
        least = loads.index(min(loads))
        shares[least].append(task)
        loads[least] += costs[task]
    return shares


def spread(costs: Sequence[float], make: Callable[[int], Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    """The results of tasks that are shared out over all processes: on each the same to the bit.

    Args:
        costs: Of each task, in any unit.
        make: Does one task, given its number: tensors on the CPU.

    Raises:
        RuntimeError: If a task failed on another process; where it failed, its own error.
    """
    if _processes() == 1:
        return [make(task) for task in range(len(costs))]
    shares = share_out(costs, _processes())
    error: Exception | None = None
    own: dict[int, Sequence[Tensor]] = {}
    try:
        own = {task: make(task) for task in shares[dist.get_rank()]}
    except Exception as found:
        error = found
    if not everywhere(error is None):  # before the others wait for what never comes
        raise error or RuntimeError("A task failed on another process: its error is there.")
    shapes: list[Any] = [None] * _processes()
    dist.all_gather_object(shapes, {task: [(tensor.shape, tensor.dtype) for tensor in made] for task, made in own.items()})
    results: dict[int, list[Tensor]] = {}
    for source, tasks in enumerate(shares):
        for task in tasks:
            made = own[task] if task in own else [torch.empty(shape, dtype=dtype) for shape, dtype in shapes[source][task]]
            sent = [tensor.to(_device()).contiguous() for tensor in made]
            for tensor in sent:
                dist.broadcast(tensor, source)
            results[task] = [tensor.cpu() for tensor in sent]
    return [results[task] for task in range(len(costs))]


def agree(module: nn.Module) -> None:
    """Give every process the first one's buffers, as DDP does before a forward pass: BatchNorm's are each process's own in training."""
    if _processes() > 1:
        for buffer in module.buffers():
            sent = local(buffer).to(_device()).contiguous()
            dist.broadcast(sent, 0)
            local(buffer).copy_(sent)


# Sharded weights (DTensor)


def reshard(module: nn.Module) -> None:
    """Drop gathered copies of sharded weights: a forward pass may leave them, and they do not follow when the weights are changed."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, not of the subclass that ``fully_shard`` makes."""
    kind = type(module)
    return kind.__bases__[-1].__name__ if isinstance(module, FSDPModule) and kind.__name__.startswith("FSDP") else kind.__name__


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: a shard, of perhaps no rows, that shares memory with it."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def full(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every process."""
    return whole(local(tensor), tensor)


def whole(part: Tensor, like: Tensor) -> Tensor:
    """Put together what the processes hold, if ``like`` is sharded."""
    if not isinstance(like, DTensor):
        return part
    mesh = like.device_mesh  # a state dict may have been moved to the CPU
    part = part.to(mesh.device_type)
    return DTensor.from_local(part, mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()).full_tensor()


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Of a whole tensor the part that this process holds, if ``like`` is sharded."""
    if not isinstance(like, DTensor):
        return whole
    everywhere_same = DTensor.from_local(whole, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)
    return everywhere_same.redistribute(placements=like.placements).to_local()


def has_whole_rows(tensor: Tensor) -> bool:
    """Whether every process holds ``tensor[i]`` whole or not at all."""
    return not isinstance(tensor, DTensor) or all(place.is_replicate() or getattr(place, "dim", None) == 0 for place in tensor.placements)


def alike(tensors: Sequence[Tensor]) -> bool:
    """Whether the processes hold the same rows of each of these."""
    return len({tuple(tensor.placements) if isinstance(tensor, DTensor) else None for tensor in tensors}) == 1


def averaged(weight: Tensor) -> bool:
    """Whether the strategy averages this weight's gradient over the data group."""
    return _averages_gradients or world() == 1 or isinstance(weight, DTensor)


def mean_gradient(weight: Tensor) -> Tensor:
    """This process's part of a weight's gradient after a backward pass of the bare module, averaged over the data group."""
    if weight.grad is None:
        return torch.zeros_like(local(weight))
    return local(weight.grad).clone() if isinstance(weight, DTensor) else mean(weight.grad)


def sum_shards(values: Sequence[float], weights: Sequence[Tensor]) -> list[float]:
    """For each weight the sum of a value over the processes that hold different parts of it.

    Every process gives the weights in the same order, and a value of its part of each.
    """
    groups = [_shard_groups(weight) for weight in weights]
    distinct = {group.group_name: group for some in groups for group in some}
    if not distinct:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64, device=_device())
    for name, group in distinct.items():
        chosen = torch.tensor([any(one.group_name == name for one in some) for some in groups], device=total.device)
        part = total[chosen]
        dist.all_reduce(part, group=group)
        total[chosen] = part
    return total.tolist()


def _shard_groups(weight: Tensor) -> list[dist.ProcessGroup]:
    if not isinstance(weight, DTensor):
        return []
    return [weight.device_mesh.get_group(axis) for axis, place in enumerate(weight.placements) if not place.is_replicate()]
