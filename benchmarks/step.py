"""What an unlearning step costs against a plain SGD step of the same network, and what of that is the projection.

Run: python -m benchmarks.step [--json FILE] [--networks SmallVGG ...] [--batch 128] [--turns 3]. Works are done in turns, and ratios are
medians over the turns. The statistics are made up, since a product takes the same time whatever it multiplies: hard rules protect half the
directions of each layer, which is the most that they can cost.

    step            loss, gradients, optimizer and filter, as with trust_radius=None: the passes of a plain step
    trust region    the default without validation data: one more forward pass, for the parabola
    with anchor     the default with validation data: a second batch, three more forward passes (the original's answers, and the parabola)
    filter alone    against a dense product with P and one with the Gram matrix, which says what the step's response is
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.networks import CLASSES, NETWORKS
from benchmarks.timing import Row, Turns, show
from pgu_lightning.evaluation import Scores
from pgu_lightning.projection import Damped, Hard, Projector, Rule, Soft, Spectrum, UpdateGuard
from pgu_lightning.settings import Settings
from pgu_lightning.statistics import named_layers, survey
from pgu_lightning.statistics.layers import weight_of
from pgu_lightning.unlearner import Unlearner

RULES: dict[str, Rule] = {"soft": Soft(), "hard": Hard(1.0)}
VARIANTS: dict[str, tuple[bool, float | None, tuple[str, ...]]] = {
    "step": (False, None, ("plain",)),
    "trust region": (False, 0.01, ("plain", "forward")),
    "with anchor": (True, 0.01, ("plain", "plain", "forward", "forward", "forward")),
}
"""Whether there is an anchor, the radius, and the passes that belong to it."""
COLUMNS = {
    "case": ("case", ""),
    "cost": ("time / plain step", ".2f"),
    "cost_of_projection": ("time / same passes", ".2f"),
    "ratio": ("baseline / ours", ".2f"),
    "fraction_of_peak": ("of peak", ".0%"),
    "seconds": ("processor seconds", ".3f"),
}


def made_up(shape: Sequence[int], rule: Rule) -> Spectrum | Damped:
    """Statistics of which a hard rule protects just under half: then the trust region has to multiply with the Gram matrix too."""
    groups, _, dim = shape
    values = (torch.arange(dim) > dim // 2).double().expand(groups, dim).contiguous()
    matrix = torch.randn(groups, dim, dim, dtype=torch.float64) / dim
    matrix = matrix + matrix.mT
    return Damped(values, matrix, 0.0, matrix) if isinstance(rule, Soft) else Spectrum(values, matrix, 0.0, matrix)


class Filters:
    """What guards a network's layers, under one rule."""

    def __init__(self, network: nn.Module, rule: Rule) -> None:
        modules, protected = dict(named_layers(network)), [layer for layer in survey(network) if layer.gram is not None]
        self.rule, self.layers = rule, {layer.name: modules[layer.name] for layer in protected}
        spectra = {layer.name: made_up(layer.shape, rule) for layer in protected}
        self.projectors = {name: Projector(spectrum, rule, weight_of(self.layers[name])) for name, spectrum in spectra.items()}
        self.matrices = {name: spectrum.matrix.float() for name, spectrum in spectra.items()}
        self.updates = {layer.name: torch.randn(layer.shape) for layer in protected}

    @torch.no_grad()
    def __call__(self) -> None:
        """Filter an update of every layer."""
        for name, update in self.updates.items():
            self.projectors[name].measured(update)

    @torch.no_grad()
    def plain(self) -> None:
        """Every layer's update times a dense matrix, and the response of what is left."""
        for name, update in self.updates.items():
            allowed = update @ self.matrices[name]  # of the size and type of P
            float(((allowed @ self.matrices[name]) * allowed).sum())

    def step(self, network: nn.Module, batch: tuple[Tensor, Tensor], anchor: bool, radius: float | None) -> Callable[[], None]:
        """An unlearning step."""
        guard = UpdateGuard(self.layers, self.projectors, self.matrices)
        settings = Settings(rule=self.rule, trust_radius=radius)
        unlearner = Unlearner(settings, "class", guard, lambda batch: (network(batch[0]), batch[1]))
        few = tuple(part[:8] for part in batch)
        with torch.no_grad():
            scores = Scores.of(network.eval()(few[0]), few[1])
        unlearner.start(scores, scores if anchor else None, CLASSES)
        optimizer = torch.optim.SGD(guard.weights.values(), lr=1e-6)

        def step() -> None:
            network.eval()
            optimizer.zero_grad()
            unlearner.loss(batch, batch if anchor else None, torch.arange(len(batch[1]))).backward()
            unlearner.check_gradients(guard.weights.values())
            optimizer.step()
            unlearner.after_step()

        return step


def plain_step(network: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """A training step on the weights that unlearning moves."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)

    def step() -> None:
        network.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(batch[0]), batch[1]).backward()
        optimizer.step()

    return step


def measure(name: str, size: int, turns: int, variants: Sequence[str]) -> list[Row]:
    """Rows of one network."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network = make(shape, CLASSES)
    batch = torch.randn(size, *shape), torch.arange(size) % CLASSES

    @torch.no_grad()
    def forward() -> None:
        network.eval()(batch[0])

    works: dict[str, Callable[[], object]] = {"plain": plain_step(network, batch), "forward": forward}
    rows: list[Row] = []
    filters = {rule_name: Filters(network, rule) for rule_name, rule in RULES.items()}
    steps = {f"{rule}, {variant}": filters[rule].step(network, batch, *VARIANTS[variant][:2]) for rule in RULES for variant in variants}
    found = Turns({**works, **steps}, turns)
    rows = [
        {
            "case": f"{name}, {case}",
            "cost": found.ratio(case, "plain"),
            "cost_of_projection": found.ratio(case, *VARIANTS[case.split(", ")[1]][2]),
            "ratio": found.ratio("plain", case),
            "seconds": found.seconds(case),
        }
        for case in steps
    ]
    for rule, one in filters.items():
        operations = sum(2.0 * update.numel() * update.shape[-1] for update in one.updates.values())  # of either rule here
        alone = Turns({"ours": one, "plain": one.plain}, 2 * turns)
        known = {"ratio": alone.ratio("plain", "ours"), "fraction_of_peak": alone.fraction_of_peak("ours", operations)}
        rows.append({"case": f"{name}, {rule}, filter alone", **known, "seconds": alone.seconds("ours")})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=128, help="samples of a step")
    parser.add_argument("--turns", type=int, default=3, help="turns that count")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args(arguments)
    rows = [row for name in options.networks for row in measure(name, options.batch, options.turns, options.variants)]
    show(rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
