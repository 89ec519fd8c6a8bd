"""A LoRA of an unlearned model in PEFT's hands."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pgu_lightning.adapters import export_lora

pytestmark = pytest.mark.ecosystem


class Network(nn.Module):
    """Names that contain each other: "fc", "head.fc", "head.0" beside "body.0"."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.Flatten())
        self.fc = nn.Linear(5 * 16, 12)
        self.head = nn.ModuleDict({"0": nn.Linear(12, 12), "fc": nn.Linear(12, 4)})

    def forward(self, x):
        x = torch.relu(self.fc(torch.relu(self.body(x))))
        return self.head["fc"](torch.relu(self.head["0"](x)))


def test_peft_makes_the_unlearned_model_of_the_original(tmp_path):
    from peft import PeftModel

    original = Network().eval()
    unlearned = copy.deepcopy(original)
    with torch.no_grad():
        for layer in (unlearned.body[0], unlearned.body[2], unlearned.fc):
            layer.weight.add_(0.1 * torch.randn_like(layer.weight))
        unlearned.head["fc"].weight.add_(torch.randn(4, 1) @ torch.randn(1, 12))  # another rank than the rest, and head.0 as it was
    export_lora(original, unlearned, tmp_path)
    images = torch.randn(16, 2, 8, 8)
    with torch.no_grad():
        wanted = unlearned(images)
        assert (original(images) - wanted).abs().max() > 0.1
        adapted = PeftModel.from_pretrained(original, tmp_path)
        assert torch.allclose(adapted(images), wanted, atol=1e-5)
        merged = adapted.merge_and_unload()
        assert torch.allclose(merged(images), wanted, atol=1e-5)
    for name, weight in unlearned.named_parameters():
        assert torch.allclose(merged.get_parameter(name), weight, atol=1e-6), name
