"""What the hooks take down, against loops over what the layers received; and that collecting changes nothing (invariant 2)."""

from __future__ import annotations

import copy
import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from pgu_lightning import collect, passes
from pgu_lightning.statistics import Collector, fingerprint, survey
from tests import oracles


def close(found, expected, tolerance=1e-6):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


def grams(model, *inputs, mask=None):
    collector = Collector(model, survey(model))
    collector.mask = mask
    with collector:
        for x in inputs:
            model(x)
    return collector.result()[0]


def network():
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(6, 6, 3, stride=2, groups=2),
        nn.BatchNorm2d(6, momentum=None),
        nn.GELU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(24, 3),
    )


class Augmented(Dataset):
    """Random crops, flips and noise from torch, NumPy and Python's random."""

    def __init__(self, samples):
        generator = torch.Generator().manual_seed(3)
        self.x, self.y = torch.randn(samples, 2, 8, 8, generator=generator), torch.arange(samples) % 3

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        top, left = torch.randint(4, (2,)).tolist()
        x = self.x[index, :, top : top + 5, left : left + 5]
        if random.random() < 0.5:
            x = x.flip(2)
        return x + 0.1 * torch.randn(x.shape) + float(np.random.rand()), self.y[index]


class Plain(Augmented):
    def __getitem__(self, index):
        return self.x[index, :, :5, :5], self.y[index]


@pytest.fixture
def model():
    """Its BatchNorm has seen data, and it is not wholly in training mode."""
    model = network()
    model(torch.randn(32, 2, 5, 5))
    model[3].eval()
    return model


@pytest.mark.parametrize("dataset", [Plain, Augmented])
def test_full_minus_forget_is_retain(model, dataset):
    """Invariant 2."""
    data = dataset(53)
    forgotten = [index for index in range(53) if index % 3 == 1 or index > 48]
    retained = [index for index in range(53) if index not in forgotten]
    full = collect(model, DataLoader(data, 16, shuffle=True))
    forget = collect(model, DataLoader(Subset(data, forgotten), 5))
    retain = collect(model, DataLoader(Subset(data, retained), 23, shuffle=True, drop_last=True))
    difference = full.without(forget)
    assert difference.provenance.samples == retain.provenance.samples == len(retained)
    for key, gram in retain.grams.items():
        assert difference.grams[key].rows == gram.rows
        close(difference.grams[key].matrix, gram.matrix)


def test_a_random_transform_is_a_function_of_the_sample_however_it_is_nested(model):
    data = Augmented(20)
    once = collect(model, DataLoader(Subset(data, [3, 7]), 1))
    twice = collect(model, DataLoader(Subset(Subset(data, [7, 1, 3]), [2, 0]), 2))
    for key, gram in once.grams.items():
        close(twice.grams[key].matrix, gram.matrix)


def test_augmentation_is_on(model):
    plain, augmented = (collect(model, DataLoader(data(8), 4)).grams["0"].matrix for data in (Plain, Augmented))
    assert (plain - augmented).norm() > 0.1 * plain.norm()


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 4, "shuffle": True, "drop_last": True},
        {"batch_size": None},
        {"batch_sampler": [[0, 1], [0, 1], [2, 0]]},
        {"num_workers": 1},
    ],
    ids=["drop_last", "no batches", "batch_sampler", "workers"],
)
def test_every_sample_once_whatever_the_loader_does(options):
    """Of 11 samples, in eval mode."""
    model, data = network(), Plain(11)
    if options.get("batch_size", 1) is None:
        data = [(x[None], torch.tensor([y])) for x, y in data]
    space = collect(model, DataLoader(data, **options))
    assert space.provenance.samples == 11
    assert space.grams["0"].rows == 11 * 25
    images = Plain(11).x[:, :, :5, :5]
    close(space.grams["0"].matrix, oracles.convolution_gram(images.numpy(), model[0].weight, padding=1))
    reference = copy.deepcopy(model).eval()
    with torch.no_grad():
        received = reference[:9](images)
    close(space.grams["9"].matrix, oracles.gram(received.numpy()[None]))


