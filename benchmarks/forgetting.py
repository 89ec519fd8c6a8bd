"""How near an unlearned model comes to one that never saw the data: tasks x models x methods x seeds, each a run of the application.

Run: python benchmarks/forgetting.py [--quick | --ablation] [--json FILE] [--tasks NAME ...] [--models NAME ...] [--methods NAME ...]
    [--seeds N ...] [--output FOLDER] [KEY=VALUE ...]

Each row compares with a model retrained at seed + 10000; the floor beside it is the same gap between that model and one retrained at
seed + 20000. Originals and references are trained once, under FOLDER/cache. Rows that FILE already has are not run again, so a benchmark
that was interrupted goes on where it stopped. KEY=VALUE are the application's own overrides, for every run.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import statistics
import warnings
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pgu_lightning.app.experiment import run
from pgu_lightning.files import atomic_write
from pgu_lightning.records import Report, average_gap

FASHION = ("data=fashion_mnist", "data.train_size=10000")
TASKS: dict[str, tuple[str, ...]] = {
    "digits_class_3": ("data=digits", "forget=class", "forget.classes=[3]"),
    "digits_samples_120": ("data=digits", "forget=samples", "forget.size=120"),
    "digits_poison_200": ("data=digits", "forget=poison", "forget.size=200"),
    "fashion_class_7": (*FASHION, "forget=class", "forget.classes=[7]"),
    "fashion_class_4": (*FASHION, "forget=class", "forget.classes=[4]"),
    "fashion_samples_2%": (*FASHION, "forget=samples", "forget.size=0.02"),
    "fashion_samples_10%": (*FASHION, "forget=samples", "forget.size=0.1"),
    "fashion_poison_10%": (*FASHION, "forget=poison", "forget.size=1000"),
    "textures_samples_10%": ("data=textures", "forget=samples", "forget.size=0.1"),
}
MODELS = ("small_cnn", "mlp", "all_cnn")
QUICK = (
    *(("digits_" + name, "small_cnn") for name in ("class_3", "samples_120", "poison_200")),
    *(("fashion_" + name, "mlp") for name in ("samples_2%", "samples_10%")),
)
SETTINGS = "method.settings."
ABLATIONS: dict[str, tuple[str, ...]] = {
    "pgu": (),
    "hard .95": (f"~{SETTINGS}rule", f"+{SETTINGS}rule={{_target_: pgu_lightning.projection.Hard, retained_variance: 0.95}}"),
    "anchor 0": (f"{SETTINGS}anchor=0.0",),
    "anchor 1": (f"{SETTINGS}anchor=1.0",),
    "anchor 20": (f"{SETTINGS}anchor=20.0",),
    "learning rate 1": (f"{SETTINGS}trust_radius=null",),
    "objectives swapped": (
        f"+{SETTINGS}objective={{class: {{_target_: pgu_lightning.objectives.Calibrated}}, "
        "samples: {_target_: pgu_lightning.objectives.Margin}, poison: {_target_: pgu_lightning.objectives.Calibrated}}",
    ),
}
ABLATION_TASKS = ("fashion_class_4", "fashion_samples_2%", "fashion_samples_10%", "fashion_poison_10%")
METRICS = ("forget_accuracy", "retain_accuracy", "test_accuracy", "mia_auc")


def methods() -> list[str]:
    """Every method config but the reference itself."""
    names = sorted(Path(file.name).stem for file in files("pgu_lightning.conf").joinpath("method").iterdir() if file.name.endswith(".yaml"))
    return [name for name in names if name != "retrain"]


@dataclass(frozen=True)
class Cell:
    """One run: ``method`` is a config's name, ``variant`` the name of what was changed about it, with its overrides."""

    task: str
    model: str
    method: str
    seed: int
    variant: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return self.variant or self.method

    def config(self) -> list[str]:
        return [*TASKS[self.task], f"model={self.model}", f"method={self.method}", f"seed={self.seed}", *self.overrides]

    @property
    def folder(self) -> str:
        return "-".join((self.task, self.model, self.title.replace(" ", "_"), str(self.seed))).replace("%", "")


