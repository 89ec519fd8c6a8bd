from __future__ import annotations

from collections.abc import Callable, Iterable

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchmetrics.functional.classification import multiclass_accuracy

Batch = tuple[Tensor, Tensor]


class Classifier(L.LightningModule):
    """A network trained with cross entropy and a learning rate that follows a half cosine from its start to 0 over ``epochs``.

    Logs ``train/loss``, and ``loss`` and ``accuracy`` under ``val/`` and ``test/``, as means over the epoch's samples.

    Args:
        network: Maps (N, C, H, W) to logits, (N, classes).
        optimizer: Called with the parameters; ``functools.partial(torch.optim.AdamW, lr=1e-3)``, say.
        epochs: Number of epochs of the recipe, for ``Trainer(max_epochs=...)``.
        augment: Applied to the images of a training step, and nowhere else: statistics and scores are of the images as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        epochs: int,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.epochs = epochs
        self._optimizer = optimizer
        self._augment = augment

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (N, classes), of images, (N, C, H, W)."""
        return self.network(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross entropy of the batch."""
        images, labels = batch
        loss = cross_entropy(self(images if self._augment is None else self._augment(images)), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(labels), sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy under ``val/``."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy under ``test/``."""
        self._evaluate("test", batch)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The recipe's optimizer, with its learning rate set anew at each epoch."""
        optimizer = self._optimizer(self.parameters())
        return {"optimizer": optimizer, "lr_scheduler": CosineAnnealingLR(optimizer, T_max=self.epochs)}

    def _evaluate(self, stage: str, batch: Batch) -> None:
        images, labels = batch
        logits = self(images)
        scores = {
            f"{stage}/loss": cross_entropy(logits, labels),
            f"{stage}/accuracy": multiclass_accuracy(logits, labels, num_classes=logits.shape[1], average="micro"),
        }
        self.log_dict(scores, batch_size=len(labels), sync_dist=True)
