"""A small causal language model (GPT-2 from a config, no download) forgets some people's phone numbers and still knows the others'.

Validation data are numbers it never saw: it is enough when the forgotten ones are guessed no better than those. GPT-2's layers, `Conv1D`,
store their weight as (in, out): how they are read is said in the lines below the imports. Every token is a row, so a sample has many
labels: the objective `Margin` takes that, `Calibrated` (the default for samples) does not.

Needs transformers. Run: python examples/causal_lm.py
"""

from __future__ import annotations

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from pgu_lightning import ForgetRequest, PGUCallback, PGUMixin
from pgu_lightning.objectives import Margin
from pgu_lightning.passes import score
from pgu_lightning.settings import Settings
from pgu_lightning.statistics.layers import as_matrix, rows
from pgu_lightning.stopping import AccuracyGap

PEOPLE, DIGITS, NAMES = 48, 8, 40


@rows.register
def _(layer: Conv1D, x: Tensor) -> Tensor:
    return x.reshape(1, -1, x.shape[-1])


@as_matrix.register
def _(layer: Conv1D, weight: Tensor) -> Tensor:
    return weight.mT[None]


def phone_book(people: int, seed: int) -> TensorDataset:
    """Two tokens of a name and eight digits each."""
    names = torch.cartesian_prod(torch.arange(10, 10 + NAMES), torch.arange(10, 10 + NAMES))
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[seed * PEOPLE :][:people]
    return TensorDataset(torch.cat([names[chosen], torch.randint(10, (people, DIGITS), generator=generator)], 1))


class LanguageModel(PGUMixin, L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"vocab_size": 10 + NAMES, "n_positions": 2 + DIGITS, "n_embd": 64, "n_layer": 2, "n_head": 4}
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        self.model = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=0))

    def unlearning_outputs(self, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        (tokens,) = batch
        logits = self.model(tokens).logits[:, 1:-1]  # what follows the name
        return logits.flatten(0, 1), tokens[:, 2:].flatten()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(*self.unlearning_outputs(batch))

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def trainer(max_epochs: int, callback: L.Callback) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=max_epochs, callbacks=[callback], accelerator="cpu", **quiet)


def main() -> None:
    L.seed_everything(0, verbose=False)
    people, strangers, model, learn = phone_book(PEOPLE, 0), phone_book(PEOPLE, 1), LanguageModel(), PGUCallback()
    loader, validation = DataLoader(people, 16, shuffle=True), DataLoader(strangers, 48)
    trainer(120, learn).fit(model, loader, validation)
    parts = {"forgotten": DataLoader(Subset(people, range(5)), 80), "others": DataLoader(Subset(people, range(5, PEOPLE)), 80)}
    before = {name: score(model, part)[0].accuracy for name, part in parts.items()}

    settings = Settings(objective=Margin(), stop=AccuracyGap(slack=0.05))
    pgu = PGUCallback(ForgetRequest(indices=range(5)), retain_space=learn.space, settings=settings)
    trainer(150, pgu).fit(model, loader, validation)
    for name, part in parts.items():
        print(f"{name}: digits right {before[name]:.3f} -> {score(model, part)[0].accuracy:.3f}")
    print(pgu.report.outcome.reason, pgu.report.frozen)


if __name__ == "__main__":
    main()
