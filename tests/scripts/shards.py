"""A guard on sharded weights of every kind of layer against one on whole weights: `shards.py DATA TENSOR`, on DATA x TENSOR processes."""

import copy
import sys
import tempfile
from dataclasses import replace

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import collect, distributed
from pgu_lightning.projection import Hard, Projector, Scale, Soft, Spectrum, UpdateGuard
from pgu_lightning.statistics import fingerprint, named_layers, weight_of

DATA, TENSOR = int(sys.argv[1]), int(sys.argv[2])


class Everything(nn.Module):
    """Of some layers a shard is rows of the matrix, of others groups or columns; the last one has fewer rows than some meshes processes."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.grouped = nn.Conv1d(6, 4, 2, groups=2)
        self.transposed = nn.ConvTranspose1d(4, 5, 2)
        self.up, self.down = nn.Linear(25, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.embedding(x)
        x = self.attention(x, x, x, need_weights=False)[0]
        x = self.transposed(self.grouped(x.mT))
        return self.down(self.up(x.flatten(1)).relu())


def shard(model, mesh):
    plan = {"embedding": RowwiseParallel(input_layouts=Replicate()), "up": ColwiseParallel(), "down": RowwiseParallel()}
    if TENSOR > 1:
        parallelize_module(model, mesh["tensor_parallel"], plan)
    fully_shard(model.attention, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])


def guard_of(model, space):
    modules = dict(named_layers(model))
    layers = {name: modules[name] for name in space.protected}
    moved = {name: layers[name].bias for name in ("attention.out_proj", "grouped", "up")}
    rules = {name: Hard(0.8) if number % 2 else Soft() for number, name in enumerate(layers)}
    soft = {name: rule for name, rule in rules.items() if isinstance(rule, Soft)}
    spectra = Spectrum.of_all({name: space.gram_of(name, name in moved) for name in layers}, soft)
    projectors = {name: Projector(spectra[name], rules[name], weight_of(layers[name])) for name in layers}
    unmoved = [name for name, rule in rules.items() if rule == Hard(0.8) and name not in moved]
    scaled = {name: Scale().of(spectra[name], rules[name], layers[name], weight_of(layers[name])) for name in unmoved}
    matrices = {name: spectrum.matrix for name, spectrum in spectra.items()}
    return UpdateGuard(layers, projectors, matrices, balanced=True, scaled=scaled, biases=moved)


def check(rank, store):
    torch.manual_seed(0)
    one = Everything()
    many = copy.deepcopy(one)
    loader = DataLoader(TensorDataset(torch.randint(7, (11, 5)), torch.randint(3, (11,))), 2)
    whole = collect(one, loader)  # before the processes know of each other
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=DATA * TENSOR)
    mesh = init_device_mesh("cpu", (DATA, TENSOR), mesh_dim_names=("data_parallel", "tensor_parallel"))
    distributed.follow(mesh)
    shard(many, mesh)
    assert fingerprint(one) == fingerprint(many)

    sharded = collect(many, loader)
    assert sharded.layers == whole.layers
    assert replace(sharded.provenance, margins=()) == replace(whole.provenance, margins=())
    torch.testing.assert_close(torch.tensor(sharded.provenance.margins), torch.tensor(whole.provenance.margins))
    for key, gram in whole.grams.items():
        assert sharded.grams[key].rows == gram.rows
        assert (sharded.grams[key].matrix - gram.matrix).norm() <= 1e-6 * gram.matrix.norm()

    plain, split = guard_of(one, whole), guard_of(many, whole)
    moved = {"attention.out_proj.bias", "grouped.bias", "up.bias"}
    assert set(plain.weights) == {"embedding", "attention", "attention.out_proj", "grouped", "transposed", "up", "down", *moved}
    update = {name: torch.randn(weight.shape) for name, weight in plain.weights.items()}
    parts = {name: distributed.part_of(change, split.weights[name]).clone() for name, change in update.items()}
    for name, change in update.items():
        assert_close(distributed.whole(parts[name], split.weights[name]), change, rtol=0, atol=0)
    known = [guard.filter_(changes) for guard, changes in ((plain, update), (split, parts))]
    assert known[0].keys() == known[1].keys() != set()
    assert_close(split.response(parts, known[1]), plain.response(update, known[0]), rtol=1e-5, atol=1e-7)
    assert_close(plain.response(update, known[0]), plain.response(update), rtol=1e-4, atol=1e-7)
    plain.balance_(update)
    split.balance_(parts)
    for figures in ("response", "squares"):
        assert_close(getattr(split, figures)(parts), getattr(plain, figures)(update), rtol=1e-5, atol=1e-7)
    plain.commit(update, 0.5)
    split.commit(parts, 0.5)
    for name, weight in plain.weights.items():
        assert_close(distributed.full(split.weights[name]), weight.detach(), rtol=1e-5, atol=1e-6)
    assert_close(split.interference(), plain.interference(), rtol=1e-5, atol=1e-9)

    distributed.follow(None)
    spectra = distributed.spread([3.0, 1.0], lambda task: (torch.rand(2, 3 + task).mT,))
    assert len({str(found) for found in distributed.gather([part[0].tolist() for part in spectra])}) == 1
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(check, (tempfile.mktemp(),), nprocs=DATA * TENSOR)
