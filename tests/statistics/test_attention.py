"""What the projections inside attention receive, against attention written out with plain products; and exactness of what is made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pgu_lightning.projection import Hard, Projector, Spectrum
from pgu_lightning.statistics import Collector, survey, weight_of
from pgu_lightning.statistics.layers import as_matrix
from tests import oracles

SIZE, HEADS = 8, 2
OPTIONS = {
    "batch first": {"batch_first": True},
    "sequence first": {},
    "no bias": {"batch_first": True, "bias": False},
    "bias of keys and values": {"batch_first": True, "add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
    "keys of another size": {"batch_first": True, "kdim": 5, "vdim": 6},
}
MASKS = {
    "no mask": {},
    "padding": {"padding": True},
    "causal": {"causal": True},
    "both, without weights": {"padding": True, "causal": True},
}


class Attending(nn.Module):
    """Cross-attention, so that queries and keys differ in number."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(SIZE, HEADS, **options)

    def forward(self, query, key, value, **options):
        return self.attention(query, key=key, value=value, **options)[0]


def heads(attention, query, key, value, blocked):
    """The heads' outputs of one sample, by loops: (queries, size)."""
    state = {name: value.detach().double().numpy() for name, value in attention.state_dict().items()}
    apart = attention.in_proj_weight is None
    weights = [state[f"{name}_proj_weight"] for name in "qkv"] if apart else np.split(state["in_proj_weight"], 3)
    biases = np.split(state.get("in_proj_bias", np.zeros(3 * SIZE)), 3)
    q, k, v = (x @ w.T + b for x, w, b in zip((query, key, value), weights, biases, strict=True))
    blocked = np.array(blocked)
    if attention.bias_k is not None:
        k, v = np.vstack([k, state["bias_k"][0]]), np.vstack([v, state["bias_v"][0]])
    if attention.add_zero_attn:
        k, v = np.vstack([k, np.zeros(SIZE)]), np.vstack([v, np.zeros(SIZE)])
    blocked = np.hstack([blocked, np.zeros((len(q), len(k) - blocked.shape[1]), bool)])
    result = np.zeros((len(q), SIZE))
    each = SIZE // HEADS
    for head in range(HEADS):
        part = slice(head * each, (head + 1) * each)
        for row in range(len(q)):
            scores = np.where(blocked[row], -np.inf, k[:, part] @ q[row, part] / np.sqrt(each))
            share = np.exp(scores - scores.max())
            result[row, part] = share / share.sum() @ v[:, part]
    return result


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_grams_of_the_projections(options, mask):
    model = Attending(**options).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    samples, queries, keys = 3, 4, 5
    query = torch.randn(samples, queries, SIZE)
    key, value = torch.randn(samples, keys, options.get("kdim", SIZE)), torch.randn(samples, keys, options.get("vdim", SIZE))
    padded = torch.arange(keys) >= torch.tensor([5, 3, 1])[:, None]
    later = torch.arange(keys) > torch.arange(queries)[:, None]
    given = {"key_padding_mask": padded} if "padding" in mask else {}
    given |= {"attn_mask": later} if "causal" in mask else {}
    given |= {"need_weights": False} if len(mask) == 2 else {}
    collector = Collector(model, survey(model))
    first = options.get("batch_first", False)
    with collector:
        output = model(*(x if first else x.transpose(0, 1) for x in (query, key, value)), **given)
    grams, _ = collector.result()
    received = []
    for sample in range(samples):
        blocked = np.zeros((queries, keys), bool)
        blocked |= padded[sample].numpy() if "padding" in mask else False
        blocked |= later.numpy() if "causal" in mask else False
        received.append(heads(model.attention, query[sample].numpy(), key[sample].numpy(), value[sample].numpy(), blocked))
    projection = model.attention.out_proj
    bias = 0 if projection.bias is None else projection.bias.detach().numpy()
    expected = np.stack(received) @ projection.weight.detach().numpy().T + bias
    np.testing.assert_allclose((output if first else output.transpose(0, 1)).detach(), expected, atol=1e-4)  # the oracle is attention
    gram = grams["attention.out_proj"]
    np.testing.assert_allclose(gram.matrix, oracles.gram(np.concatenate(received)[None]), rtol=1e-4, atol=1e-4)
    assert gram.rows == samples * queries
    if "kdim" in options:
        assert "attention" not in grams
        return
    inputs = [x.flatten(0, 1).numpy()[None] for x in (query, key, value)]
    np.testing.assert_allclose(grams["attention"].matrix, np.concatenate([oracles.gram(x) for x in inputs]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
def test_padded_tokens_do_not_count(batch_first):
    """As many tokens as samples: only the layout says which is which."""
    model, x = Attending(batch_first=batch_first).eval(), torch.randn(4, 4, SIZE)
    mask = torch.arange(4) < torch.tensor([4, 2, 1, 3])[:, None]
    given = x if batch_first else x.transpose(0, 1)
    collector = Collector(model, survey(model))
    collector.mask = mask
    with collector:
        output = model(given, given, given, key_padding_mask=~mask)
    grams, _ = collector.result()
    assert grams["attention"].rows == grams["attention.out_proj"].rows == 10
    np.testing.assert_allclose(grams["attention"].matrix[1], oracles.gram(x[mask].numpy()[None])[0], rtol=1e-5, atol=1e-5)
    output = output if batch_first else output.transpose(0, 1)
    projection = model.attention.out_proj
    heads = np.linalg.solve(projection.weight.detach().double().numpy(), (output[mask] - projection.bias).detach().double().numpy().T).T
    np.testing.assert_allclose(grams["attention.out_proj"].matrix, oracles.gram(heads[None]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_fast_path_of_transformer_layers_is_left_aside_and_given_back(enabled):
    layer = nn.TransformerEncoderLayer(SIZE, HEADS, 12, batch_first=True, norm_first=True).eval()
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(3, 4, SIZE)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        collector = Collector(model, survey(model))
        with torch.no_grad(), collector:
            model(x)
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    grams, layers = collector.result()
    assert grams.keys() == {
        f"layers.{block}.{name}" for block in range(2) for name in ("self_attn", "self_attn.out_proj", "linear1", "linear2")
    }
    assert {found.frozen_because for found in layers if found.gram is None} == {"normalisation parameters are not moved"}
    assert all(gram.rows == 12 for gram in grams.values())


def test_collecting_leaves_attention_alone():
    model, x = Attending().eval(), torch.randn(3, 2, SIZE)
    before, parts, state = model(x, x, x), dict(model.named_modules()), torch.get_rng_state()
    with Collector(model, survey(model)):
        during = model(x, x, x)
    assert torch.equal(during, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert dict(model.named_modules()) == parts
    assert torch.equal(model(x, x, x), before)


def test_another_forward_is_another_layer():
    class Scaled(nn.MultiheadAttention):
        def forward(self, query, key, value):
            return super().forward(2 * query, key, value)

    model, x = Attending(), torch.randn(3, 2, SIZE)
    model.attention = Scaled(SIZE, HEADS)
    collector = Collector(model, survey(model))
    with collector:
        model.attention(x, x, x)
    grams, layers = collector.result()
    assert not grams
    assert {layer.name: layer.frozen_because for layer in layers} == {
        "attention": "Scaled is not a layer whose input rows are known",
        "attention.out_proj": "its forward was never called",
    }


def test_what_no_token_reaches_leaves_the_output_as_it_is():
    model = Attending(batch_first=True).double().eval()
    query, key = (torch.randn(2, length, rank).double() @ torch.randn(rank, SIZE).double() for length, rank in ((2, 3), (3, 2)))
    collector = Collector(model, survey(model))
    with torch.no_grad(), collector:
        before = model(query, key, key)
    for name, gram in collector.result()[0].items():
        layer = model.get_submodule(name)
        update = torch.randn_like(weight_of(layer)) * 10
        filtered = Projector(Spectrum.of(gram), Hard(1.0), update)(as_matrix(layer, update))
        assert filtered.norm() > 1
        as_matrix(layer, weight_of(layer).data).add_(filtered)
    torch.testing.assert_close(model(query, key, key), before, rtol=0, atol=1e-10)
