"""A timm model in somebody's LightningModule."""

from __future__ import annotations

import lightning as L
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pgu_lightning import ForgetRequest, PGUCallback
from tests.helpers.toys import trainer

pytestmark = pytest.mark.ecosystem


def stripes(samples: int, seed: int) -> TensorDataset:
    """Four classes of noisy stripes, 1 x 32 x 32."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 4
    grid = torch.arange(32) / 32 * 2 * torch.pi
    waves = torch.stack([torch.sin((k + 1) * grid)[None, :].expand(32, 32) for k in range(4)])
    return TensorDataset(waves[y][:, None] + 0.5 * torch.randn(samples, 1, 32, 32, generator=generator), y)


class TimmModule(L.LightningModule):
    def __init__(self, name):
        super().__init__()
        import timm

        self.model = timm.create_model(name, pretrained=False, num_classes=4, in_chans=1)

    def forward(self, images):
        return self.model(images)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050"])
def test_a_timm_model_forgets_a_class(name, tmp_path):
    L.seed_everything(0, verbose=False)
    train, validation, module = stripes(256, 0), stripes(128, 1), TimmModule(name)
    fit = trainer(8, [PGUCallback()])
    fit.fit(module, DataLoader(train, 32, shuffle=True), DataLoader(validation, 64))
    fit.save_checkpoint(tmp_path / "model.ckpt")
    frozen_before = {key: value.clone() for key, value in module.state_dict().items()}

    callback = PGUCallback(ForgetRequest(classes=[1]), retain_space=tmp_path / "model.retain.safetensors")
    trainer(60, [callback]).fit(module, DataLoader(train, 32, shuffle=True), DataLoader(validation, 64))
    metrics = callback.report.models
    assert metrics["original"]["forget_accuracy"] > 0.9
    assert metrics["unlearned"]["forget_accuracy"] < 0.05
    assert metrics["unlearned"]["validation_accuracy"] > 0.9
    moved = {key.removesuffix(".weight") for key, value in module.state_dict().items() if not torch.equal(value, frozen_before[key])}
    assert moved <= callback.report.layers.keys()
    owners = {name for name, part in module.named_modules() if any(True for _ in part.parameters(recurse=False))}
    assert owners == callback.report.layers.keys() | callback.report.frozen.keys()
