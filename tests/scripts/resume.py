"""Learns and unlearns in one fit: `resume.py DEVICES FOLDER KILL CHECKPOINT`.

KILL says in what the whole process group is killed: learning, collecting, between (the phases), unlearning, saving; or no. CHECKPOINT is
what the fit goes on from, or no. A fit that ends writes what came of it to FOLDER/RANK.pt.
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler

from pgu_lightning import PGUCallback, callback
from tests.helpers.toys import blobs, trainer
from tests.test_resume import LEARN, REQUESTS, SETTINGS, Mlp

devices, folder, killed_in, checkpoint = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
EPOCHS = {"learning": LEARN - 1, "between": LEARN, "unlearning": LEARN + 2, "saving": LEARN + 2}  # in which it is killed


def kill(*_) -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        data = blobs(160)
        return DataLoader(data, 40 // devices, sampler=DistributedSampler(data, devices, self.trainer.global_rank))

    def val_dataloader(self):
        return DataLoader(blobs(80, seed=1), 40)


class Kills(L.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.current_epoch == EPOCHS.get(killed_in):
            if killed_in != "saving":
                kill()
            shutil.move = half_a_move


def half_a_move(source, target):
    """What a move from one file system to another leaves when it is killed."""
    if Path(target).name == "last.ckpt":
        Path(target).write_bytes(Path(source).read_bytes()[:1000])
        kill()
    Path(source).replace(target)


def collect_half(module, *arguments, **options):
    module.net[-1].register_forward_hook(kill)
    return collect(module, *arguments, **options)


if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    collect = callback.collect
    if killed_in == "collecting":
        callback.collect = collect_half
    module, pgu = Mlp(), PGUCallback(REQUESTS["class"], switch_at_epoch=LEARN, settings=SETTINGS)
    callbacks = [Kills(), pgu, ModelCheckpoint(folder, save_last=True)]
    fit = trainer(50, callbacks, enable_checkpointing=True, devices=devices, strategy="ddp" if devices > 1 else "auto")
    fit.fit(module, datamodule=Data(), ckpt_path=None if checkpoint == "no" else checkpoint)
    result = {
        "state": module.state_dict(),
        "grams": {key: gram.matrix for key, gram in pgu.space.grams.items()},
        "report": pgu.report.replace(seconds={}).to_json(),
    }
    torch.save(result, folder / f"{fit.global_rank}.pt")
