"""What collecting costs: one pass over the data with all Gram matrices, against one epoch of plain training (SGD) of the same network.

Run: python -m benchmarks.collect [--json FILE] [--networks WORD ...].

- epochs: processor seconds of collecting 50,000 samples over those of training on as many, put together from batches and what comes once
  (the matrices are made and mirrored, the weights are fingerprinted).
- peaks: the most memory that a process had beyond what it had before it made the network; what may be added to the matrices is a quarter of
  what training takes.
- lost with a share of the samples (``Settings(samples=...)``), on digits: of what the exact hard subspace at 95% holds of all data, how
  much the subspace of equal rank from that share misses, in the layer where that is most.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.networks import CLASSES, NETWORKS
from benchmarks.timing import Row, Turns, show
from pgu_lightning import collect
from pgu_lightning.statistics import gram_bytes, survey

SAMPLES = 50_000
COLUMNS = {
    "case": ("case", ""),
    "epochs": ("epochs", ".2f"),
    "ratio": ("training / collecting", ".2f"),
    "grams_mb": ("matrices, MB", ".0f"),
    "training_mb": ("peak of training, MB", ".0f"),
    "collecting_mb": ("peak of collecting, MB", ".0f"),
    "lost": ("lost", ".1e"),
    "beyond": ("(collecting - matrices) / training", ".0%"),
}


def data(name: str, samples: int) -> TensorDataset:
    """Random images and labels."""
    return TensorDataset(torch.randn(samples, *NETWORKS[name][1]), torch.arange(samples) % CLASSES)


def train(network: nn.Module, loader: DataLoader[Any], rate: float = 1e-4) -> None:
    """One epoch."""
    optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=0.9)
    network.train()
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()


WORK: dict[str, Callable[[nn.Module, DataLoader[Any]], object]] = {"train": train, "collect": collect}


def cost(name: str, batch: int, turns: int) -> Row:
    """Epochs of training that collecting takes."""
    make, image = NETWORKS[name]
    network, (one, three) = make(image, CLASSES), (DataLoader(data(name, batch * count), batch) for count in (1, 3))
    loaders = {1: one, 3: three}
    works = {f"{what} {count}": (lambda what=what, count=count: WORK[what](network, loaders[count])) for what in WORK for count in (1, 3)}
    found = Turns(works, turns)
    each = {what: (found.seconds(f"{what} 3") - found.seconds(f"{what} 1")) / 2 for what in WORK}
    once = max(0.0, found.seconds("collect 1") - each["collect"])
    epochs = (each["collect"] + once * batch / SAMPLES) / each["train"]
    return {"case": name, "epochs": epochs, "ratio": 1 / epochs, "once_seconds": once}


def peak(what: str, name: str, batch: int) -> int:
    """Bytes that a fresh process takes for one of ``WORK`` over two batches."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_peak, args=(there, what, name, batch))
    process.start()
    found = here.recv()
    process.join()
    return int(found)


def _peak(answer: Any, what: str, name: str, batch: int) -> None:
    torch.set_num_threads(1)
    make, image = NETWORKS[name]
    loader = DataLoader(data(name, 2 * batch), batch)
    torch.randn(512, 512) @ torch.randn(512, 512)  # so that libraries are loaded
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    WORK[what](make(image, CLASSES), loader)
    answer.send(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def lost(shares: Sequence[float], epochs: int = 5) -> list[Row]:
    """What the leading subspace misses when it is taken from a share of the samples: SmallCNN, trained on digits."""
    images, labels = load_digits(return_X_y=True)
    dataset = TensorDataset(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(labels))
    torch.manual_seed(0)
    make, image = NETWORKS["SmallCNN"]
    network, loader = make(image, CLASSES), DataLoader(dataset, 64, shuffle=True)
    for _ in range(epochs):
        train(network, loader, rate=0.05)
    exact, rows = collect(network, loader).grams, []
    for share in shares:
        misses = []
        for key, gram in collect(network, loader, samples=share).grams.items():
            values = torch.linalg.eigvalsh(exact[key].matrix[0])
            rank = int((values.flip(0).cumsum(0) < 0.95 * values.sum()).sum()) + 1
            found = torch.linalg.eigh(gram.matrix[0])[1][:, -rank:]
            held = (exact[key].matrix[0] @ found * found).sum() / values[-rank:].sum()
            misses.append(1 - float(held))
        rows.append({"case": f"samples={share}", "lost": max(misses)})
    return rows


def measure(networks: Sequence[str], turns: int, batch: int) -> list[Row]:
    """One row a network."""
    rows = []
    for name in networks:
        make, image = NETWORKS[name]
        grams = sum(gram_bytes(survey(make(image, CLASSES))).values())
        training, collecting = (peak(what, name, batch) for what in WORK)
        memory = {"grams_mb": grams / 1e6, "training_mb": training / 1e6, "collecting_mb": collecting / 1e6}
        rows.append({**cost(name, batch, turns), **memory, "beyond": (collecting - grams) / training})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--networks", nargs="*", default=[""], help="those whose names contain one of these words; all")
    parser.add_argument("--turns", type=int, default=3, help="how often each is timed")
    parser.add_argument("--batch", type=int, default=16, help="samples in a batch")
    given = parser.parse_args(arguments)
    chosen = [name for name in NETWORKS if any(word in name for word in given.networks)]
    show([*measure(chosen, given.turns, given.batch), *lost([0.02, 0.05, 0.1, 0.25, 0.5])], COLUMNS, given.json)


if __name__ == "__main__":
    main()
