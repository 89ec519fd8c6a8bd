"""Every layer is listed: protected, or frozen with the reason; and a frozen one does not move (invariant 7)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import ForgetRequest, PGUCallback, collect
from pgu_lightning.settings import Settings
from pgu_lightning.statistics import canonical, fingerprint, named_layers, survey
from pgu_lightning.stopping import Epochs
from tests.helpers.toys import Module, trainer


class Doubled(nn.Linear):
    def forward(self, x):
        return super().forward(2 * x)


class Zoo(nn.Module):
    """One layer of every kind that cannot be protected, between two that can."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 6, sparse=True)
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.tied = nn.Linear(6, 6)
        self.twin = nn.Linear(6, 6)
        self.twin.weight = self.tied.weight
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, kdim=3)
        self.parametrized = parametrizations.weight_norm(nn.Linear(6, 6))
        self.doubled = Doubled(6, 6)
        self.layer_norm = nn.LayerNorm(6)
        self.fixed = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Linear(6, 6)
        self.not_chosen = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.ones(6))
        self.head = nn.Linear(6, 4)

    def forward(self, tokens):
        x = self.norm(self.first(self.words(tokens)).relu())
        x = x + self.twin(self.tied(x).tanh())
        x = x + self.attention(x[:, None], x[:, None, :3], x[:, None])[0][:, 0]
        x = self.layer_norm(self.doubled(self.parametrized(x))) * self.scale
        return self.head(self.not_chosen(self.fixed(x).tanh()))


PATTERNS = ["words", "first", "head", "norm", "tied", "twin", "attention*", "parametrized", "doubled", "unused", "fixed"]
REASONS = {
    "": "Zoo is not a layer whose input rows are known",
    "words": "its gradient is sparse (sparse=True)",
    "norm": "normalisation parameters are not moved",
    "tied": "its weight is tied to twin",
    "twin": "its weight is tied to tied",
    "attention": "its queries, keys and values have weights of their own (kdim, vdim)",
    "parametrized": "its weight is parametrized",
    "doubled": "Doubled is not a layer whose input rows are known",
    "layer_norm": "normalisation parameters are not moved",
    "fixed": "the model has frozen it (requires_grad is False)",
    "unused": "its forward was never called",
    "not_chosen": "not selected by layers=",
}


def data(seed=0):
    y = torch.arange(80) % 4
    tokens = (y * 2 + torch.randint(4, (80,), generator=torch.Generator().manual_seed(seed))) % 11
    return TensorDataset(tokens, y)


def test_every_reason():
    space = collect(Zoo(), DataLoader(data(), 16), layers=PATTERNS)
    assert space.frozen == REASONS
    assert {name: (layer.gram, layer.shape, layer.kind) for name, layer in space.protected.items()} == {
        "first": ("first", (1, 6, 6), "Linear"),
        "attention.out_proj": ("attention.out_proj", (1, 6, 6), "NonDynamicallyQuantizableLinear"),
        "head": ("head", (1, 4, 6), "Linear"),
    }


def test_what_is_frozen_does_not_move():
    """Invariant 7, through a whole fit that unlearns with an optimizer that would move everything it is given."""
    module = Module()
    module.net = Zoo()
    space = collect(module, DataLoader(data(), 16), layers=[f"net.{pattern}" for pattern in PATTERNS])
    assert space.frozen.keys() == {f"net.{name}".rstrip(".") for name in REASONS}
    before = {name: value.clone() for name, value in module.state_dict().items()}
    settings = Settings(
        stop=Epochs(3), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1), trust_radius=None
    )
    callback = PGUCallback(ForgetRequest(classes=[1]), retain_space=space, settings=settings)
    trainer(3, [callback]).fit(module, DataLoader(data(), 16), DataLoader(data(1), 16))
    after = module.state_dict()
    moved = {name for name in before if before[name].numpy().tobytes() != after[name].numpy().tobytes()}
    assert moved == {"net.first.weight", "net.head.weight", "net.attention.out_proj.weight"}
    assert callback.report.frozen == space.frozen


