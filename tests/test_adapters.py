"""Adapters: exact round trips, refusals that change nothing, and LoRA factors against the dense change."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from pgu_lightning.adapters import FORMAT, export_delta, export_lora, merge, revert
from pgu_lightning.statistics import fingerprint


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    head = [nn.Flatten(), nn.Linear(6 * 16, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 3))]
    return nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), *head).to(dtype)


def changed(model: nn.Module, size: float = 0.1, names: tuple[str, ...] = ("0.weight", "4.weight", "6.0.weight")) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            weight = other.get_parameter(name)
            weight.add_(size * torch.randn_like(weight))
    return other


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(a.reshape(-1).view(torch.uint8).equal(b.reshape(-1).view(torch.uint8)) for a, b in pairs)


# Deltas


@pytest.mark.parametrize("size", [1e-6, 0.01, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_merge_and_revert_are_exact(dtype, size, tmp_path):
    model = network(dtype)
    other = changed(model, min(size, 1e3) if dtype == torch.float16 else size, ("0.weight", "0.bias", "1.weight", "4.weight"))
    path = export_delta(model, other, tmp_path / "delta.safetensors")
    moving = copy.deepcopy(model)
    merge(moving, path)
    assert same_bits(moving, other)
    assert fingerprint(moving) == fingerprint(other)
    revert(moving, path)
    assert same_bits(moving, model)


def finite_values(dtype: torch.dtype, size: int):
    """Any finite bit pattern: zeros of both signs, subnormal values, the largest ones."""
    integer, exponent = {torch.float32: (torch.int32, 0x7F800000), torch.bfloat16: (torch.int16, 0x7F80)}[dtype]
    info = torch.iinfo(integer)
    pattern = st.integers(info.min, info.max).filter(lambda bits: bits & exponent != exponent)
    return st.lists(pattern, min_size=size, max_size=size).map(lambda bits: torch.tensor(bits, dtype=integer).view(dtype))


@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_two_models_are_reached_from_each_other(tmp_path_factory, data, dtype):
    models = [nn.Linear(3, 2, dtype=dtype), nn.Linear(3, 2, dtype=dtype)]
    for model in models:
        with torch.no_grad():
            model.weight.copy_(data.draw(finite_values(dtype, 6)).view(2, 3))
            model.bias.copy_(data.draw(finite_values(dtype, 2)))
    if same_bits(*models):
        return
    path = export_delta(*models, tmp_path_factory.mktemp("delta") / "delta.safetensors")
    moving = copy.deepcopy(models[0])
    merge(moving, path)
    assert same_bits(moving, models[1])
    revert(moving, path)
    assert same_bits(moving, models[0])


def test_the_file_has_the_change_of_what_changed_and_both_fingerprints(tmp_path):
    model = network()
    other = changed(model, 1e-3, ("4.weight",))
    tensors = load_file(export_delta(model, other, tmp_path / "delta.safetensors"))
    assert {name for name in tensors if not name.startswith(".")} == {"4.weight"}
    exact = other[4].weight.detach().double().numpy() - model[4].weight.detach().double().numpy()
    np.testing.assert_array_equal(tensors["4.weight"].numpy(), exact.astype(np.float32))
    # Only a value that is small beside its change needs more than the change.
    bound = np.abs(exact[np.unravel_index(tensors[".positions.4.weight"].numpy(), exact.shape)])
    small = np.abs(model[4].weight.detach().numpy()[np.unravel_index(tensors[".positions.4.weight"].numpy(), exact.shape)])
    assert (small < 2 * bound).all()


def test_values_within_a_factor_of_two_need_nothing_but_the_change(tmp_path):
    model, other = nn.Linear(500, 100), nn.Linear(500, 100)
    with torch.no_grad():
        other.weight.copy_(model.weight * (0.5 + 1.5 * torch.rand(100, 500)).clamp(0.51, 1.99))
        other.bias.copy_(model.bias)
    assert load_file(export_delta(model, other, tmp_path / "delta.safetensors")).keys() == {"weight"}


def test_counters_are_part_of_the_change(tmp_path):
    model = network()
    other = copy.deepcopy(model)
    other.train()(torch.randn(5, 4, 4, 4))
    path = export_delta(model, other, tmp_path / "delta.safetensors")
    merge(model, path)
    assert same_bits(model, other)


def test_names_are_those_without_wrappers(tmp_path):
    model = network()
    other = changed(model)
    compiled = torch.compile(copy.deepcopy(model), backend="eager")
    path = export_delta(compiled, torch.compile(other, backend="eager"), tmp_path / "delta.safetensors")
    merge(model, path)
    assert same_bits(model, other)
    merge(compiled, path)
    assert same_bits(compiled, other)


def test_tied_weights_move_once(tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    other = changed(model, names=("0.weight",))
    merge(model, export_delta(model, other, tmp_path / "delta.safetensors"))
    assert same_bits(model, other)
    assert model[0].weight is model[1].weight


def test_models_of_other_shapes_are_refused(tmp_path):
    other = network()
    other[4] = nn.Linear(96, 9)
    other.add_module("more", nn.Linear(1, 1))
    for export in (export_delta, export_lora):
        with pytest.raises(ValueError, match=r"only one of them has more\.bias.*4\.weight is \(8, 96\) torch\.float32 .*\(9, 96\)"):
            export(network(), other, tmp_path / "delta")
    with pytest.raises(ValueError, match=r"torch\.float32 in the original and .* torch\.bfloat16"):
        export_delta(network(), network(torch.bfloat16), tmp_path / "delta")
    assert not list(tmp_path.iterdir())


def test_no_change_is_refused(tmp_path):
    model = network()
    for export in (export_delta, export_lora):
        with pytest.raises(ValueError, match="Nothing changed"):
            export(model, copy.deepcopy(model), tmp_path / "delta")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_a_difference_is_refused(tmp_path):
    model = network()
    model.register_buffer("mask", torch.tensor([True]))
    other = changed(model)
    other.mask.logical_not_()
    with torch.no_grad():
        other[0].bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"mask is torch\.bool") as raised:
        export_delta(model, other, tmp_path / "delta")
    assert "0.bias has values that are not finite" in str(raised.value)


def test_another_model_is_refused_and_left_alone(tmp_path):
    model = network()
    other = changed(model)
    path = export_delta(model, other, tmp_path / "delta.safetensors")
    third = changed(model)
    before = copy.deepcopy(third)
    with pytest.raises(ValueError, match="not the original model: its weights are others"):
        merge(third, path)
    with pytest.raises(ValueError, match="not the original model: it is the unlearned one already"):
        merge(other, path)
    with pytest.raises(ValueError, match="not the unlearned model: it is the original one already"):
        revert(model, path)
    assert same_bits(third, before)


@pytest.mark.parametrize("damage", ["value", "missing", "shape", "other name", "position", "not finite"])
def test_a_damaged_file_is_refused_and_changes_nothing(damage, tmp_path):
    model = network()
    other = changed(model, 10.0)
    path = export_delta(model, other, tmp_path / "delta.safetensors")
    tensors = load_file(path)
    metadata = {"format": FORMAT, "original": fingerprint(model), "unlearned": fingerprint(other)}
    match damage:
        case "value":
            tensors["4.weight"] += 1
        case "missing":
            del tensors["0.weight"]
        case "shape":
            tensors["4.weight"] = tensors["4.weight"][:, :5].contiguous()
        case "other name":
            tensors["9.weight"] = tensors.pop("4.weight")
        case "position":
            tensors[".positions.4.weight"][0] = 10**6
        case "not finite":
            tensors["4.weight"].fill_(torch.inf)
    save_file(tensors, path, metadata=metadata)
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="is damaged"):
        merge(model, path)
    assert same_bits(model, before)


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="export_delta"):
        merge(network(), tmp_path / "none")
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        merge(network(), tmp_path / "text")
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="but not a 'pgu-lightning delta 1'"):
        revert(network(), tmp_path / "other")


# LoRA


def dense(folder, name):
    """The change that the files say, in float64 NumPy: scale * B A, in the weight's shape."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    down, up = (tensors[f"base_model.model.{name}.lora_{letter}.weight"].double().numpy() for letter in "AB")
    assert up.shape[1] == len(down)
    assert up.shape[2:] == (1,) * (down.ndim - 2)
    product = np.einsum("or,rd->od", up.reshape(len(up), -1), down.reshape(len(down), -1))
    key = "^" + name.replace(".", "\\.")
    return config["alpha_pattern"][key] / config["rank_pattern"][key] * product.reshape(len(up), *down.shape[1:])


