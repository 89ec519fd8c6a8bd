from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import torch

from pgu_lightning.data.arrays import ArrayDataset, Common, ImageData

GRATINGS = 4
CHUNK = 1024


class Textures(ImageData):
    """Synthetic images of any size: each class is a random mixture of oriented sinusoid gratings, and classes overlap.

    With K classes of G gratings (frequency f, strength w by channel), sample n of class y with another class z is

        image[c] = sum_{k in {y, z}} mix_k sum_g w[k, g, c] cos(2 pi f[k, g] . (row, column) + phase[n, k, g]) + noise

    where mix_y = amplitude (1 - o), mix_z = amplitude o, o uniform in [0, overlap], amplitude uniform in [.5, 1.5]. At an overlap above .5
    some samples look more like the other class: they can only be memorised.

    Args:
        shape: (C, H, W) of one image.
        num_classes: Number of classes.
        train_size: Number of training images.
        validation_size: Number of validation images.
        test_size: Number of test images.
        overlap: Greatest weight of the other class's pattern, in [0, 1].
        noise: Standard deviation of the noise added to each pixel.
        **common: Arguments of :class:`ImageData`; ``split_seed`` chooses the classes and the samples.

    Raises:
        ValueError: If there are fewer than two classes or ``overlap`` is not in [0, 1].
    """

    def __init__(
        self,
        shape: Sequence[int] = (3, 32, 32),
        num_classes: int = 10,
        train_size: int = 2_000,
        validation_size: int = 500,
        test_size: int = 1_000,
        overlap: float = 0.6,
        noise: float = 0.5,
        **common: Unpack[Common],
    ) -> None:
        if num_classes < 2 or not 0 <= overlap <= 1:
            raise ValueError(f"textures need data.num_classes >= 2 and data.overlap in [0, 1], got {num_classes} and {overlap}")
        super().__init__(class_names=[f"texture {label}" for label in range(num_classes)], shape=shape, **common)
        self.sizes = (train_size, validation_size, test_size)
        self.overlap = overlap
        self.noise = noise

    def splits(self) -> tuple[ArrayDataset, ArrayDataset, ArrayDataset]:
        """Images of about unit variance, float32."""
        generator = torch.Generator().manual_seed(self.split_seed)
        classes, (channels, height, width) = self.num_classes, self.shape
        angle = math.pi * torch.rand(classes * GRATINGS, 1, generator=generator)
        frequency = 0.05 + 0.2 * torch.rand(classes * GRATINGS, 1, generator=generator)  # in cycles per pixel
        strength = torch.randn(classes, GRATINGS, channels, generator=generator) / math.sqrt(GRATINGS / 2)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        place = 2 * math.pi * frequency * (angle.sin() * rows.flatten() + angle.cos() * columns.flatten())  # (classes * gratings, pixels)
        waves = torch.cat([place.cos(), -place.sin()])  # cos(place + phase) = cos(phase) cos(place) - sin(phase) sin(place)

        def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
            labels = torch.randint(classes, (count,), generator=generator)
            others = (labels + torch.randint(1, classes, (count,), generator=generator)) % classes
            share = self.overlap * torch.rand(count, generator=generator)
            amplitude = 0.5 + torch.rand(count, generator=generator)
            sample = torch.arange(count)
            mix = torch.zeros(count, classes)
            mix[sample, labels] = amplitude * (1 - share)
            mix[sample, others] = amplitude * share
            phase = 2 * math.pi * torch.rand(count, classes, GRATINGS, generator=generator)
            parts = [torch.einsum("nk,kgc,nkg->nckg", mix, strength, turn).flatten(2) for turn in (phase.cos(), phase.sin())]
            images = (torch.cat(parts, dim=2) @ waves).view(count, channels, height, width)
            return images + self.noise * torch.randn(images.shape, generator=generator), labels

        def part(size: int) -> ArrayDataset:
            images, labels = zip(*(draw(min(CHUNK, size - start)) for start in range(0, size, CHUNK)), strict=True)
            return ArrayDataset(torch.cat(images), torch.cat(labels))

        train, validation, test = map(part, self.sizes)
        return train, validation, test
