"""What unlearning changed, as a file that can be put on and taken off the original model, or as a LoRA.

Two forms: the *delta* holds every change exactly, ``merge`` and ``revert`` go from one model to the other bit for bit; the *LoRA* is what
PEFT reads, as exact as its rank allows. An update that passed a soft filter has full rank: its exact LoRA is larger than the weight itself,
and is only worth having at a smaller ``rank``.

Adding a rounded difference need not give back the last bit, nor need subtracting it. Where ``original + change`` is the unlearned value and
``unlearned - change`` the original one, as it always is where the two are within a factor of two of each other, the change is all that is
kept. For the other values the file also says which bits differ.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pgu_lightning.files import atomic_write, read_tensors
from pgu_lightning.statistics import canonical, fingerprint, named_layers

FORMAT = "pgu-lightning delta 1"
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# No name of a tensor begins with a dot.
_POSITIONS, _BITS = ".positions.", ".bits."


def export_delta(original: nn.Module, unlearned: nn.Module, path: str | Path) -> Path:
    """Write what differs between two models.

    Args:
        original: The model before unlearning.
        unlearned: The same model after it.
        path: A safetensors file. Under each changed tensor's name it has ``unlearned - original`` in the tensor's own type.

    Returns:
        ``path``.

    Raises:
        ValueError: If the models are of different shapes, nothing changed, or a changed tensor cannot be written as a difference.

    Example:
        >>> import copy, tempfile
        >>> model = nn.Linear(2, 1)
        >>> other = copy.deepcopy(model)
        >>> _ = other.weight.data.mul_(3)
        >>> path = export_delta(model, other, Path(tempfile.mkdtemp()) / "delta.safetensors")
        >>> merge(model, path)
        >>> torch.equal(model.weight, other.weight)
        True
    """
    before, after = _pair(original, unlearned)
    tensors: dict[str, Tensor] = {}
    for name, old in before.items():
        new = after[name]
        change = new - old
        tensors[name] = change
        wrong = (_bits(old + change) != _bits(new)) | (_bits(new - change) != _bits(old))
        positions = wrong.reshape(-1).nonzero()[:, 0]
        if len(positions):
            tensors[_POSITIONS + name] = positions
            tensors[_BITS + name] = (_bits(old) ^ _bits(new)).reshape(-1)[positions]
    metadata = {"format": FORMAT, "original": fingerprint(original), "unlearned": fingerprint(unlearned)}
    return atomic_write(path, lambda temporary: save_file(tensors, temporary, metadata=metadata))


def merge(model: nn.Module, path: str | Path) -> None:
    """Make the original model the unlearned one, bit for bit. It is changed in place, and only if all of it can be.

    Args:
        model: The original model; wrappers and device do not matter.
        path: What ``export_delta`` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the model is not the one that the delta starts from, or the file is damaged.
    """
    _move(model, path, "original", "unlearned", torch.add)


def revert(model: nn.Module, path: str | Path) -> None:
    """Make the unlearned model the original one, bit for bit: the reverse of ``merge``.

    Args:
        model: The unlearned model.
        path: What ``export_delta`` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the model is not the one that the delta leads to, or the file is damaged.
    """
    _move(model, path, "unlearned", "original", torch.sub)


def _move(model: nn.Module, path: str | Path, start: str, end: str, apply: Callable[[Tensor, Tensor], Tensor]) -> None:
    metadata, tensors = _load(Path(path))
    state = {canonical(name): value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    if fingerprint(state) != metadata.get(start):
        other = f"it is the {end} one already" if fingerprint(state) == metadata.get(end) else "its weights are others"
        raise ValueError(f"{path} goes from the {start} model to the {end} one, and this is not the {start} model: {other}.")
    names = [name for name in tensors if not name.startswith((_POSITIONS, _BITS))]
    try:
        moved = {name: _moved(state[name].cpu(), name, tensors, apply) for name in names}
    except (KeyError, IndexError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: its tensors do not fit the model that it names ({error}). Export it again.") from error
    if not all(bool(value.isfinite().all()) for value in moved.values()) or fingerprint({**state, **moved}) != metadata.get(end):
        raise ValueError(f"{path} is damaged: it does not lead to the {end} model. Nothing was changed; export it again.")
    with torch.no_grad():
        for name, value in moved.items():
            state[name].copy_(value)


def _moved(value: Tensor, name: str, tensors: Mapping[str, Tensor], apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    moved = apply(value, tensors[name])
    if _POSITIONS + name in tensors:
        positions = tensors[_POSITIONS + name]
        _bits(moved).view(-1)[positions] = _bits(value).reshape(-1)[positions] ^ tensors[_BITS + name]
    return moved


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def _pair(original: nn.Module, unlearned: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors that differ, by canonical name, on the CPU."""
    before, after = (
        {canonical(name): value.detach().cpu() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        for model in (original, unlearned)
    )
    problems = [f"only one of them has {name}" for name in sorted(before.keys() ^ after.keys())]
    for name in before.keys() & after.keys():
        one, other = (f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (before[name], after[name]))
        if one != other:
            problems.append(f"{name} is {one} in the original and {other} in the unlearned model")
    if problems:
        raise ValueError(f"These are not one model before and after unlearning: {'; '.join(problems)}.")
    changed = [name for name, value in before.items() if not torch.equal(_bits(value), _bits(after[name]))]
    if not changed:
        raise ValueError("Nothing changed: the two models are equal, so there is no adapter to write.")
    for name in changed:
        if before[name].dtype == torch.bool or before[name].is_complex():
            problems.append(f"{name} is {before[name].dtype}, of which a difference cannot be kept")
        elif not bool(before[name].isfinite().all() and after[name].isfinite().all()):
            problems.append(f"{name} has values that are not finite")
    if problems:
        raise ValueError(f"The change cannot be written: {'; '.join(problems)}.")
    return {name: before[name] for name in changed}, {name: after[name] for name in changed}


def _load(path: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no delta {path}: `export_delta(original, unlearned, path)` writes one.")
    return read_tensors(path, FORMAT, "Export it again.")


@dataclass(frozen=True)
class _Factors:
    down: Tensor  # lora_A: (rank, in) or (rank, in, height, width)
    up: Tensor  # lora_B: (out, rank) or (out, rank, 1, 1)
    error: float


def export_lora(original: nn.Module, unlearned: nn.Module, folder: str | Path, rank: int | None = None) -> dict[str, float]:
    """Write what differs between two models as a LoRA that PEFT loads onto the original.

    Args:
        original: The model before unlearning.
        unlearned: The same model after it.
        folder: For ``adapter_config.json`` and ``adapter_model.safetensors``.
        rank: Largest rank of a layer. None: for each layer the smallest that leaves out no more than float32 would round off its weight.

    Returns:
        By changed layer what the LoRA leaves out: the length of the rest over that of the change.

    Raises:
        ValueError: If the models are of different shapes, nothing changed, or something changed that is no Linear's or Conv2d's weight:
            a LoRA without it would be another model.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1 or None, got {rank}")
    before, after = _pair(original, unlearned)
    layers = {f"{name}.weight": (name, layer) for name, layer in named_layers(original)}
    problems = {name: _no_lora(layers.get(name, (name, None))[1]) for name in before}
    if any(problems.values()):
        listed = "; ".join(f"{name} {reason}" for name, reason in problems.items() if reason)
        raise ValueError(f"This change is no LoRA: {listed}. `export_delta` writes any change.")
    factors = {layers[name][0]: _factors(old, after[name], rank) for name, old in before.items()}
    ranks = {f"^{re.escape(name)}": len(found.down) for name, found in factors.items()}
    largest = max(ranks.values())
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "target_modules": f"(?:{'|'.join(re.escape(name) for name in factors)})",
        "r": largest,
        "lora_alpha": largest,  # alpha / r, the factor that PEFT multiplies with, is 1
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
    }
    tensors = {}
    for name, found in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = found.down
        tensors[f"base_model.model.{name}.lora_B.weight"] = found.up
    folder = Path(folder)
    atomic_write(folder / "adapter_model.safetensors", lambda temporary: save_file(tensors, temporary, metadata={"format": "pt"}))
    atomic_write(folder / "adapter_config.json", lambda temporary: temporary.write_text(json.dumps(config, indent=2)))
    return {name: found.error for name, found in factors.items()}


def _no_lora(layer: nn.Module | None) -> str | None:
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return "is not the weight of a Linear or Conv2d layer"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"belongs to a convolution of {layer.groups} groups, whose change is no product of two matrices"
    if isinstance(layer, nn.Conv2d) and (layer.dilation != (1, 1) or layer.padding_mode != "zeros"):
        return "belongs to a convolution with dilation or a padding mode, which PEFT leaves out as long as the LoRA is not merged"
    return None


def _factors(old: Tensor, new: Tensor, rank: int | None) -> _Factors:
    change = (new.double() - old.double()).flatten(1)  # (out, dim)
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    rest = values.square().flip(0).cumsum(0).flip(0).sqrt()  # what is left out when the ranks before this one are kept
    needed = int((rest > torch.finfo(torch.float32).eps * new.double().norm()).sum())
    kept = max(1, needed if rank is None else min(rank, needed))
    root = values[:kept].sqrt()
    dtype = torch.promote_types(new.dtype, torch.float32)
    down, up = (root[:, None] * right[:kept]).to(dtype), (left[:, :kept] * root).to(dtype)
    error = float((change - up.double() @ down.double()).norm() / change.norm())
    shapes = ((kept, *old.shape[1:]), (len(old), kept, *[1] * (old.dim() - 2)))
    return _Factors(down.reshape(shapes[0]).contiguous(), up.reshape(shapes[1]).contiguous(), error)
