"""A timm model in an ordinary LightningModule forgets a class.

timm's classifiers are a `Linear` of its own, with a forward of its own: one line says that it reads its input as torch's does.

Needs timm. Run: python examples/timm_model.py [NAME_OF_A_TIMM_MODEL]
"""

from __future__ import annotations

import sys

import lightning as L
import timm
import torch
from timm.layers.linear import Linear
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import ForgetRequest, PGUCallback
from pgu_lightning.statistics.layers import rows

rows.register(Linear, rows.dispatch(nn.Linear))


def stripes(samples: int, seed: int) -> TensorDataset:
    """Four classes of noisy stripes, 1 x 32 x 32."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 4
    grid = torch.arange(32) / 32 * 2 * torch.pi
    waves = torch.stack([torch.sin((k + 1) * grid)[None, :].expand(32, 32) for k in range(4)])
    return TensorDataset(waves[y][:, None] + 0.5 * torch.randn(samples, 1, 32, 32, generator=generator), y)


class TimmModule(L.LightningModule):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.model = timm.create_model(name, pretrained=False, num_classes=4, in_chans=1)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """A validation loader is all that unlearning asks for."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def trainer(max_epochs: int, callback: L.Callback) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=max_epochs, callbacks=[callback], accelerator="cpu", **quiet)


def main(name: str) -> None:
    L.seed_everything(0, verbose=False)
    train, validation, model = DataLoader(stripes(256, 0), 32, shuffle=True), DataLoader(stripes(128, 1), 64), TimmModule(name)
    learn = PGUCallback()
    trainer(8, learn).fit(model, train, validation)
    pgu = PGUCallback(ForgetRequest(classes=[1]), retain_space=learn.space)
    trainer(60, pgu).fit(model, train, validation)
    for which, metrics in pgu.report.models.items():
        print(f"{name}, {which}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items()))
    print(f"{len(pgu.report.layers)} layers protected, frozen: {sorted(set(pgu.report.frozen.values()))}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "mobilenetv3_small_050")