def test_collecting_changes_nothing(model):
    """Random states, training flags, requires_grad, gradients, weights and buffers, hooks, grad mode."""
    model[0].bias.requires_grad_(False)
    model(torch.randn(3, 2, 5, 5)).sum().backward()
    random.seed(5)
    np.random.seed(6)
    torch.manual_seed(7)

    def state():
        return {
            "weights": fingerprint(model),
            "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
            "training": [module.training for module in model.modules()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "hooks": [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()],
            "attributes": [sorted(vars(module)) for module in model.modules()],
            "random": (random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2], torch.get_rng_state().tolist()),
            "grad mode": torch.is_grad_enabled(),
        }

    before = state()
    collect(model, DataLoader(Augmented(10), 4, shuffle=True))
    assert state() == before


def test_nothing_is_left_after_an_error(model):
    class Broken(Plain):
        def __getitem__(self, index):
            if index == 5:
                raise OSError("unreadable")
            return super().__getitem__(index)

    modes = [module.training for module in model.modules()]
    with pytest.raises(OSError, match="unreadable"):
        collect(model, DataLoader(Broken(10), 4))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_no_samples(model):
    with pytest.raises(ValueError, match="has no samples"):
        collect(model, DataLoader(Subset(Plain(3), []), 4))


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.out = nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, tokens):
        return self.out(self.hidden(self.words(tokens)).tanh())

    def unlearning_outputs(self, batch):
        tokens, tags = batch
        return self(tokens)[tokens != 0], tags[tokens != 0]

    def row_mask(self, batch):
        return batch[0] != 0


def test_padded_tokens_do_not_count():
    """The Gram does not depend on how far sequences are padded."""
    model = Tagger()
    tokens = torch.randint(1, 9, (6, 7))
    lengths = [7, 1, 3, 0, 5, 7]
    for row, length in zip(tokens, lengths, strict=True):
        row[length:] = 0
    space = collect(model, DataLoader(TensorDataset(tokens, torch.zeros_like(tokens)), 2))
    received = np.array([model.words.weight[word].tolist() for row in tokens for word in row if word])
    assert space.grams["hidden"].rows == space.grams["out"].rows == sum(lengths)
    assert space.provenance.samples == 6
    counts = [sum(word == token for row in tokens.tolist() for word in row if word) for token in range(9)]
    assert space.grams["words"].matrix.flatten().tolist() == counts
    close(space.grams["hidden"].matrix, oracles.gram(received[None]))
    weight, bias = model.hidden.weight.detach().double().numpy(), model.hidden.bias.detach().double().numpy()
    close(space.grams["out"].matrix, oracles.gram(np.tanh(received @ weight.T + bias)[None]))


def test_a_mask_of_samples():
    model, x = nn.Sequential(nn.Conv1d(2, 2, 2), nn.Flatten(), nn.Linear(6, 2)), torch.randn(5, 2, 4)
    mask = torch.tensor([True, False, True, True, False])
    found, expected = grams(model, x, mask=mask), grams(model, x[mask])
    assert found["0"].rows == 9
    for key in expected:
        close(found[key].matrix, expected[key].matrix)


