"""From data to filters: collecting, decomposing and making projectors, against the plain form in the same run.

Run: python -m benchmarks.end_to_end [--json FILE] [--network SmallVGG] [--samples 512] [--batch 64]. The plain form multiplies all patch
rows of every layer in float64, takes `torch.linalg.svd`, and makes a dense projection. Each is done once: it takes minutes.

    rank         the largest relative difference of a layer's number of protected directions to the plain form's
    leak         what of a random update's response to the data passes our filters, and the plain form's: tr(D M D^T) / tr(U M U^T)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.decompose import RULES, dense, ours
from benchmarks.networks import CLASSES, NETWORKS
from benchmarks.timing import Row, show
from pgu_lightning import RetainSpace, collect
from pgu_lightning.statistics import named_layers
from pgu_lightning.statistics.layers import rows as rows_of

COLUMNS = {
    "case": ("case", ""),
    "ratio": ("baseline / ours", ".1f"),
    "seconds": ("processor seconds", ".1f"),
    "forward_passes": ("in forward passes", ".1f"),
    "rank": ("rank differs by", ".1%"),
    "leak": ("leak", ".2e"),
    "plain_leak": ("plain leak", ".2e"),
}
Result = TypeVar("Result")


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """A result, and the processor seconds that it took."""
    started = time.process_time()
    return work(), time.process_time() - started


def plain_grams(network: nn.Module, names: list[str], loader: DataLoader) -> dict[str, Tensor]:
    """All rows of each layer in float64, multiplied, batch by batch."""
    modules, grams = dict(named_layers(network)), {}

    def add(name: str, layer: nn.Module, x: Tensor) -> None:
        every = rows_of(layer, x).double()
        product = every.mT @ every
        grams[name] = grams[name] + product if name in grams else product

    hooks = [
        modules[name].register_forward_pre_hook(lambda layer, inputs, name=name: add(name, layer, inputs[0].detach())) for name in names
    ]
    with torch.no_grad():
        for x, _ in loader:
            network(x)
    for hook in hooks:
        hook.remove()
    return grams


def measure(name: str, samples: int, batch: int) -> list[Row]:
    """Rows of one network: collecting, and everything under either rule."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network = make(shape, CLASSES).eval()
    loader = DataLoader(TensorDataset(torch.randn(samples, *shape), torch.arange(samples) % CLASSES), batch)

    @torch.no_grad()
    def forward() -> None:
        for x, _ in loader:
            network(x)

    space: RetainSpace
    space, own = timed(lambda: collect(network, loader))
    grams, baseline = timed(lambda: plain_grams(network, list(space.protected), loader))
    _, passes = timed(forward)
    first = {"ratio": baseline / own, "seconds": own, "forward_passes": own / passes}
    rows: list[Row] = [{"case": f"{name}, collecting {samples} samples", **first}]
    svd, decomposing = timed(lambda: {layer: [torch.linalg.svd(matrix) for matrix in gram] for layer, gram in grams.items()})
    for rule_name, rule in RULES.items():
        differences, leaks, seconds, plain_seconds = [], [0.0, 0.0], own, baseline + decomposing
        for layer, info in space.protected.items():
            gram = space.grams[str(info.gram)]
            projector, spent = timed(lambda: ours(gram, rule))  # noqa: B023  called at once
            seconds += spent
            parts, spent = timed(lambda: [dense(vectors, values, rule) for vectors, values, _ in svd[layer]])  # noqa: B023
            plain_seconds += spent
            rank = sum(protected for _, protected in parts)
            differences.append(abs(projector.rank - rank) / rank)
            update = torch.randn(len(parts), 16, gram.dim)
            whole = _response(update.double(), grams[layer])
            passed = projector(update).double(), update.double() @ torch.stack([part for part, _ in parts])
            leaks = [leak + _response(one, grams[layer]) / whole for leak, one in zip(leaks, passed, strict=True)]
        ratio, count = {"ratio": plain_seconds / seconds, "seconds": seconds, "forward_passes": seconds / passes}, len(space.protected)
        found = {"rank": max(differences), "leak": leaks[0] / count, "plain_leak": leaks[1] / count}
        rows.append({"case": f"{name}, all, {rule_name}", **ratio, **found})
    return rows


def _response(update: Tensor, gram: Tensor) -> float:
    return float(((update @ gram) * update).sum())


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--network", choices=["SmallCNN", "SmallVGG", "ResNet-18"], default="SmallVGG")
    parser.add_argument("--samples", type=int, default=512, help="samples to collect over")
    parser.add_argument("--batch", type=int, default=64, help="samples of a batch")
    options = parser.parse_args(arguments)
    show(measure(options.network, options.samples, options.batch), COLUMNS, options.json)


if __name__ == "__main__":
    main()
