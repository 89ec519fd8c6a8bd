"""Learns and unlearns on DEVICES processes: `fit.py DEVICES switch|separate OUTPUT PRECISION`. Each rank writes its weights."""

import sys

import lightning as L
import torch
from torch.utils.data import DataLoader

from pgu_lightning import ForgetRequest, PGUCallback, RetainSpace
from tests.helpers.toys import Data, Module, blobs, trainer

devices, mode, output, precision = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]

if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    options = {"devices": devices, "precision": precision, "strategy": "ddp" if devices > 1 else "auto"}
    module = Module().double() if precision == "64-true" else Module()
    if mode == "switch":
        callback = PGUCallback(ForgetRequest(classes=[2]), switch_at_epoch=20)
        fit = trainer(120, [callback], **options)
        fit.fit(module, datamodule=Data())
    else:
        module.load_state_dict(torch.load(f"{output}/start.pt", weights_only=True))
        callback = PGUCallback(ForgetRequest(classes=[2]), retain_space=RetainSpace.load(f"{output}/start.safetensors"))
        fit = trainer(120, [callback], **options)
        fit.fit(module, DataLoader(blobs(163), 32), DataLoader(blobs(81, seed=1), 32))
    torch.save(
        {
            "state": module.state_dict(),
            "grams": {key: gram.matrix for key, gram in callback.space.grams.items()},
            "epochs": callback.report.outcome.epochs,
            "fulfilled": callback.report.outcome.fulfilled,
            "forget_accuracy": callback.report.models["unlearned"]["forget_accuracy"],
        },
        f"{output}/{mode}-{devices}-{fit.global_rank}.pt",
    )
