"""Beside other callbacks: EarlyStopping, an exponential moving average of the weights, and stochastic weight averaging.

The statistics are collected when the others are done, at the weights that the fit ends with, wherever PGUCallback stands in the list.
EarlyStopping may stay in the fit that unlearns, which ends when it is enough and not before. Averages may not: they would mix the weights
from before back in, and are refused.

Run: python examples/other_callbacks.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
from existing_trainer import DigitsData, DigitsModule, tell
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, StochasticWeightAveraging

from pgu_lightning import ForgetRequest, PGUCallback


def trainer(max_epochs: int, *callbacks: L.Callback) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=max_epochs, callbacks=list(callbacks), accelerator="cpu", **quiet)


def main(folder: Path) -> None:
    data = DigitsData()
    averages = {"ema": lambda: EMAWeightAveraging(decay=0.9), "swa": lambda: StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=8)}
    for name, average in averages.items():
        L.seed_everything(0, verbose=False)
        model, stopping = DigitsModule(), EarlyStopping("val_accuracy", mode="max", patience=5)
        learn = trainer(15, PGUCallback(), stopping, average())
        learn.fit(model, datamodule=data)
        learn.save_checkpoint(folder / f"{name}.ckpt")  # and name.retain.safetensors, of the averaged weights

        pgu = PGUCallback(ForgetRequest(classes=[3]), retain_space=folder / f"{name}.retain.safetensors")
        trainer(100, pgu, EarlyStopping("val_accuracy", mode="max", patience=1)).fit(model, datamodule=data)
        tell(name, pgu.report)

    try:
        trainer(100, PGUCallback(ForgetRequest(classes=[3]), switch_at_epoch=12), EMAWeightAveraging()).fit(DigitsModule(), datamodule=data)
    except ValueError as refusal:
        print(f"refused: {refusal}")


if __name__ == "__main__":
    chosen = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/other_callbacks")
    chosen.mkdir(parents=True, exist_ok=True)
    main(chosen)
