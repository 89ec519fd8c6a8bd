"""The scale against a trained matrix Q: an explicit parametrization in float64, differentiated by autograd, as it is published."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from pgu_lightning.projection import Hard, Projector, Scale, Soft, Spectrum, UpdateGuard
from pgu_lightning.settings import Settings
from pgu_lightning.statistics import Gram
from pgu_lightning.statistics.layers import as_matrix
from tests import oracles

SHARE, RATIO, LAST, STEPS = 0.8, 0.1, 3, 20
CASES = {  # layer, input shape, whether only the last few vectors are scaled
    "linear": (lambda: nn.Linear(9, 5), (9,), True),
    "conv": (lambda: nn.Conv1d(3, 4, 2), (3, 5), False),
    "grouped": (lambda: nn.Conv2d(4, 6, 2, groups=2), (4, 3, 3), False),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 2, groups=2), (6, 2, 2), False),
}
OPTIMIZERS = {
    "SGD": lambda p, ratio: torch.optim.SGD(p, 0.05 * ratio),
    "momentum": lambda p, ratio: torch.optim.SGD(p, 0.05 * ratio, momentum=0.9),
}


def matrices(layer):
    """A Gram matrix a group, of different ranks and scales, so that groups protect different numbers of directions."""
    groups, _, dim = as_matrix(layer, layer.weight).shape
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=(60, dim)) * (0.95 - 0.3 * group) ** np.arange(dim) for group in range(groups)]
    return oracles.gram(np.stack(rows))


def bases(layer, gram, few):
    """All protected eigenvectors of each group, those of the largest eigenvalues first; and of these the ones that are scaled."""
    protected = []
    for values, vectors in zip(*oracles.eigen(gram), strict=True):
        count = oracles.protected_count(values, SHARE)
        protected.append(torch.from_numpy(vectors[:, ::-1][:, :count].copy()))
    return protected, [basis[:, -LAST:] if few else basis for basis in protected]


class Published:
    """W' = W + W B (Q - I) B^T: W is moved by its projected gradient, Q by its own at another learning rate."""

    def __init__(self, layer, gram, few, make):
        self.layer, self.weight = layer, layer.weight.detach().clone().requires_grad_()
        self.protected, self.scaled = bases(layer, gram, few)
        self.scales = [torch.eye(basis.shape[1], dtype=torch.float64, requires_grad=True) for basis in self.scaled]
        self.optimizers = make([self.weight], 1), make(self.scales, RATIO)

    def effective(self):
        parts = as_matrix(self.layer, self.weight)
        wide = [w + w @ b @ (q - torch.eye(len(q))) @ b.T for w, b, q in zip(parts, self.scaled, self.scales, strict=True)]
        result = torch.empty_like(self.weight)
        as_matrix(self.layer, result).copy_(torch.stack(wide))
        return result

    def step(self, loss):
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss(self.effective()).backward()
        for part, basis in zip(as_matrix(self.layer, self.weight.grad), self.protected, strict=True):
            part -= part @ basis @ basis.T
        for optimizer in self.optimizers:
            optimizer.step()


def problem(case):
    make, shape, few = CASES[case]
    layer = make().double()
    x = torch.randn(7, *shape, dtype=torch.float64)
    goal = torch.randn_like(layer(x))

    def loss(weight):
        return (functional_call(layer, {"weight": weight}, x) - goal).pow(2).sum(1).sqrt().mean()

    return layer, few, loss


def guarded(layer, gram, few):
    spectrum, rule = Spectrum.of(Gram(torch.from_numpy(gram), 60)), Hard(SHARE)
    space = Scale(RATIO, last=LAST if few else 400).of(spectrum, rule, layer, layer.weight)
    return UpdateGuard({"a": layer}, {"a": Projector(spectrum, rule, layer.weight)}, {"a": spectrum.matrix}, scaled={"a": space})


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("case", CASES)
def test_the_same_path_as_a_trained_scale(case, make):
    layer, few, loss = problem(case)
    gram, start = matrices(layer), as_matrix(layer, layer.weight.detach().clone())
    published, guard, optimizer = Published(layer, gram, few, make), guarded(layer, gram, few), make([layer.weight], 1)
    for _ in range(STEPS):
        published.step(loss)
        optimizer.zero_grad()
        loss(layer.weight).backward()
        optimizer.step()
        guard.commit(guard.proposal()[0])
        torch.testing.assert_close(layer.weight.detach(), published.effective().detach(), rtol=1e-9, atol=1e-11)
    assert len({basis.shape[1] for basis in published.protected}) == len(published.protected)  # as many numbers as groups
    if few:
        assert published.protected[0].shape[1] > LAST
    change = as_matrix(layer, layer.weight.detach()) - start
    for part, protected, scaled in zip(change, *bases(layer, gram, few), strict=True):
        assert (part @ scaled).norm() > 1e-3 * part.norm()  # the scale is not nothing
        rest = part - part @ scaled @ scaled.T
        assert (rest @ protected).norm() < 1e-9 * part.norm()  # and of what is protected nothing else moves
    response = oracles.response(change.numpy(), gram) / oracles.response(start.numpy(), gram)
    assert guard.interference() == {"a": pytest.approx(response, rel=1e-9)}


def test_a_restored_guard_scales_by_the_first_ones_weights():
    (layer, few, _), (twin, _, _) = problem("grouped"), problem("grouped")
    gram = matrices(layer)
    guard, other = guarded(layer, gram, few), guarded(twin, gram, few)
    assert not torch.equal(layer.weight, twin.weight)
    guard.commit({"a": torch.randn_like(layer.weight)})
    other.load_state_dict(guard.state_dict())
    updates = [{"a": torch.ones_like(layer.weight)} for _ in range(2)]
    guard.filter_(updates[0])
    other.filter_(updates[1])
    assert torch.equal(updates[0]["a"], updates[1]["a"])


def test_half_precision_weights():
    """The products are float32 there, the update is written back in the weight's type."""
    layer, few, _ = problem("linear")
    gram, update = matrices(layer), torch.randn_like(layer.weight)
    wanted = {"a": update.clone()}
    guarded(layer, gram, few).filter_(wanted)
    found = {"a": update.bfloat16()}
    guarded(layer.bfloat16(), gram, few).filter_(found)
    assert found["a"].dtype == torch.bfloat16
    torch.testing.assert_close(found["a"].double(), wanted["a"], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("rules", [{"rule": Soft()}, {"rule": Hard(), "layer_rules": {"conv*": Soft()}}])
@pytest.mark.parametrize("scale", [Scale(), {"class": None, "samples": None, "poison": Scale()}])
def test_a_scale_needs_hard_rules(scale, rules):
    with pytest.raises(ValueError, match=re.escape("a rule is Soft(damping=0.01): choose Hard(...), or scale=None")):
        Settings(scale=scale, **rules)


def test_by_kind():
    scale = Scale(0.2)
    settings = Settings(rule=Hard(), scale={"class": None, "samples": None, "poison": scale})
    assert settings.scale_for("poison") is scale
    assert settings.scale_for("class") is None
    assert Settings(scale=dict.fromkeys(("class", "samples", "poison"))).scale_for("poison") is None


@pytest.mark.parametrize(("options", "message"), [({"ratio": 0.0}, "ratio must be above 0"), ({"last": 0}, "last must be at least 1")])
def test_what_a_scale_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Scale(**options)
