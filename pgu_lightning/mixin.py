"""What a LightningModule may be asked about unlearning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import lightning as L
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer


class PGUMixin:
    """Four questions with default answers, for a LightningModule that needs a say.

    A module whose batch is ``(x, y)`` and whose ``forward(x)`` returns logits needs no mixin. The same answers are given for modules that
    do not inherit it; it has no state and no ``training_step``.

    Example:
        >>> class Tagger(PGUMixin, L.LightningModule):
        ...     def unlearning_outputs(self, batch):
        ...         return self(batch["tokens"]).flatten(0, 1), batch["tags"].flatten()
        ...     def row_mask(self, batch):
        ...         return batch["tokens"] != 0
    """

    def unlearning_outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Run the model on a batch.

        Args:
            batch: What the loader gives, on the right device.

        Returns:
            Logits, (rows, classes), and labels, (rows,).

        Raises:
            TypeError: If the batch is not a pair ``(x, y)``.
        """
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(
                f"Expected a batch (x, y), got {type(batch).__name__}. Inherit PGUMixin and override `unlearning_outputs(self, batch)` so "
                "that it returns (logits, labels)."
            )
        x, y = batch
        return self(x), y  # type: ignore[operator]

    def row_mask(self, batch: Any) -> Tensor | None:
        """Which rows of the layers' inputs are data and not padding.

        Args:
            batch: What the loader gives.

        Returns:
            A boolean tensor that matches the leading dimensions of the inputs, such as (batch, tokens); None: all are.
        """
        return None

    def unlearning_loss(self, logits: Tensor, target: Tensor) -> Tensor | None:
        """The forget loss of a batch, a mean over its rows; None: the objective of the settings.

        Args:
            logits: (rows, classes).
            target: (rows,).
        """
        return None

    def configure_unlearning_optimizer(self, parameters: Iterable[Parameter]) -> Optimizer | None:
        """An optimizer for unlearning; None: that of the settings.

        Args:
            parameters: The protected weights, the only ones that may move.
        """
        return None


def question(module: L.LightningModule, name: str) -> Callable[..., Any]:
    """The module's own answer to one of the mixin's questions, or the default one.

    Example:
        >>> question(L.LightningModule(), "row_mask")(None) is None
        True
    """
    own = getattr(module, name, None)
    return own if callable(own) else partial(getattr(PGUMixin, name), module)