def measure(cell: Cell, output: Path) -> dict[str, Any]:
    """Run one cell; its report lies in its folder under ``output`` afterwards."""
    folder = output / cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    quiet = ["logger=none", "examples=0", "preflight=false", "+trainer.enable_progress_bar=false", "floor=true"]
    places = [f"output_dir={folder}", f"cache={output / 'cache'}"]
    with initialize_config_module("pgu_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=[*quiet, *places, *cell.config()])
    with redirect_stdout(io.StringIO()):
        report = run(config, folder)
    return row(cell, report)


def row(cell: Cell, report: Report) -> dict[str, Any]:
    """What is kept of a run."""
    outcome = report.outcome
    return {
        **asdict(cell),
        **{name: dict(metrics) for name, metrics in report.models.items()},
        "average_gap": report.average_gap,
        "floor": report.floor,
        "fulfilled": None if outcome is None else outcome.fulfilled,
        "seconds": dict(report.seconds),
        "seconds_ratio": report.seconds["unlearn"] / report.seconds["retrain"],
        "uses_retain_data": report.method.uses_retain_data,
    }


def identity(cell: dict[str, Any]) -> str:
    """Two rows with the same are one."""
    return json.dumps([cell[name] for name in Cell.__dataclass_fields__])


def run_all(cells: Sequence[Cell], output: Path, file: Path | None) -> list[dict[str, Any]]:
    """The rows of all cells; what ``file`` has is taken from there, what is new is added to it at once."""
    saved: list[dict[str, Any]] = json.loads(file.read_text()) if file is not None and file.exists() else []
    known = {identity(entry): entry for entry in saved}
    for cell in (bar := tqdm(cells, unit="run", desc="Benchmark")):
        bar.set_postfix_str(f"{cell.task} {cell.model} {cell.title} seed {cell.seed}")
        key = identity(asdict(cell))
        if key in known:
            continue
        known[key] = measure(cell, output)
        if file is not None:
            text = json.dumps(list(known.values()), indent=1)
            atomic_write(file, lambda path, text=text: path.write_text(text))
    return [known[identity(asdict(cell))] for cell in cells]


def grouped(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Rows by task, model and method, over seeds."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for entry in rows:
        groups.setdefault((entry["task"], entry["model"], entry["variant"] or entry["method"]), []).append(entry)
    return groups


def show(rows: Sequence[dict[str, Any]], markdown: bool) -> None:
    """One line for each task, model and method: means over the seeds."""
    four = "forget / retain / test / AUC"
    heading = ["task", "model", "method", "seeds", four, f"retrained: {four}", "gap", "floor", "original's gap", "stop rule met", "time"]
    lines = []
    for (task, model, title), entries in grouped(rows).items():
        sets = [
            " / ".join(f"{mean(entry[name][metric] for entry in entries):.3f}" for metric in METRICS) for name in ("unlearned", "retrained")
        ]
        gaps = [mean(entry[name] for entry in entries) for name in ("average_gap", "floor")]
        before = mean(average_gap(entry["original"], entry["retrained"]) for entry in entries)
        met = f"{sum(entry['fulfilled'] is True for entry in entries)} of {len(entries)}"
        time = f"{mean(entry['seconds_ratio'] for entry in entries):.2f}"
        lines.append([task, model, title, str(len(entries)), *sets, *(f"{value:.4f}" for value in (*gaps, before)), met, time])
    if markdown:
        for line in (heading, ["---"] * len(heading), *lines):
            print("| " + " | ".join(line) + " |")
        return
    table = Table(*heading, caption="Means over seeds. Time: unlearning over retraining.")
    for line in lines:
        table.add_row(*line)
    Console(width=max(Console().width, 190)).print(table)


def mean(values: Iterable[float]) -> float:
    return statistics.mean(list(values))


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The average gap of each method, seeds as points, and the floor as a band from 0."""
    groups = grouped(rows)
    places = list(dict.fromkeys((task, model) for task, model, _ in groups))
    titles = list(dict.fromkeys(title for _, _, title in groups))
    figure = Figure(figsize=(8, 0.9 + 0.22 * len(places) * (len(titles) + 1)), layout="constrained")
    axes = figure.subplots()
    height = 1 / (len(titles) + 1)
    named: set[str] = set()
    for at, title in enumerate(titles):
        for level, (task, model) in enumerate(places):
            entries = groups.get((task, model, title), [])
            if entries:
                y, gaps = level + (at - (len(titles) - 1) / 2) * height, [entry["average_gap"] for entry in entries]
                axes.barh(y, mean(gaps), height * 0.9, color=f"C{at}", label=title if title not in named else None)
                named.add(title)
                axes.plot(gaps, [y] * len(gaps), ".", color="black", markersize=3)
    for level, place in enumerate(places):
        floor = mean(entry["floor"] for key, entries in groups.items() if key[:2] == place for entry in entries)
        axes.plot([floor, floor], [level - 0.5, level + 0.5], color="black", linewidth=1.5, label=None if level else "two retrained models")
    axes.set_yticks(range(len(places)), [f"{task}, {model}" for task, model in places])
    axes.invert_yaxis()
    axes.set_xlabel("average gap to the retrained model")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """The runs that the command asks for, those of one original next to each other."""
    extra = tuple(arguments.overrides)
    if arguments.quick:
        places = [place for place in QUICK if place[0] in arguments.tasks and place[1] in arguments.models]
    else:
        places = [(task, model) for task in arguments.tasks for model in arguments.models]
    if arguments.ablation:
        variants = [("pgu", "" if name == "pgu" else name, (*changes, *extra)) for name, changes in ABLATIONS.items()]
    else:
        variants = [(name, "", extra) for name in arguments.methods]
    return [
        Cell(task, model, method, seed, variant, overrides)
        for task, model in places
        for seed in arguments.seeds
        for method, variant, overrides in variants
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a subset in under ten minutes on two cores: pgu and pgu_paper, two seeds")
    parser.add_argument("--ablation", action="store_true", help="parts of the default changed one at a time, on the mlp")
    parser.add_argument("--json", type=Path, help="write the rows to this file, and go on from those that it has")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, metavar="NAME", help=", ".join(TASKS).replace("%", "%%"))
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"model configs; {', '.join(MODELS)} unless told otherwise")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="method configs; all but retrain unless told otherwise")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="0 1 2 unless told otherwise")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder of the runs, the cache and the plot")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run")
    found = parser.parse_args(arguments)
    found.tasks = found.tasks or (ABLATION_TASKS if found.ablation else list(TASKS))
    found.models = found.models or (["mlp"] if found.ablation else list(MODELS))
    found.methods = found.methods or (["pgu", "pgu_paper"] if found.quick else methods())
    found.seeds = found.seeds or ([0, 1] if found.quick else [0, 1, 2])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    found = parse(arguments)
    rows = run_all(cells_of(found), found.output.resolve(), found.json)
    show(rows, found.markdown)
    plot(rows, found.output / "forgetting.svg")


if __name__ == "__main__":
    main()
