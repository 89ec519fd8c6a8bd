"""Transformers of a stranger's making, from learning to the report: a small vision transformer, and a language model with tied weights."""

from __future__ import annotations

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import ForgetRequest, PGUCallback
from pgu_lightning.objectives import Margin
from pgu_lightning.settings import Settings
from pgu_lightning.stopping import Epochs
from tests.helpers.toys import trainer

CLASSES, WIDTH = 4, 24


class Attention(nn.Module):
    """Of four linear layers."""

    def __init__(self, heads=2):
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.heads = heads

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TorchAttention(nn.MultiheadAttention):
    """One module of torch's, whose layers are never called."""

    def __init__(self):
        super().__init__(WIDTH, 2, batch_first=True)


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x):
        y = self.norm1(x)
        x = x + (self.attention(y, y, y)[0] if isinstance(self.attention, nn.MultiheadAttention) else self.attention(y))
        return x + self.mlp(self.norm2(x))


class Learner(L.LightningModule):
    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


class VisionTransformer(Learner):
    def __init__(self, attention):
        super().__init__()
        self.patch = nn.Conv2d(1, WIDTH, 4, stride=4)
        self.position = nn.Parameter(0.1 * torch.randn(4, WIDTH))
        self.blocks = nn.Sequential(Block(attention), Block(attention))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images):
        x = self.patch(images).flatten(2).mT + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))


def images(samples, seed):
    """Four noisy patterns, 1 x 8 x 8."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(99))
    y = torch.arange(samples) % CLASSES
    return TensorDataset(patterns[y] + torch.randn(samples, 1, 8, 8, generator=generator), y)


def accuracy(model, data, chosen):
    x, y = data.tensors
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float()[chosen(y)].mean())


NAMES = {Attention: ["attention.q", "attention.k", "attention.v", "attention.proj"], TorchAttention: ["attention", "attention.out_proj"]}


@pytest.mark.parametrize("attention", NAMES, ids=lambda kind: kind.__name__)
def test_a_vision_transformer_forgets_a_class(attention, tmp_path):
    L.seed_everything(0, verbose=False)
    train, validation, unseen, model = images(320, 0), images(160, 1), images(400, 2), VisionTransformer(attention)
    fit = trainer(8, [PGUCallback()])
    fit.fit(model, DataLoader(train, 32, shuffle=True), DataLoader(validation, 80))
    fit.save_checkpoint(tmp_path / "model.ckpt")
    gone, kept = (lambda y: y == 2), (lambda y: y != 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert accuracy(model, unseen, gone) > 0.95
    assert accuracy(model, unseen, kept) > 0.95

    callback = PGUCallback(ForgetRequest(classes=[2]), retain_space=tmp_path / "model.retain.safetensors")
    trainer(60, [callback]).fit(model, DataLoader(train, 32), DataLoader(validation, 80))
    report = callback.report
    assert report.outcome.fulfilled, report.outcome
    assert accuracy(model, train, gone) == 0
    assert accuracy(model, unseen, gone) < 0.05
    assert accuracy(model, unseen, kept) > 0.95

    layers = ["patch", *[f"blocks.{block}.{name}" for block in range(2) for name in (*NAMES[attention], "mlp.0", "mlp.2")], "head"]
    assert list(report.layers) == layers
    norms = dict.fromkeys(
        ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"], "normalisation parameters are not moved"
    )
    assert report.frozen == {"": "VisionTransformer is not a layer whose input rows are known", **norms}
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"{name}.{'in_proj_weight' if name.endswith('attention') else 'weight'}" for name in layers}


class LanguageModel(Learner):
    """Says which word comes next; the head is the embedding."""

    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(12, WIDTH), nn.Embedding(6, WIDTH)
        self.block, self.head = Block(Attention), nn.Linear(WIDTH, 12, bias=False)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        x = self.words(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.block(x)[:, -1])


def test_the_tied_weights_of_a_language_model_stand_still(tmp_path):
    L.seed_everything(0, verbose=False)
    y = torch.arange(96) % 12
    data, model = TensorDataset((y[:, None] - torch.arange(6, 0, -1)) % 12, y), LanguageModel()
    fit = trainer(3, [PGUCallback()])
    fit.fit(model, DataLoader(data, 16, shuffle=True))
    fit.save_checkpoint(tmp_path / "model.ckpt")
    original = copy.deepcopy(model.state_dict())
    callback = PGUCallback(
        ForgetRequest(classes=[3]),
        retain_space=tmp_path / "model.retain.safetensors",
        settings=Settings(objective=Margin(), stop=Epochs(2)),
    )
    trainer(2, [callback]).fit(model, DataLoader(data, 16))
    frozen = callback.report.frozen
    assert (frozen["words"], frozen["head"]) == ("its weight is tied to head", "its weight is tied to words")
    for name in ("words.weight", "head.weight", "positions.weight"):  # of the positions the retained data has all
        assert torch.equal(model.state_dict()[name], original[name])
    assert not torch.equal(model.block.mlp[0].weight, original["block.mlp.0.weight"])
    assert (callback.report.layers["positions"].rank, callback.report.layers["positions"].free) == (6, 0)
