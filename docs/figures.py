"""The figures of "How it works", measured on digits. Run: python docs/figures.py [FOLDER]."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L
import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from pgu_lightning import ForgetRequest, PGUCallback, Report, RetainSpace
from pgu_lightning.data import Digits
from pgu_lightning.models import Classifier, SmallCNN
from pgu_lightning.projection import Hard, Rule, Soft, Spectrum

LAYERS = {"network.features.4": "second convolution", "network.features.8": "third convolution", "network.classifier.3": "last layer"}


def forget(classes: list[int]) -> tuple[RetainSpace, Report]:
    """Statistics of a small network on digits, and the report of its forgetting."""
    L.seed_everything(0, verbose=False)
    data = Digits()
    data.setup()
    model = Classifier(SmallCNN(data.shape, data.num_classes), lambda weights: torch.optim.AdamW(weights, 2e-3), epochs=15)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    learn = PGUCallback()
    L.Trainer(max_epochs=15, accelerator="cpu", callbacks=[learn], **quiet).fit(model, datamodule=data)
    pgu = PGUCallback(ForgetRequest(classes=classes), retain_space=learn.space)
    L.Trainer(max_epochs=100, accelerator="cpu", callbacks=[pgu], **quiet).fit(model, datamodule=data)
    return learn.space, pgu.report


def spectra(space: RetainSpace) -> Figure:
    figure, axes = axis("direction, from the largest eigenvalue down", "share of the largest eigenvalue")
    for name, label in LAYERS.items():
        values = Spectrum.of(space.grams[name]).values[0].flip(0)
        share = (values / values[0]).clamp(min=1e-12)
        axes.semilogy(torch.arange(1, len(share) + 1) / len(share), share, label=f"{label}, {len(share)} directions")
    axes.set_ylim(1e-9, 1.5)
    axes.legend(frameon=False)
    return figure


def gains(space: RetainSpace) -> Figure:
    figure, axes = axis("eigenvalue, as a share of the largest", "what passes of an update")
    values = Spectrum.of(space.grams["network.classifier.3"]).values
    rules: dict[str, Rule] = {"soft, damping 0.01": Soft(0.01), "hard, 95% of the energy": Hard(0.95, "energy")}
    for label, rule in rules.items():
        axes.semilogx((values / values.max())[0].clamp(min=1e-9), rule(values)[0], ".-", markersize=3, label=label)
    axes.legend(frameon=False)
    return figure


def forgetting(report: Report) -> Figure:
    figure, axes = axis("step", "accuracy")
    steps = [point.step for point in report.curve]
    axes.plot(steps, [point.forget_accuracy for point in report.curve], label="forget set")
    axes.plot(steps, [point.validation_accuracy for point in report.curve], label="validation, other classes")
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False)
    return figure


def axis(x: str, y: str) -> tuple[Figure, mpl.axes.Axes]:
    figure = Figure(figsize=(6.4, 3), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def main(folder: Path) -> None:
    mpl.rcParams["svg.hashsalt"] = "pgu-lightning"  # the same picture is the same file
    space, report = forget([3])
    for figure, name in ((spectra(space), "spectra"), (gains(space), "gains"), (forgetting(report), "forgetting")):
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "figures")
