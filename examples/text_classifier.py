"""A Hugging Face transformer for text classification, built from a config (no download), forgets two authors' messages.

A batch is a dict, so the module says what its logits and labels are; the mask keeps padding out of the statistics.

Needs transformers. Run: python examples/text_classifier.py
"""

from __future__ import annotations

import random

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from pgu_lightning import ForgetRequest, PGUCallback, PGUMixin

TOPICS = {
    "cooking": "boil the rice add salt and oil then bake bread with butter in a hot oven",
    "sport": "the team won a match after a late goal and ran for the cup in the final race",
    "weather": "rain and strong wind in the north while sun and light clouds stay over the coast",
}
VOCABULARY = ["[PAD]", *sorted({word for text in TOPICS.values() for word in text.split()})]
LENGTH = 12


class Messages(Dataset):
    """Words of a topic mixed with a few of another; ``metadata`` is where ``ForgetRequest(where=...)`` looks."""

    def __init__(self, samples: int, seed: int) -> None:
        generator = random.Random(seed)
        self.labels = [sample % len(TOPICS) for sample in range(samples)]
        self.metadata = [{"author": f"author-{sample % 20}"} for sample in range(samples)]
        texts = [text.split() for text in TOPICS.values()]
        rare = [generator.choices(texts[label], k=generator.randint(3, 8)) for label in self.labels]
        self.texts = [words + generator.choices(generator.choice(texts), k=4) for words in rare]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        words = torch.tensor([VOCABULARY.index(word) for word in self.texts[index]])
        ids = torch.nn.functional.pad(words, (0, LENGTH - len(words)))
        return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": torch.tensor(self.labels[index])}


class TextClassifier(PGUMixin, L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        sizes = {"vocab_size": len(VOCABULARY), "max_position_embeddings": LENGTH, "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96}
        self.model = DistilBertForSequenceClassification(DistilBertConfig(**sizes, num_labels=len(TOPICS)))

    def unlearning_outputs(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return self.model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits, batch["labels"]

    def row_mask(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["attention_mask"].bool()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """A validation loader is all that unlearning asks for."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def trainer(max_epochs: int, callback: L.Callback) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=max_epochs, callbacks=[callback], accelerator="cpu", **quiet)


def main() -> None:
    L.seed_everything(0, verbose=False)
    train, validation, model = DataLoader(Messages(300, 0), 32, shuffle=True), DataLoader(Messages(300, 1), 100), TextClassifier()
    learn = PGUCallback()
    trainer(12, learn).fit(model, train, validation)
    request = ForgetRequest(where=lambda message: message["author"] in ("author-3", "author-14"))
    pgu = PGUCallback(request, retain_space=learn.space)
    trainer(100, pgu).fit(model, train, validation)
    for which, metrics in pgu.report.models.items():
        print(f"{which}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items()))
    print(pgu.report.outcome.reason)


if __name__ == "__main__":
    main()
