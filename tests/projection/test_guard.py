"""Whatever an optimizer does, nothing leaks into protected directions (invariant 1), and the guard's books are right."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from pgu_lightning.projection import Hard, Projector, Soft, Spectrum, UpdateGuard
from pgu_lightning.statistics import Gram
from tests import oracles

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05),
    "momentum and decay": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.05),
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.01),
}
CLIPPING = {"no clipping": lambda p: None, "by value": lambda p: clip_grad_value_(p, 0.5), "by norm": lambda p: clip_grad_norm_(p, 1.0)}
RANKS = {"few protected": (3, 4, 2), "few free": (15, 15, 6)}  # of the rows that each layer receives


def layers():
    return {"linear": nn.Linear(20, 10), "conv": nn.Conv2d(2, 6, 3), "grouped": nn.Conv1d(6, 8, 3, groups=2)}


def matrix_of(weight, groups=1):
    """A weight as (groups, out, dim)."""
    weight = weight.detach().double().numpy().copy()
    return weight.reshape(groups, weight.shape[0] // groups, -1)


GROUPS = {"linear": 1, "conv": 1, "grouped": 2}


def grams(ranks):
    """Gram matrices of data of these ranks."""
    generator, shapes = np.random.default_rng(0), {"linear": (1, 20), "conv": (1, 18), "grouped": (2, 9)}
    return {
        name: oracles.gram(generator.normal(size=(groups, 60, rank)) @ generator.normal(size=(groups, rank, dim)))
        for rank, (name, (groups, dim)) in zip(ranks, shapes.items(), strict=True)
    }


def guarded(modules, matrices, rule):
    spectra = {name: Spectrum.of(Gram(torch.from_numpy(matrices[name]), 1)) for name in modules}
    projectors = {name: Projector(spectrum, rule, modules[name].weight) for name, spectrum in spectra.items()}
    return UpdateGuard(modules, projectors, {name: spectrum.matrix for name, spectrum in spectra.items()})


def train(modules, guard, optimizer, steps, clip=lambda p: None, generator=None):
    weights = [layer.weight for layer in modules.values()]
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        clip(weights)
        optimizer.step()
        guard.commit(guard.proposal()[0])


def norm(parts):
    return math.sqrt(sum(np.sum(part**2) for part in parts))


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("clip", CLIPPING.values(), ids=CLIPPING)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_nothing_leaks(make, clip, ranks):
    """Invariant 1."""
    modules, matrices = layers(), grams(ranks)
    before = {name: matrix_of(layer.weight, GROUPS[name]) for name, layer in modules.items()}
    guard = guarded(modules, matrices, Hard(1.0))
    train(modules, guard, make([layer.weight for layer in modules.values()]), 300, clip)
    for rank, (name, layer) in zip(ranks, modules.items(), strict=True):
        change = matrix_of(layer.weight, GROUPS[name]) - before[name]
        basis = oracles.eigen(matrices[name])[1][:, :, -rank:]
        assert norm(change) > 0.1 * norm(before[name])
        assert norm(change @ basis) <= 1e-6 * norm(change), name


@pytest.mark.parametrize("clip", CLIPPING.values(), ids=CLIPPING)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_nothing_leaks_of_weight_and_bias(make, clip):
    """Invariant 1 of [W | b], for rows that end in a one; interference is that of the pair."""
    generator, modules, matrices, bases = np.random.default_rng(0), layers(), {}, {}
    for name, (dim, rank) in {"linear": (20, 4), "conv": (18, 12), "grouped": (9, 3)}.items():
        data = generator.normal(size=(GROUPS[name], 60, rank)) @ generator.normal(size=(GROUPS[name], rank, dim))
        data += generator.normal(size=(GROUPS[name], 1, dim))  # else the rows span the last axis, and no bias can move
        matrices[name] = oracles.gram(np.concatenate([data, np.ones((GROUPS[name], 60, 1))], -1))
        bases[name] = oracles.eigen(matrices[name])[1][:, :, -rank - 1 :]
    spectra = {name: Spectrum.of(Gram(torch.from_numpy(matrix), 60)) for name, matrix in matrices.items()}
    projectors = {name: Projector(spectrum, Hard(1.0)) for name, spectrum in spectra.items()}
    positive = {name: spectrum.matrix for name, spectrum in spectra.items()}
    guard = UpdateGuard(modules, projectors, positive, biases={name: layer.bias for name, layer in modules.items()})

    def pair(name):
        layer = modules[name]
        return np.concatenate([matrix_of(part, GROUPS[name]) for part in (layer.weight, layer.bias)], -1)

    before = {name: pair(name) for name in modules}
    noise = {key: torch.randn(weight.shape) for key, weight in guard.weights.items()}
    wide = {name: [matrix_of(noise[key], GROUPS[name]) for key in (name, f"{name}.bias")] for name in modules}
    expected = {name: oracles.response(np.concatenate(parts, -1), matrices[name]) for name, parts in wide.items()}
    assert guard.response(noise) == pytest.approx(expected, rel=1e-4)
    weights = list(guard.weights.values())
    optimizer = make(weights)
    for _ in range(100):
        for weight in weights:
            weight.grad = torch.randn(weight.shape)
        clip(weights)
        optimizer.step()
        guard.commit(guard.proposal()[0])
    for name, basis in bases.items():
        change = pair(name) - before[name]
        assert norm(change[..., -1]) > 0.1 * norm(change) / math.sqrt(change.shape[-1])
        assert norm(change @ basis) <= 1e-6 * norm(change), name


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_nothing_leaks_of_a_share_of_the_spectrum(share):
    modules, matrices = layers(), grams((20, 18, 9))
    before = {name: matrix_of(layer.weight, GROUPS[name]) for name, layer in modules.items()}
    guard = guarded(modules, matrices, Hard(share))
    train(modules, guard, torch.optim.AdamW([layer.weight for layer in modules.values()], 0.01), 100)
    for name, layer in modules.items():
        change = matrix_of(layer.weight, GROUPS[name]) - before[name]
        values, vectors = oracles.eigen(matrices[name])
        kept = [part[:, len(row) - oracles.protected_count(row, share) :] for row, part in zip(values, vectors, strict=True)]
        assert norm([one @ basis for one, basis in zip(change, kept, strict=True)]) <= 1e-6 * norm(change), name


def test_a_soft_step_is_the_filtered_step():
    modules, matrices = layers(), grams((20, 18, 9))
    modules = {name: layer.double() for name, layer in modules.items()}
    before = {name: matrix_of(layer.weight, GROUPS[name]) for name, layer in modules.items()}
    guard = guarded(modules, matrices, Soft(0.1))
    train(modules, guard, torch.optim.SGD([layer.weight for layer in modules.values()], 0.3), 1)
    for name, layer in modules.items():
        values, vectors = oracles.eigen(matrices[name])
        gradient = matrix_of(layer.weight.grad, GROUPS[name])
        expected = before[name] - 0.3 * gradient @ oracles.projection(vectors, oracles.soft_gains(values, 0.1))
        np.testing.assert_allclose(matrix_of(layer.weight, GROUPS[name]), expected, atol=1e-12)


def test_interference():
    """tr(dW M dW^T) / tr(W M W^T) from the weights as they are, by layer and in all; of a proposal too."""
    modules, matrices = layers(), grams((20, 18, 9))
    before = {name: matrix_of(layer.weight, GROUPS[name]) for name, layer in modules.items()}
    guard = guarded(modules, matrices, Soft(0.1))
    assert guard.interference() == dict.fromkeys(modules, 0.0)
    optimizer = torch.optim.SGD([layer.weight for layer in modules.values()], 0.05, momentum=0.9)
    train(modules, guard, optimizer, 20)
    energy = {name: oracles.response(weight, matrices[name]) for name, weight in before.items()}
    changed = {
        name: oracles.response(matrix_of(layer.weight, GROUPS[name]) - before[name], matrices[name]) for name, layer in modules.items()
    }
    assert guard.interference() == pytest.approx({name: changed[name] / energy[name] for name in modules}, rel=1e-4)
    assert guard.total_interference == pytest.approx(sum(changed.values()) / sum(energy.values()), rel=1e-4)
    update = {name: torch.randn_like(layer.weight) for name, layer in modules.items()}
    expected = {name: oracles.response(matrix_of(change, GROUPS[name]), matrices[name]) for name, change in update.items()}
    assert guard.response(update) == pytest.approx(expected, rel=1e-4)
    assert guard.relative(update) == pytest.approx(sum(expected.values()) / sum(energy.values()), rel=1e-4)


@pytest.mark.parametrize(
    ("rule", "known_layers"), [(Soft(0.1), {"linear", "conv", "grouped"}), (Hard(0.99), {"linear", "conv"}), (Hard(0.3), set())]
)
def test_what_a_proposal_knows_of_its_response(rule, known_layers):
    """Of balanced layers too: what is known is what would be found."""
    modules, matrices = layers(), grams((20, 18, 9))
    spectra = {name: Spectrum.of(Gram(torch.from_numpy(matrix), 60)) for name, matrix in matrices.items()}
    projectors = {name: Projector(spectrum, rule, modules[name].weight) for name, spectrum in spectra.items()}
    guard = UpdateGuard(modules, projectors, {name: spectrum.matrix for name, spectrum in spectra.items()}, balanced=True)
    with torch.no_grad():
        for layer in modules.values():
            layer.weight += torch.randn_like(layer.weight)
    update, known = guard.proposal()
    assert known.keys() == known_layers
    expected = {name: oracles.response(matrix_of(change, GROUPS[name]), matrices[name]) for name, change in update.items()}
    assert guard.response(update, known) == pytest.approx(expected, rel=1e-4)
    assert guard.relative(update, known) == pytest.approx(guard.relative(update), rel=1e-4)


def test_protected_updates_have_no_negative_interference():
    """Rounding must not make a squared length negative: its root is taken."""
    modules, matrices = layers(), grams((3, 4, 2))
    guard = guarded(modules, matrices, Hard(1.0))
    optimizer = torch.optim.SGD([layer.weight for layer in modules.values()], 0.05)
    for _ in range(100):
        for layer in modules.values():
            layer.weight.grad = torch.randn_like(layer.weight)
        optimizer.step()
        update, known = guard.proposal()
        assert 0 <= guard.relative(update, known) < 1e-7
        assert 0 <= guard.relative(update) < 1e-7
        guard.commit(update)
        assert min(guard.interference().values()) >= 0


def test_without_data_or_weights_there_is_no_interference():
    modules = {"linear": nn.Linear(3, 2)}
    guard = guarded(modules, {"linear": np.zeros((1, 3, 3))}, Soft())
    train(modules, guard, torch.optim.SGD([modules["linear"].weight], 1.0), 1)
    assert guard.interference() == {"linear": 0.0}
    assert guard.total_interference == 0


def test_the_gradients_product():
    modules = layers()
    guard, update = guarded(modules, grams((3, 4, 2)), Soft()), {name: torch.randn_like(layer.weight) for name, layer in modules.items()}
    assert guard.gradient_product(update) == 0  # there is none yet
    modules["linear"].weight.grad, modules["grouped"].weight.grad = torch.randn(10, 20), torch.randn(8, 3, 3)
    expected = sum(float((modules[name].weight.grad.double() * update[name].double()).sum()) for name in ("linear", "grouped"))
    assert guard.gradient_product(update) == pytest.approx(expected, rel=1e-5)


def test_a_proposal_puts_the_weights_back_and_a_commit_moves_them():
    modules, matrices = layers(), grams((20, 18, 9))
    guard = guarded(modules, matrices, Soft(0.1))
    train(modules, guard, torch.optim.SGD([layer.weight for layer in modules.values()], 0.05), 3)
    before = bits(modules)
    for layer in modules.values():
        layer.weight.data.add_(torch.randn_like(layer.weight))
    update, _ = guard.proposal()
    assert bits(modules) == before
    start = {name: layer.weight.detach().clone() for name, layer in modules.items()}
    guard.commit(update, 0.25)
    for name, layer in modules.items():
        torch.testing.assert_close(layer.weight.detach(), start[name] + 0.25 * update[name])


def test_no_change_is_no_change():
    modules = layers()
    guard = guarded(modules, grams((3, 4, 2)), Hard(1.0))
    before = bits(modules)
    guard.commit(guard.proposal()[0])
    guard.undo()
    assert bits(modules) == before


# Excursions


def bits(modules):
    return {name: layer.weight.detach().numpy().tobytes() for name, layer in modules.items()}


def with_signed_zeros():
    """As pruning leaves them."""
    modules = layers()
    for layer in modules.values():
        layer.weight.data.mul_(torch.rand_like(layer.weight) > 0.5)
    return modules


@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize("where", ["moved", "at_original"])
@pytest.mark.parametrize("raises", [False, True])
def test_an_excursion_ends_where_it_began(steps, where, raises):
    modules = with_signed_zeros()
    original = bits(modules)
    guard = guarded(modules, grams((20, 18, 9)), Soft(0.1))
    train(modules, guard, torch.optim.SGD([layer.weight for layer in modules.values()], 0.05), steps)
    before, start = bits(modules), {name: layer.weight.detach().clone() for name, layer in modules.items()}
    update = {name: torch.randn_like(layer.weight) for name, layer in modules.items()}

    def body():
        with guard.moved(update, 0.3) if where == "moved" else guard.at_original():
            if where == "moved":
                for name, layer in modules.items():
                    torch.testing.assert_close(layer.weight.detach(), start[name] + 0.3 * update[name])
            else:
                assert bits(modules) == original
            if raises:
                raise RuntimeError("in the middle")

    if raises:
        with pytest.raises(RuntimeError, match="in the middle"):
            body()
    else:
        body()
    assert bits(modules) == before
    assert all(layer.weight.requires_grad for layer in modules.values())


# State


def test_a_restored_guard_goes_on_as_the_first():
    modules, matrices = layers(), grams((20, 18, 9))
    guard, optimizer = guarded(modules, matrices, Soft(0.1)), torch.optim.Adam([layer.weight for layer in modules.values()], 0.01)
    train(modules, guard, optimizer, 20)
    state, rest = copy.deepcopy(guard.state_dict()), copy.deepcopy(optimizer.state_dict())
    twins = layers()
    twin, other = guarded(twins, matrices, Soft(0.1)), torch.optim.Adam([layer.weight for layer in twins.values()], 0.01)
    twin.load_state_dict(state)
    other.load_state_dict(rest)
    assert bits(twins) == bits(modules)
    assert twin.interference() == guard.interference()
    for one, its, optim in ((modules, guard, optimizer), (twins, twin, other)):
        train(one, its, optim, 20, generator=torch.Generator().manual_seed(1))
    assert bits(twins) == bits(modules)
    assert twin.interference() == guard.interference()
    with guard.at_original(), twin.at_original():
        assert bits(twins) == bits(modules)


def test_a_state_is_not_changed_by_what_comes_after():
    modules = layers()
    guard = guarded(modules, grams((20, 18, 9)), Soft(0.1))
    optimizer = torch.optim.SGD([layer.weight for layer in modules.values()], 0.05)
    train(modules, guard, optimizer, 2)
    state, before = guard.state_dict(), bits(modules)
    train(modules, guard, optimizer, 2)
    guard.load_state_dict(state)
    assert bits(modules) == before


def test_the_state_of_other_layers():
    modules, matrices = layers(), grams((3, 4, 2))
    guard = guarded(modules, matrices, Soft())
    state = guarded({"linear": modules["linear"]}, matrices, Soft()).state_dict()
    with pytest.raises(ValueError, match=r"of the layers \['linear'\], the model has \['conv', 'grouped', 'linear'\]"):
        guard.load_state_dict(state)


def test_a_weight_that_is_no_parameter():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    with pytest.raises(TypeError, match="weight is not a parameter"):
        UpdateGuard({"a": layer}, {}, {})


def test_balanced_layers_give_the_best_update_for_its_interference():
    """Lagrange: at the optimum the gradient is in proportion to the interference's derivative, D M / tr(W M W^T), in all layers alike."""
    torch.manual_seed(0)
    layers = {name: nn.Linear(4, 3, bias=False).double() for name in ("small", "large")}
    inputs = {"small": torch.randn(50, 4).double() * 0.1, "large": torch.randn(50, 4).double() * 30}
    spectra = {name: Spectrum.of(Gram((x.T @ x)[None], 50)) for name, x in inputs.items()}
    damping = 1e-9
    projectors = {name: Projector(spectrum, Soft(damping), layers[name].weight) for name, spectrum in spectra.items()}
    guard = UpdateGuard(layers, projectors, {name: spectrum.matrix for name, spectrum in spectra.items()}, balanced=True)
    gradients = {name: torch.randn(3, 4).double() for name in layers}
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight -= gradients[name]
    update, _ = guard.proposal()
    factors = []
    for name, x in inputs.items():
        matrix = (x.T @ x).numpy()
        weight = layers[name].weight.detach().numpy()
        derivative = update[name].numpy() @ matrix / np.trace(weight @ matrix @ weight.T)
        ratio = derivative / -gradients[name].numpy()
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-5)
        factors.append(ratio.mean())
    np.testing.assert_allclose(factors[0], factors[1], rtol=1e-5)
