"""Decomposing a Gram matrix and making the filter, against the plain form: float64 `torch.linalg.svd`, and a dense matrix from its vectors.

Run: python -m benchmarks.decompose [--json FILE] [--sizes 576 1152 2304] [--turns 3]. The matrices are of rectified features, with twice as
many rows as columns; "few rows": an eighth. Works are done in turns, and ratios are medians over the turns.

    difference   how far the filtered update is from the plain form's, relative to it
    rank         protected directions, and the plain form's
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.timing import Row, Turns, show
from pgu_lightning.projection import Hard, Projector, Rule, Soft, Spectrum
from pgu_lightning.statistics import Gram

RULES: dict[str, Rule] = {"soft": Soft(), "hard .95": Hard(0.95, "singular")}
COLUMNS = {
    "case": ("case", ""),
    "ratio": ("baseline / ours", ".1f"),
    "seconds": ("processor seconds", ".2f"),
    "difference": ("difference", ".0e"),
    "rank": ("rank", ""),
    "plain_rank": ("plain rank", ""),
}


def features(rows: int, dim: int) -> Tensor:
    """Rectified mixtures, whose Gram has one large eigenvalue and a long tail."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, dim, generator=generator).relu()
    return (hidden @ torch.randn(dim, dim, generator=generator) / dim**0.5).relu().double()


def plain(matrix: Tensor, rule: Rule) -> tuple[Tensor, int]:
    """The filter as a dense matrix, and its rank, from the singular vectors."""
    vectors, values, _ = torch.linalg.svd(matrix)
    return dense(vectors, values, rule)


def dense(vectors: Tensor, values: Tensor, rule: Rule) -> tuple[Tensor, int]:
    """The same from singular vectors and values that are known."""
    gains = rule(values.flip(-1)[None])[0].flip(-1)
    return (vectors * gains) @ vectors.mT, int((gains <= 0.5).sum())


def ours(gram: Gram, rule: Rule) -> Projector:
    """A projector."""
    (spectrum,) = Spectrum.of_all({0: gram}, {0: rule} if isinstance(rule, Soft) else {}).values()
    return Projector(spectrum, rule)


def measure(dim: int, share: float, name: str, turns: int) -> Row:
    """One size, share of rows to columns, and rule."""
    rule, x = RULES[name], features(int(share * dim), dim)
    gram = Gram((x.mT @ x)[None], len(x))
    found = Turns({"ours": lambda: ours(gram, rule), "plain": lambda: plain(gram.matrix[0], rule)}, turns)
    projector, (expected, rank) = ours(gram, rule), plain(gram.matrix[0], rule)
    update = torch.randn(64, dim)
    expected = update.double() @ expected
    return {
        "case": f"{name}, {dim}" + (", few rows" if share < 1 else ""),
        "ratio": found.ratio("plain", "ours"),
        "seconds": found.seconds("ours"),
        "difference": float((projector(update[None])[0] - expected).norm() / expected.norm()),
        "rank": projector.rank,
        "plain_rank": rank,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--sizes", type=int, nargs="+", default=[576, 1152, 2304], help="columns")
    parser.add_argument("--turns", type=int, default=3, help="turns that count")
    options = parser.parse_args(arguments)
    rows = [measure(dim, share, name, options.turns) for dim in options.sizes for share in (2, 1 / 8) for name in RULES]
    show(rows, COLUMNS, options.json)


if __name__ == "__main__":
    main()