class Reuse(nn.Module):
    """Calls one layer twice, the second time by keyword, and spoils its inputs afterwards."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        first = x.clone()
        second = self.layer(first).detach()
        first.zero_()
        third = self.layer(input=second)
        second.mul_(-7).add_(1)
        return third


def test_both_calls_of_a_reused_layer_count_and_later_changes_in_place_do_not():
    model, x = Reuse(), torch.randn(4, 3)
    second = x.double().numpy() @ model.layer.weight.detach().double().numpy().T + model.layer.bias.detach().double().numpy()
    gram = grams(model, x)["layer"]
    assert gram.rows == 8
    close(gram.matrix, oracles.gram(x.numpy()[None]) + oracles.gram(second[None]))


def test_several_passes_add_up(model):
    model.eval()
    parts = torch.randn(9, 2, 5, 5).split([4, 0, 3, 2])
    found, expected = grams(model, *parts), grams(model, torch.cat(parts))
    for key in expected:
        assert found[key].rows == expected[key].rows
        close(found[key].matrix, expected[key].matrix)


def test_the_product_is_float32_under_autocast():
    """Inputs that autocast has rounded are taken as they are; the product is not rounded."""
    model, x = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 2)), torch.randn(500, 40)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model[0](x)
        found = grams(model, x)
    assert hidden.dtype == torch.bfloat16
    close(found["0"].matrix, oracles.gram(x.numpy()[None]))
    close(found["1"].matrix, oracles.gram(hidden.detach().float().numpy()[None]))


def test_half_precision_weights():
    model, x = nn.Sequential(nn.Linear(20, 2)).bfloat16(), torch.randn(50, 20).bfloat16()
    close(grams(model, x)["0"].matrix, oracles.gram(x.float().numpy()[None]))


def test_float64_inputs_stay_float64():
    model, x = nn.Sequential(nn.Linear(20, 2)).double(), torch.randn(50, 20, dtype=torch.float64)
    close(grams(model, x)["0"].matrix, oracles.gram(x.numpy()[None]), 1e-14)


@pytest.mark.parametrize("how", ["wrapped", "in place", "wrapped inside"])
def test_a_compiled_network_is_counted(how):
    """Also when it was compiled, and called, before."""
    torch.compiler.reset()
    plain, x = network().eval(), Plain(6).x[:, :, :5, :5]
    model = copy.deepcopy(plain)
    if how == "in place":
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    if how == "wrapped inside":
        plain, model = nn.Sequential(plain), nn.Sequential(model)
    model(x)
    found, expected = collect(model, DataLoader(Plain(6), 4)), collect(plain, DataLoader(Plain(6), 3))
    assert found.grams.keys() == expected.grams.keys()
    assert found.provenance.weights == expected.provenance.weights
    for key, gram in expected.grams.items():
        assert found.grams[key].rows == gram.rows
        close(found.grams[key].matrix, gram.matrix)
    torch.compiler.reset()


class Heads(nn.Module):
    """Layers on one tensor; ``key`` has no bias, ``wide`` sees other patches, ``changed`` comes after a change in place."""

    def __init__(self, sometimes=()):
        super().__init__()
        self.query, self.key, self.value, self.changed = (nn.Linear(4, 2, bias=bias) for bias in (True, False, True, True))
        self.near, self.also, self.wide = (nn.Conv1d(3, 2, 3, padding=padding) for padding in (1, 1, 2))
        self.sometimes, self.passes = sometimes, 0

    def forward(self, x):
        x = x.clone()
        self.passes += 1
        found = self.query(x).sum(2) + self.key(x).sum(2)
        found = found + self.value(x * 1 if self.passes in self.sometimes else x).sum(2)
        found = found + self.near(x).sum() + self.also(x).sum() + self.wide(x).sum()
        return found + self.changed(x.mul_(2)).sum(2)


def test_layers_that_are_given_the_same_tensor_have_one_matrix(tmp_path):
    data = TensorDataset(torch.randn(11, 3, 4), torch.arange(11) % 3)
    model = Heads()
    space = collect(model, DataLoader(data, 3))
    leaders = {"query": "query", "value": "query", "also": "near"}
    assert {name: layer.gram for name, layer in space.protected.items()} == {
        name: leaders.get(name, name) for name in ("query", "key", "value", "changed", "near", "also", "wide")
    }
    assert space.grams.keys() == {"query", "key", "changed", "near", "wide"}
    x = data.tensors[0]
    close(space.grams["query"].matrix, oracles.gram(x.reshape(1, -1, 4).numpy()))
    close(space.grams["changed"].matrix, 4 * space.grams["query"].matrix)
    assert space.save(tmp_path / "space.safetensors").is_file()
    again = type(space).load(tmp_path / "space.safetensors")
    assert again.layers == space.layers
    with_each = Collector(model, survey(model))  # as files from before layers shared their matrices have them
    with with_each, torch.no_grad():
        model.eval()(x)
    grams, layers = with_each.result()
    assert len(grams) == 7
    old = dataclasses.replace(space, grams=grams, layers=layers)
    forget, retain = (collect(model, DataLoader(Subset(data, part), 4)) for part in (range(5), range(5, 11)))
    for full in (space, old):
        left = full.without(forget)
        assert left.grams.keys() == full.grams.keys()
        for name, layer in left.protected.items():
            close(left.grams[layer.gram].matrix, retain.grams[retain.protected[name].gram].matrix)
            assert left.grams[layer.gram].rows == retain.grams[retain.protected[name].gram].rows


@pytest.mark.parametrize("sometimes", [(1,), (2,), (4,)])
def test_layers_that_are_not_always_given_the_same_tensor_have_their_own(sometimes):
    data = TensorDataset(torch.randn(11, 3, 4), torch.arange(11) % 3)
    space = collect(Heads(sometimes), DataLoader(data, 3))  # four passes
    assert space.protected["value"].gram == "value"
    for key in ("query", "value"):
        assert space.grams[key].rows == 33
        close(space.grams[key].matrix, oracles.gram(data.tensors[0].reshape(1, -1, 4).numpy()))


def test_a_layer_that_is_called_again_with_the_same_tensor_counts_twice():
    class Twice(Heads):
        def forward(self, x):
            return super().forward(x) + self.value(x).sum(2) + self.value(x).sum(2)

    x = torch.randn(7, 3, 4)
    space = collect(Twice(), DataLoader(TensorDataset(x, torch.arange(7) % 3), 3))
    assert (space.grams["query"].rows, space.grams["value"].rows) == (21, 63)
    close(space.grams["value"].matrix, 3 * oracles.gram(x.reshape(1, -1, 4).numpy()))


def test_attention_of_a_sequence_to_itself_is_multiplied_once():
    class Self(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.across = False

        def forward(self, x):
            return self.attention(x, 1 * x if self.across else x, x)[0]

    model, x = Self().eval(), torch.randn(3, 5, 4)
    collector = Collector(model, survey(model))
    with collector, torch.no_grad():
        for model.across in (False, True, False):
            model(x)
    gram = collector.result()[0]["attention"]
    assert gram.rows == 45
    close(gram.matrix, np.repeat(3 * oracles.gram(x.reshape(1, -1, 4).numpy()), 3, 0))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.75])
def test_full_minus_forget_is_retain_of_a_share_of_the_samples(model, share):
    """In other batches, another order, and through other nestings; in the full set about as many samples as were asked for."""
    data = Augmented(60)
    forgotten = [index for index in range(60) if index % 3 == 1]
    retained = [index for index in range(60) if index not in forgotten]
    full = collect(model, DataLoader(data, 16, shuffle=True), samples=share)
    forget = collect(model, DataLoader(Subset(Subset(data, forgotten), range(19, -1, -1)), 5), samples=share)
    retain = collect(model, DataLoader(Subset(data, retained), 23), samples=share)
    left = full.without(forget)
    assert (full.provenance.samples, left.provenance.samples, left.provenance.share) == (60, 40, share)
    assert abs(full.grams["9"].rows - 60 * share) < 2
    for key, gram in retain.grams.items():
        assert left.grams[key].rows == gram.rows
        close(left.grams[key].matrix, gram.matrix, 2e-6)
    with pytest.raises(ValueError, match=f"a share of {share} of the samples was looked at here and of 1.0 there"):
        full.without(collect(model, DataLoader(Subset(data, forgotten), 5)))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_share_is_dealt_out_to_processes(monkeypatch, world):
    """Each sample of the share once, and as many batches everywhere; those that only keep company are not counted."""
    monkeypatch.setattr(passes.distributed, "world", lambda: world)
    dealt, batches = [], []
    for rank in range(world):
        monkeypatch.setattr(passes.distributed, "rank", lambda rank=rank: rank)
        loader = passes.exact_loader(DataLoader(TensorDataset(torch.arange(50)), 4), 0.3)
        found = [batch[0].tolist() for batch in loader]
        dealt += [position for batch in found[: loader.dataset.batches] for position in batch]
        batches.append(len(found))
    golden = (math.sqrt(5) - 1) / 2
    assert sorted(dealt) == [position for position in range(50) if position * golden % 1 < 0.3]
    assert len(set(batches)) == 1


def test_a_stream_has_no_share():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(Plain(3))

    with pytest.raises(TypeError, match="no positions to choose a share by"):
        collect(network(), DataLoader(Stream(), 2), samples=0.5)


def test_a_forget_set_of_which_nothing_was_looked_at(model):
    data = Augmented(40)
    full = collect(model, DataLoader(data, 8), samples=0.1)
    forget = collect(model, DataLoader(Subset(data, [1, 2]), 8), samples=0.1)
    assert not forget.grams
    left = full.without(forget)
    assert left.provenance.samples == 38
    assert all(torch.equal(left.grams[key].matrix, gram.matrix) for key, gram in full.grams.items())