def test_grouped_convolutions_are_shaped_by_group():
    (layer,) = survey(nn.Sequential(nn.Conv2d(4, 8, 3, groups=2)))
    assert (layer.name, layer.kind, layer.gram, layer.shape, layer.frozen_because) == ("0", "Conv2d", "0", (2, 4, 18), None)


def test_the_model_may_be_a_layer():
    (layer,) = survey(nn.Linear(3, 2))
    assert (layer.name, layer.gram, layer.shape) == ("", "", (1, 2, 3))


def test_a_lazy_layer():
    lazy, other = survey(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)))
    assert (lazy.name, lazy.gram, lazy.frozen_because) == ("0", None, "its weight is not an initialised parameter")
    assert other.gram == "1"


def test_a_weight_that_an_old_style_hook_makes():
    with pytest.warns(FutureWarning, match="weight_norm"):
        normed = torch.nn.utils.weight_norm(nn.Linear(3, 2))
    assert survey(nn.Sequential(normed, nn.Linear(2, 2)))[0].frozen_because == "its weight is not an initialised parameter"


def test_a_weight_tied_to_an_embedding():
    model = nn.ModuleDict({"words": nn.Embedding(7, 3), "out": nn.Linear(3, 7, bias=False), "head": nn.Linear(7, 2)})
    model["out"].weight = model["words"].weight
    assert {layer.name: layer.frozen_because for layer in survey(model)} == {
        "words": "its weight is tied to out",
        "out": "its weight is tied to words",
        "head": None,
    }


def test_one_module_under_two_names_is_not_tied():
    layer = nn.Linear(3, 3)
    assert [(found.name, found.frozen_because) for found in survey(nn.Sequential(layer, nn.ReLU(), layer))] == [("0", None)]


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Embedding(3, 2, max_norm=1.0), "max_norm rewrites its weight in the forward pass"),
        (nn.Embedding(3, 2, sparse=True), "its gradient is sparse (sparse=True)"),
        (nn.Embedding(3, 2, padding_idx=0, scale_grad_by_freq=True), None),
        (nn.GroupNorm(1, 2), "normalisation parameters are not moved"),
        (nn.InstanceNorm2d(2, affine=True), "normalisation parameters are not moved"),
        (nn.RMSNorm(2), "normalisation parameters are not moved"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_reason(layer, reason):
    assert survey(nn.Sequential(layer, nn.Linear(2, 2)))[0].frozen_because == reason


def test_patterns_that_match_nothing():
    with pytest.raises(ValueError, match=r"layers='fc\*' matches no layer. The model has: 0, 1"):
        survey(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), ["0", "fc*"])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.LayerNorm(2), nn.EmbeddingBag(2, 2)), "0: normalisation parameters.*; 1: EmbeddingBag is not a layer"),
        (nn.Sequential(nn.ReLU()), "it has no parameters"),
        (nn.Sequential(nn.Linear(2, 2).requires_grad_(False)), "requires_grad is False"),
    ],
    ids=["unknown", "empty", "frozen"],
)
def test_nothing_can_be_protected(model, reason):
    with pytest.raises(ValueError, match=f"No layer of Sequential can be protected .*{reason}"):
        survey(model)


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("net.0", "net.0"),
        ("_orig_mod.net.0.weight", "net.0.weight"),
        ("net._orig_mod.0", "net.0"),
        ("net._orig_mod", "net"),
        ("_fsdp_wrapped_module.a._checkpoint_wrapped_module.b", "a.b"),
        ("a._fsdp_wrapped_module._checkpoint_wrapped_module", "a"),
    ],
)
def test_canonical(name, plain):
    assert canonical(name) == plain


def test_a_compiled_model_has_the_names_and_the_fingerprint_of_the_plain_one():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2)))
    compiled = torch.compile(model, backend="eager")
    assert [name for name, _ in named_layers(compiled)] == [name for name, _ in named_layers(model)] == ["0", "1.0"]
    assert survey(compiled) == survey(model)
    assert fingerprint(compiled) == fingerprint(model)
