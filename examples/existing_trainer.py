"""Somebody's Lightning code, and the callback added to it: the four uses. Run: python examples/existing_trainer.py [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset

# ---- what was there before: no mention of unlearning ----


class DigitsData(L.LightningDataModule):
    def setup(self, stage=None):
        digits = load_digits()
        images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
        everything = TensorDataset(images, torch.tensor(digits.target))
        self.train, self.val = Subset(everything, range(1400)), Subset(everything, range(1400, 1797))

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=256)


class DigitsModule(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        self.log("val_accuracy", (self(images).argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


# ---- what is added ----

from pgu_lightning import ForgetRequest, PGUCallback, collect  # noqa: E402


def trainer(max_epochs, callback):
    return L.Trainer(
        max_epochs=max_epochs, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )


def tell(use, report):
    before, after = report.models["original"], report.models["unlearned"]
    changes = [f"{before[name]:.3f} -> {after[name]:.3f}" for name in ("forget_accuracy", "validation_accuracy")]
    print(f"{use}: forget accuracy {changes[0]}, validation accuracy {changes[1]} ({report.outcome.reason})")


def main(folder):
    L.seed_everything(0, verbose=False)
    data, checkpoint, space_file = DigitsData(), folder / "model.ckpt", folder / "model.retain.safetensors"

    # 1. Train as always. The statistics of the training data are written beside the checkpoint.
    model, fit = DigitsModule(), trainer(12, PGUCallback())
    fit.fit(model, datamodule=data)
    fit.save_checkpoint(checkpoint)
    print(f"1. trained; {space_file.name} lies beside {checkpoint.name}")

    # 2. Later: forget all threes. The retained data is not read.
    model = DigitsModule.load_from_checkpoint(checkpoint, weights_only=True)
    pgu = PGUCallback(ForgetRequest(classes=[3]), retain_space=space_file)
    trainer(100, pgu).fit(model, datamodule=data)
    tell("2. forgotten later", pgu.report)

    # 2b. The retained data may be gone: the training loader is the forget set and nothing else. (The file no longer contains the threes.)
    labels = torch.tensor([label for _, label in data.train])
    fives = Subset(data.train, (labels == 5).nonzero().flatten().tolist())
    pgu = PGUCallback(ForgetRequest(everything=True, kind="class"), retain_space=space_file)
    trainer(100, pgu).fit(model, DataLoader(fives, batch_size=64), data.val_dataloader())
    tell("2b. then the fives, from their own loader", pgu.report)

    # 3. Learn and forget in one fit.
    model, pgu = DigitsModule(), PGUCallback(ForgetRequest(classes=[3]), switch_at_epoch=12)
    trainer(112, pgu).fit(model, datamodule=data)
    tell("3. learnt and forgotten in one fit", pgu.report)

    # 4. A model that was trained before this package was there: one pass over its data.
    model = DigitsModule.load_from_checkpoint(checkpoint, weights_only=True)
    space = collect(model, data.train_dataloader())
    pgu = PGUCallback(ForgetRequest(indices=range(50)), retain_space=space)
    trainer(100, pgu).fit(model, datamodule=data)
    tell("4. collected afterwards, fifty samples forgotten", pgu.report)


if __name__ == "__main__":
    chosen = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/existing_trainer")
    chosen.mkdir(parents=True, exist_ok=True)
    main(chosen)
