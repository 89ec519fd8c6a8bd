"""A layer of your own, protected like the built-in ones: say in one function what it multiplies its weight with.

A layer that is not known is frozen and listed in the report; nothing else changes. If the weight is not laid out as (out, in), register
`as_matrix` too, as in causal_lm.py.

Run: python examples/custom_layer.py
"""

from __future__ import annotations

import lightning as L
import torch
from existing_trainer import DigitsData, DigitsModule, tell, trainer
from torch import Tensor, nn
from torch.nn import functional as F

from pgu_lightning import ForgetRequest, PGUCallback
from pgu_lightning.statistics import survey
from pgu_lightning.statistics.layers import rows


class Quadratic(nn.Module):
    """A linear layer over its input and the squares of its input."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, 2 * inputs) / (2 * inputs) ** 0.5)

    def features(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square()], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.features(x), self.weight)


class Net(DigitsModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), Quadratic(64, 32), nn.Tanh(), Quadratic(32, 10))


def frozen(model: nn.Module) -> dict[str, str]:
    return {layer.name: layer.frozen_because for layer in survey(model) if layer.frozen_because}


def main() -> None:
    L.seed_everything(0, verbose=False)
    model, data = Net(), DigitsData()
    print("before:", frozen(model))

    # The five lines: (groups, rows, dim), here one group.
    @rows.register
    def _(layer: Quadratic, x: Tensor) -> Tensor:
        return layer.features(x).reshape(1, -1, layer.weight.shape[1])

    print("after:", frozen(model))
    learn = PGUCallback()
    trainer(15, learn).fit(model, datamodule=data)
    pgu = PGUCallback(ForgetRequest(classes=[3]), retain_space=learn.space)
    trainer(100, pgu).fit(model, datamodule=data)
    tell("forgotten", pgu.report)


if __name__ == "__main__":
    main()
