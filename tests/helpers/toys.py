"""Small data and modules of a stranger's making: none of them knows the package."""

from __future__ import annotations

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

CLASSES, FEATURES = 4, 12


def blobs(samples: int = 160, seed: int = 0) -> TensorDataset:
    """Four overlapping clusters as 3 x 2 x 2 images."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(99)) * 1.5
    y = torch.arange(samples) % CLASSES
    x = centres[y] + torch.randn(samples, FEATURES, generator=generator)
    return TensorDataset(x.view(samples, 3, 2, 2), y)


def network() -> nn.Sequential:
    head = [nn.Flatten(), nn.Linear(72, 16), nn.ReLU(), nn.Linear(16, CLASSES)]
    return nn.Sequential(nn.Conv2d(3, 8, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), *head)


class Module(L.LightningModule):
    """Automatic optimization, a scheduler, and logs of its own."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.net = network()
        self.lr = lr
        self.steps = 0

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.steps += 1
        loss = F.cross_entropy(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y), prog_bar=True)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 100)}


class ManualModule(Module):
    """Manual optimization with two optimizers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        weights = [p for p in self.parameters() if p.ndim > 1]
        rest = [p for p in self.parameters() if p.ndim == 1]
        return [torch.optim.SGD(weights, 0.05), torch.optim.SGD(rest, 0.05)]


class HostileModule(Module):
    """Counts on its own training_step in every hook: each of these would crash or corrupt a fit whose step was replaced without care."""

    def on_train_epoch_start(self):
        self.outs = []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.outs.append(loss.detach())
        return loss

    def on_train_batch_start(self, batch, batch_idx):
        assert len(batch) == 2

    def on_before_optimizer_step(self, optimizer):
        assert isinstance(optimizer, torch.optim.Adam)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        assert len(optimizer.param_groups[0]["params"]) == len(list(self.parameters()))
        optimizer.step(closure=optimizer_closure)

    def on_train_epoch_end(self):
        torch.stack(self.outs)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        x, y = batch
        return x * 1.0, y


class Data(L.LightningDataModule):
    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage=None):
        self.train, self.val = blobs(160), blobs(80, seed=1)

    def train_dataloader(self):
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self):
        return DataLoader(self.val, self.batch_size)


def trainer(max_epochs: int, callbacks: list | None = None, **options) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=max_epochs, callbacks=callbacks, **({"accelerator": "cpu"} | quiet | options))


def accuracy(model: nn.Module, dataset: TensorDataset, mask: torch.Tensor | None = None) -> float:
    x, y = dataset.tensors
    model.eval()
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float()
    return float(right.mean() if mask is None else right[mask].mean())
