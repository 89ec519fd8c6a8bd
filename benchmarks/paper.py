"""The paper's experiments on data that is at hand: each run of the application, and a table a request or a setting.

Run: python benchmarks/paper.py [--data fashion_mnist | textures] [--output FOLDER] [--experiments NAME ...] [--table] [KEY=VALUE ...]

What a folder already has is not run again. --table only prints the tables, as Markdown, of what is there. KEY=VALUE are the application's
own overrides, for every run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pgu_lightning.records import EarlierRequest, Report
from pgu_lightning.report.table import MODELS, number

EXPERIMENTS = (
    "samples_smallvgg_cifar10",
    "samples_allcnn_cifar10",
    "classes_resnet18_tinyimagenet",
    "depoison_smallvgg_cifar10",
    "mia_smallvgg_cifar10",
)
COLUMNS = {
    "forget": "forget_accuracy",
    "retain": "retain_accuracy",
    "test": "test_accuracy",
    "AUC": "mia_auc",
    "attack": "trained_attack",
}


def command(experiment: str, data: str, output: Path, overrides: Sequence[str]) -> list[str]:
    """The application's command for one experiment; all its runs lie under ``output``."""
    return [
        *(sys.executable, "-m", "pgu_lightning", f"experiment=paper/{experiment}", f"data={data}", "logger=none"),
        *(f"hydra.run.dir={output}", f"hydra.sweep.dir={output}", f"cache={output.parent / 'cache'}", *overrides),
    ]


def run(experiment: str, data: str, output: Path, overrides: Sequence[str]) -> float:
    """Seconds that the experiment took."""
    started = time.perf_counter()
    subprocess.run(command(experiment, data, output, overrides), check=True)
    return time.perf_counter() - started


def reports(output: Path) -> list[Report]:
    """One a request or setting, in their order."""
    paths = [path for path in output.rglob("report.json") if not Report.load(path).stages]
    return [Report.load(path) for path in sorted(paths, key=lambda path: [int(digits) for digits in re.findall(r"\d+", str(path))])]


def table(output: Path) -> Iterator[str]:
    """The lines of a Markdown table: original / unlearned / retrained of each request, and what became of earlier requests."""
    found = reports(output)
    shown = [heading for heading, name in COLUMNS.items() if any(name in metrics for one in found for metrics in _models(one).values())]
    earlier = any(one.earlier for one in found)
    headings = ["request", *shown, *(["forgotten before"] if earlier else []), "gap", "stop rule met"]
    yield f"| {' | '.join(headings)} |"
    yield "| --- " * len(headings) + "|"
    for place, one in enumerate(found, 1):
        cells = [_triple(_models(one), COLUMNS[heading]) for heading in shown]
        past = ["; ".join(map(_past, one.earlier)) or "-"] if earlier else []
        met = "yes" if one.outcome and one.outcome.fulfilled else "no"
        yield f"| {' | '.join([_request(one, place), *cells, *past, number(one.average_gap), met])} |"


def _models(report: Report) -> Mapping[str, Mapping[str, float]]:
    attack = report.trained_attack
    return {name: {**metrics, **({"trained_attack": attack[name]} if attack else {})} for name, metrics in report.models.items()}


def _triple(models: Mapping[str, Mapping[str, float]], name: str) -> str:
    return " / ".join(number(models[model].get(name)) for model in MODELS if model in models)


def _past(earlier: EarlierRequest) -> str:
    return _triple(earlier.models, "forget_accuracy")


def _request(report: Report, place: int) -> str:
    request = report.request
    what = f"classes {', '.join(map(str, request.classes))}" if request.classes else f"{request.size} samples"
    return f"{place}: {what}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion_mnist", choices=("fashion_mnist", "textures"))
    parser.add_argument("--output", type=Path, default=Path("outputs/paper"))
    parser.add_argument("--experiments", nargs="+", default=EXPERIMENTS, choices=EXPERIMENTS, metavar="NAME")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options, overrides = parser.parse_known_args(arguments)
    root = options.output.absolute() / options.data
    for experiment in options.experiments:
        if not options.table and not (root / experiment / "done").exists():
            seconds = run(experiment, options.data, root / experiment, overrides)
            (root / experiment / "done").write_text(f"{seconds:.0f}\n")
    for experiment in options.experiments:
        if (root / experiment / "done").exists():
            seconds = (root / experiment / "done").read_text().strip()
            print(f"\n`experiment=paper/{experiment} data={options.data}`: {seconds} s\n")
            print("\n".join(table(root / experiment)))


if __name__ == "__main__":
    main()
