"""Gram matrices of networks against the plain form, in the same run: float64 product of all unfolded patches, added to a float64 sum.

Run: python -m benchmarks.gram [--json FILE] [--networks WORD ...]. One row a layer, one a network over the sums of its layers.

- times faster: seconds of the plain form over ours.
- of peak: multiplications that were done over those that a large float32 product does in the same time.
- of 13 taps: the same for the fewest that a 3 x 3 convolution of stride 1 can do; those at the border are fewer still.
- forward: our seconds over those of the layer's own forward pass.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.networks import CLASSES, NETWORKS
from benchmarks.timing import Row, Turns, show
from pgu_lightning.statistics.attention import source
from pgu_lightning.statistics.moment import moment
from pgu_lightning.statistics.survey import named_layers, survey

LARGEST = 2**27
"""Bytes of patches in float64 that the plain form is given at a time: it has a batch as large as that allows."""

COLUMNS = {
    "case": ("case", ""),
    "layers": ("layers", ""),
    "ms": ("ms a sample", ".3f"),
    "ratio": ("times faster", ".1f"),
    "fraction_of_peak": ("of peak", ".0%"),
    "fraction_of_13_taps": ("of 13 taps", ".0%"),
    "forward_passes": ("forward", ".1f"),
}


def plain(layer: nn.Module, x: Tensor, total: Tensor) -> None:
    """Add the products of a layer's rows to ``total`` as they are written; attention has matrices of queries, of keys and of values."""
    if isinstance(layer, nn.Conv2d):
        every = F.unfold(x.double(), layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT.reshape(-1, len(total))
    else:
        every = x.reshape(-1, len(total)).double()
    for _ in range(3 if isinstance(layer, nn.MultiheadAttention) else 1):
        total += every.T @ every


class Multiplications(TorchDispatchMode):
    """Counts those of matrix products."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and do."""
        if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default, torch.ops.aten.bmm.default):
            self.count += args[-2].numel() * args[-1].shape[-1]
        if function is torch.ops.aten.convolution_backward.default:
            self.count += args[0][:, 0].numel() * args[2].numel()  # positions, weights
        return function(*args, **kwargs or {})


def inputs(network: nn.Module, images: Tensor) -> list[tuple[str, nn.Module, Tensor, int]]:
    """Name, layer and input of the first layer of each kind and size, and how many there are; of attention both projections."""
    found: dict[str, tuple[str, nn.Module, Tensor]] = {}
    often: Counter[str] = Counter()
    modules = dict(named_layers(network))

    def hook(name: str, layer: Any, received: Any) -> Any:
        def take(called: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = received((called, given, named))[0]
            kind = f"{type(layer).__name__} {dim_of(layer)} {getattr(layer, 'stride', '')} {tuple(x.shape)}"
            found.setdefault(kind, (name, layer, x.clone()))
            often[kind] += 1

        return take

    handles = []
    for info in survey(network):
        if info.gram is not None:
            called, received = source(modules[info.name], modules.get(info.name.rpartition(".")[0]))
            taken = hook(info.name, modules[info.name], received)
            handles.append(called.register_forward_pre_hook(taken, with_kwargs=True))
    torch.backends.mha.set_fastpath_enabled(False)
    network.eval()(images)
    torch.backends.mha.set_fastpath_enabled(True)
    for handle in handles:
        handle.remove()
    return [(*entry, often[kind]) for kind, entry in found.items()]


def dim_of(layer: Any) -> int:
    """Columns of a layer's matrix."""
    return layer.embed_dim if isinstance(layer, nn.MultiheadAttention) else layer.weight[0].numel()


def of_layer(layer: Any, x: Tensor, turns: int) -> Row:
    """Milliseconds a sample, times faster, and what was done of the peak."""
    dim, attention = dim_of(layer), isinstance(layer, nn.MultiheadAttention)
    rows = x[:1].numel() // dim if not isinstance(layer, nn.Conv2d) else layer(x[:1])[0, 0].numel()
    few = x[: max(1, LARGEST // (8 * rows * dim))]
    total = torch.zeros(dim, dim, dtype=torch.float64)
    sums = moment(nn.Linear(dim, 1) if attention else layer)
    # Rows may wait for others: as many batches as it takes until all of them were multiplied.
    batches = max(1, -(-1024 // (rows * len(x))))

    def ours() -> None:
        for _ in range(batches):
            sums.add(x)

    works = {"ours": ours, "plain": lambda: plain(layer, few, total)}
    with Multiplications() as done:
        ours()
    found = Turns(works if attention else works | {"forward": lambda: layer(x)}, turns)
    samples = len(x) * batches
    reached = found.fraction_of_peak("ours", 2 * done.count)
    row: Row = {
        "ms": 1000 * found.seconds("ours") / samples,
        "plain_ms": 1000 * found.seconds("plain") / len(few),
        "ratio": found.ratio("plain", "ours") * samples / len(few),
        "fraction_of_peak": reached,
    }
    if not attention:
        row["forward_passes"] = found.ratio("ours", "forward") / batches
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.stride == (1, 1):
        row["fraction_of_13_taps"] = reached * 13 * layer.in_channels**2 * rows * samples / done.count
    return row


@torch.no_grad()
def measure(networks: Sequence[str], turns: int, batch: int) -> list[Row]:
    """One row a layer, and one a network."""
    results: list[Row] = []
    for name in networks:
        make, image = NETWORKS[name]
        layers: list[Row] = []
        for layer_name, layer, x, often in inputs(make(image, CLASSES), torch.randn(batch, *image)):
            layers.append({"case": f"{name}: {layer_name}", "layers": often, **of_layer(layer, x, turns)})
        own, base = (sum(row["layers"] * row[key] for row in layers) for key in ("ms", "plain_ms"))  # type: ignore[operator, misc]
        count = sum(row["layers"] for row in layers)  # type: ignore[misc]
        results += [*layers, {"case": name, "layers": count, "ms": own, "plain_ms": base, "ratio": base / own}]
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--networks", nargs="*", default=[""], help="those whose names contain one of these words; all")
    parser.add_argument("--turns", type=int, default=3, help="how often each is timed")
    parser.add_argument("--batch", type=int, default=64, help="samples in a batch")
    given = parser.parse_args(arguments)
    chosen = [name for name in NETWORKS if any(word in name for word in given.networks)]
    show(measure(chosen, given.turns, given.batch), COLUMNS, given.json)


if __name__ == "__main__":
    main()
