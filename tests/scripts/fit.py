"""Learns and unlearns on several processes: `fit.py DEVICES STRATEGY switch|separate OUTPUT CASE`. Each rank writes what it ended with.

STRATEGY is ddp, fsdp2 or, with processes in pairs that share their samples, tensor; CASE names an
entry of CASES, with +2 behind it for two batches a step.
"""

import sys

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader

from pgu_lightning import ForgetRequest, PGUCallback, RetainSpace
from pgu_lightning.distributed import full
from pgu_lightning.projection import Hard
from pgu_lightning.settings import Settings
from tests.helpers.toys import Data, Module, blobs, trainer

devices, strategy, mode, output, case = int(sys.argv[1]), *sys.argv[2:6]

# The optimizer's own steps, whatever it is, behind a hard projector; batches that no number of processes shares evenly.
OWN = {"rule": Hard(0.9), "trust_radius": None, "anchor": 1.0, "batch_size": 15}
CASES = {
    "default": {},
    "adamw": OWN | {"optimizer": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1)},
    "biases": OWN | {"optimizer": lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1), "bias": "augment"},
    "repair": {},  # after too few epochs
    "momentum": OWN | {"optimizer": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01)},
}
name, _, accumulate = case.partition("+")


class Sharded(Module):
    """The toy module, its weights spread over the processes."""

    def configure_model(self):
        data, tensor = self.device_mesh["data_parallel"], self.device_mesh["tensor_parallel"]
        if tensor.size() > 1:
            parallelize_module(self.net, tensor, {"5": ColwiseParallel(), "7": RowwiseParallel()})
        if data.size() > 1:
            fully_shard(self.net[5], mesh=data)
            fully_shard(self.net, mesh=data)


def options():
    if strategy == "ddp":
        return {"strategy": "ddp" if devices > 1 else "auto"}
    tensor = 2 if strategy == "tensor" else 1
    parallel = ModelParallelStrategy(data_parallel_size=devices // tensor, tensor_parallel_size=tensor, process_group_backend="gloo")
    return {"strategy": parallel}


if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    module = Module() if strategy == "ddp" else Sharded()
    fit_options = {"devices": devices, "accumulate_grad_batches": int(accumulate or 1), **options()}
    settings = Settings(**CASES[name])
    if mode == "switch":
        callback = PGUCallback(ForgetRequest(classes=[2]), switch_at_epoch=20, settings=settings)
        fit = trainer(120, [callback], **fit_options)
        fit.fit(module, datamodule=Data())
    else:
        module.load_state_dict(torch.load(f"{output}/start.pt", weights_only=True))
        space, repair = RetainSpace.load(f"{output}/start.safetensors"), 31 if name == "repair" else None
        callback = PGUCallback(ForgetRequest(classes=[2]), retain_space=space, settings=settings, repair=repair)
        fit = trainer(3 if repair else 120, [callback], **fit_options)
        # 163 and 81 samples: no number of processes shares them evenly
        fit.fit(module, DataLoader(blobs(163), 32), DataLoader(blobs(81, seed=1), 32))
    found = {
        "state": {name: full(value).clone() for name, value in module.state_dict().items()},
        "grams": {key: (gram.augmented() if settings.bias == "augment" else gram).matrix for key, gram in callback.space.grams.items()},
        "epochs": callback.report.outcome.epochs,
        "steps": callback.report.outcome.steps,
        "fulfilled": callback.report.outcome.fulfilled,
        "survives": callback.preflight.survives,
        "interference": dict(callback.report.interference.layers),
        "forget_accuracy": callback.report.models["unlearned"]["forget_accuracy"],
    }
    fit.save_checkpoint(f"{output}/{mode}-{strategy}-{devices}-{case}.ckpt")
    torch.save(found, f"{output}/{mode}-{strategy}-{devices}-{case}-{fit.global_rank}.pt")
