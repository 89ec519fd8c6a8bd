"""Pictures of some forgotten samples with every model's answer."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from pgu_lightning.records import Answer, Example
from pgu_lightning.requests import Split
from pgu_lightning.views import View


def gallery(split: Split, probabilities: Mapping[str, Tensor], count: int) -> tuple[Example, ...]:
    """Choose samples evenly over the forget set.

    Args:
        split: Its forget part yields (image, label), image (C, H, W).
        probabilities: Of each model on the forget set, (samples, classes).
        count: How many at most.

    Returns:
        One example a sample, named by its entry in the split.
    """
    forget, entries = split.forget, split.entries()
    chosen = torch.linspace(0, len(forget) - 1, min(count, len(forget))).long().tolist()
    return tuple(_example(forget, entries[index], index, probabilities) for index in chosen)


def _example(forget: View, entry: str, index: int, probabilities: Mapping[str, Tensor]) -> Example:
    image, label = forget[index]
    answers = {name: Answer(int(p[index].argmax()), float(p[index].max())) for name, p in probabilities.items()}
    return Example(entry, int(label), _png(image), answers)


def _png(image: Tensor) -> str:
    """A PNG data URI of an image of any value range, (C, H, W) with 1 or 3 channels."""
    low, high = image.amin(), image.amax()
    pixels = ((image - low) / (high - low).clamp(min=1e-12) * 255).round().to(torch.uint8)
    picture = Image.fromarray(pixels.movedim(0, -1).squeeze(-1).numpy())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