def low_rank(model: nn.Module, rank: int) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("0.weight", "4.weight", "6.0.weight"):
            weight = other.get_parameter(name)
            flat = weight.flatten(1)
            weight.add_((0.1 * torch.randn(len(flat), rank) @ torch.randn(rank, flat.shape[1])).view_as(weight))
    return other


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_lora_is_the_dense_change(dtype, tmp_path):
    model = network(dtype)
    other = changed(model)
    errors = export_lora(model, other, tmp_path)
    assert errors.keys() == {"0", "4", "6.0"}
    assert max(errors.values()) < 2e-6
    for name in errors:
        wanted = other.get_parameter(f"{name}.weight").detach().double() - model.get_parameter(f"{name}.weight").detach().double()
        np.testing.assert_allclose(dense(tmp_path, name), wanted.numpy(), atol=1e-6 * float(wanted.abs().max()))


def test_the_rank_of_a_change_is_found(tmp_path):
    model = network()
    export_lora(model, low_rank(model, 2), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == config["alpha_pattern"] == {"^0": 2, "^4": 2, "^6\\.0": 2}
    assert config["r"] == config["lora_alpha"] == 2


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_a_truncated_lora_is_the_best_of_its_rank_and_says_what_is_missing(rank, tmp_path):
    model = network()
    other = changed(model)
    errors = export_lora(model, other, tmp_path, rank=rank)
    for name, error in errors.items():
        change = (other.get_parameter(f"{name}.weight") - model.get_parameter(f"{name}.weight")).detach().double().numpy()
        values = np.linalg.svd(change.reshape(len(change), -1), compute_uv=False)
        best = np.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
        assert error == pytest.approx(best, abs=1e-6)
        assert np.linalg.norm(dense(tmp_path, name) - change) / np.linalg.norm(change) == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize(
    ("convolution", "reason"),
    [
        ({"groups": 2}, "0.weight belongs to a convolution of 2 groups"),
        ({"dilation": 2}, "dilation"),
        ({"padding_mode": "circular"}, "padding mode"),
    ],
)
def test_convolutions_that_have_no_lora_are_refused(convolution, reason, tmp_path):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, **convolution))
    with pytest.raises(ValueError, match=reason):
        export_lora(model, changed(model, names=("0.weight",)), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_change_outside_the_layers_is_refused(tmp_path):
    model = network()
    with pytest.raises(ValueError, match=r"0\.bias is not the weight of a Linear or Conv2d") as raised:
        export_lora(model, changed(model, names=("0.bias", "1.weight", "4.weight")), tmp_path)
    assert "1.weight is not" in str(raised.value)
    assert "4.weight" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_rank_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rank must be at least 1"):
        export_lora(network(), network(), tmp_path, rank=0)
