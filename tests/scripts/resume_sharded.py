"""Resumes under ModelParallelStrategy, on one process, from checkpoints of both phases: `resume_sharded.py FOLDER`."""

import contextlib
import sys

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from pgu_lightning import ForgetRequest, PGUCallback, RetainSpace
from tests.helpers.toys import Module, blobs, trainer

folder = sys.argv[1]


class Sharded(Module):
    def configure_model(self):
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


class Stops(L.Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            trainer.save_checkpoint(f"{folder}/{self.epoch}.ckpt")
            if self.epoch == 3:
                raise KeyboardInterrupt


def fit(*callbacks, **options):
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, process_group_backend="gloo")
    module = Sharded()
    module.load_state_dict(torch.load(f"{folder}/start.pt", weights_only=True))
    trainer(6, list(callbacks), strategy=strategy, devices=1).fit(module, DataLoader(blobs(163), 32), **options)


if __name__ == "__main__":
    request, space = ForgetRequest(classes=[2]), RetainSpace.load(f"{folder}/start.safetensors")
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        fit(Stops(1), Stops(3), PGUCallback(request, switch_at_epoch=2))
    fit(PGUCallback(request, switch_at_epoch=2), ckpt_path=f"{folder}/1.ckpt")  # learning is Lightning's to resume
    for callback in (PGUCallback(request, switch_at_epoch=2), PGUCallback(request, retain_space=space)):
        try:
            fit(callback, ckpt_path=f"{folder}/3.ckpt")
        except RuntimeError as error:
            print(error)
        else:
            raise AssertionError("it was resumed")
