"""torchvision's ImageFolder, transforms and ResNet: pictures that lay in the wrong folder are forgotten by their file names.

Augmentation may stay: while statistics are collected a sample's random transform follows from its position, so full minus forget is retain.

Needs torchvision. Run: python examples/image_folder.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.models import resnet18

from pgu_lightning import ForgetRequest, PGUCallback


def write_pictures(root: Path) -> None:
    """Handwritten digits 0 to 4 as root/{train,val}/CLASS/0000.png; each twentieth of those to train on is misfiled."""
    digits = load_digits(n_class=5)
    for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        misfiled = number < 600 and number % 20 == 0
        path = root / ("train" if number < 600 else "val") / str((label + misfiled) % 5) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9).astype("uint8")).save(path)


class Pictures(ImageFolder):
    @property
    def ids(self) -> list[str]:
        """One a sample: ``ForgetRequest(ids=...)`` looks there."""
        return [Path(path).stem for path, _ in self.samples]


class ResNet(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = resnet18(num_classes=5)
        self.net.conv1, self.net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()  # for small pictures
        for name in ("layer3", "layer4"):
            setattr(self.net, name, nn.Identity())
        self.net.fc = nn.Linear(128, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """A validation loader is all that unlearning asks for."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def trainer(max_epochs: int, callback: L.Callback) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(max_epochs=max_epochs, callbacks=[callback], accelerator="cpu", **quiet)


def main(root: Path) -> None:
    L.seed_everything(0, verbose=False)
    write_pictures(root)
    plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])
    augmented = transforms.Compose([transforms.RandomCrop(8, padding=1), plain])
    train, validation = Pictures(root / "train", augmented), Pictures(root / "val", plain)
    loaders, model, learn = (DataLoader(train, 64, shuffle=True), DataLoader(validation, 100)), ResNet(), PGUCallback()
    trainer(14, learn).fit(model, *loaders)
    misfiled = [f"{number:04d}" for number in range(0, 600, 20)]
    pgu = PGUCallback(ForgetRequest(ids=misfiled, kind="poison"), retain_space=learn.space)
    trainer(40, pgu).fit(model, *loaders)
    for which, metrics in pgu.report.models.items():
        print(f"{which}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in metrics.items()))
    print(f"{pgu.report.request.size} pictures: {pgu.report.outcome.reason}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/image_folder"))
