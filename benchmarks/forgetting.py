"""How near an unlearned model comes to one that never saw the data: tasks x models x methods x seeds, each a run of the application.

Run: python benchmarks/forgetting.py [--quick | --ablation | --run-on] [--json FILE] [--tasks NAME ...] [--models NAME ...]
    [--methods NAME ...] [--seeds N ...] [--output FOLDER] [KEY=VALUE ...]

Each row compares with three retrained models: its figures of them and its gap are means, and the floor beside it is the mean gap between
two of them. Networks that train in seconds forget other samples for each seed; on the others a request is the same for all seeds, so that
the retrained models serve all of them. Originals and references are trained once, under FOLDER/cache. Rows that FILE already has
are not run again, so a benchmark that was interrupted goes on where it stopped. KEY=VALUE are the application's own overrides, for
every run.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import re
import statistics
import warnings
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from importlib.resources import files
from itertools import combinations
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from pgu_lightning.app.cache import Cache
from pgu_lightning.app.experiment import Task, evaluate, prepare, run, train_model
from pgu_lightning.evaluation import model_metrics
from pgu_lightning.files import atomic_write
from pgu_lightning.records import Report, average_gap

FASHION = ("data=fashion_mnist", "data.train_size=10000")
TASKS: dict[str, tuple[str, ...]] = {
    "digits_class_3": ("data=digits", "forget=class", "forget.classes=[3]"),
    "digits_class_8": ("data=digits", "forget=class", "forget.classes=[8]"),
    "digits_samples_120": ("data=digits", "forget=samples", "forget.size=120"),
    "digits_poison_150": ("data=digits", "forget=poison", "forget.size=150"),
    "digits_poison_150_corrected": ("data=digits", "forget=poison", "forget.size=150", "forget.corrected=true"),
    "fashion_class_7": (*FASHION, "forget=class", "forget.classes=[7]"),
    "fashion_class_4": (*FASHION, "forget=class", "forget.classes=[4]"),
    "fashion_classes_5_7_9": (*FASHION, "forget=class", "forget.classes=[5,7,9]"),
    "fashion_samples_2%": (*FASHION, "forget=samples", "forget.size=0.02"),
    "fashion_samples_10%": (*FASHION, "forget=samples", "forget.size=0.1"),
    "fashion_poison_10%": (*FASHION, "forget=poison", "forget.size=1000"),
    "textures_samples_10%": ("data=textures", "data.train_size=3000", "forget=samples", "forget.size=0.1"),
}
AUGMENTED = "model.augment={_target_: pgu_lightning.models.CropFlip, padding: 2}"
MODELS: dict[str, tuple[str, ...]] = {
    "small_cnn": ("model=small_cnn",),
    "small_cnn_augmented": ("model=small_cnn", AUGMENTED),
    "mlp": ("model=mlp",),
    "mlp_augmented": ("model=mlp", AUGMENTED),
    "all_cnn": ("model=all_cnn",),
    "vit": ("model=vit", "model.network.patch=7"),
}
ONCE = {"samples": "forget.seed=0", "poison": "data.seed=0"}
"""What makes a request the same for all seeds, by its kind."""

REFERENCES = (10_000, 20_000, 30_000)
"""Seeds of the retrained models."""

QUICK = (
    *(("digits_" + name, "small_cnn") for name in ("class_3", "samples_120", "poison_150")),
    *(("fashion_" + name, "mlp") for name in ("samples_2%", "samples_10%")),
)
SETTINGS = "method.settings."
ABLATIONS: dict[str, tuple[str, ...]] = {
    "pgu": (),
    "rule: hard .95": (f"~{SETTINGS}rule", f"+{SETTINGS}rule={{_target_: pgu_lightning.projection.Hard, retained_variance: 0.95}}"),
    "rule: none": (f"{SETTINGS}rule.damping=1e9",),
    "layers: not balanced": (f"{SETTINGS}balanced=false",),
    "layers: balanced": (f"{SETTINGS}balanced=true",),
    "anchor: none": (f"{SETTINGS}anchor=0.0",),
    "anchor: 1": (f"{SETTINGS}anchor=1.0",),
    "anchor: 20": (f"{SETTINGS}anchor=20.0",),
    "step: learning rate 1": (f"{SETTINGS}trust_radius=null",),
    "objective: margin": (f"+{SETTINGS}objective={{_target_: pgu_lightning.objectives.Margin}}",),
    "objective: published": (f"+{SETTINGS}objective={{_target_: pgu_lightning.objectives.Published}}",),
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
        data, kind = self.task.split("_")[:2]
        quick = data == "digits" or self.model.startswith("mlp")
        once = [ONCE[kind]] if kind in ONCE and not quick else []
        model = MODELS.get(self.model, (f"model={self.model}",))
        return [*TASKS[self.task], *once, *model, f"method={self.method}", f"seed={self.seed}", *self.overrides]

    @property
    def folder(self) -> str:
        return "-".join((self.task, self.model, re.sub(r"\W+", "_", self.title), str(self.seed))).replace("%", "")


def measure(cell: Cell, output: Path) -> dict[str, Any]:
    """Run one cell; its report lies in its folder under ``output`` afterwards."""
    folder = output / cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    quiet = ["logger=none", "examples=0", "preflight=false", "+trainer.enable_progress_bar=false"]
    own = ["reference=false", "measure_interference=false", f"output_dir={folder}", f"cache={output / 'cache'}"]
    with initialize_config_module("pgu_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=[*quiet, *own, *cell.config()])
    with redirect_stdout(io.StringIO()):
        report = run(config, folder)
        (task,) = prepare(config, folder)
        references = [reference(task, seed) for seed in REFERENCES]
    return row(cell, report, references)


def reference(task: Task, seed: int) -> dict[str, Any]:
    """The figures of a retrained model, and the seconds that training took."""
    cache = Cache(Path(task.config.cache))

    def make(folder: Path) -> dict[str, Any]:
        model, seconds = train_model(task, cache, seed, task.split.retain)
        scores = {part: found[0] for part, found in evaluate(task, "retrained", model).items()}
        return {"seconds": seconds, "metrics": model_metrics(scores["forget"], scores["retain"], scores["test"], task.split.classes)}

    return cache.folder("figures", {**task.key(seed, task.split.retain.positions), "classes": list(task.split.classes)}, make)[1]


def row(cell: Cell, report: Report, references: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What is kept of a run."""
    outcome, unlearned, retrained = report.outcome, report.models["unlearned"], [found["metrics"] for found in references]
    seconds = mean(found["seconds"] for found in references)
    return {
        **asdict(cell),
        **{name: dict(metrics) for name, metrics in report.models.items()},
        "retrained": {name: mean(metrics[name] for metrics in retrained) for name in retrained[0]},
        "average_gap": mean(average_gap(unlearned, metrics) for metrics in retrained),
        "floor": mean(average_gap(one, other) for one, other in combinations(retrained, 2)),
        "original_gap": mean(average_gap(report.models["original"], metrics) for metrics in retrained),
        "corrected_accuracy": report.corrected_accuracy.get("unlearned"),
        "fulfilled": None if outcome is None else outcome.fulfilled,
        "epochs": None if outcome is None else outcome.epochs,
        "seconds": {**report.seconds, "retrain": seconds},
        "seconds_ratio": report.seconds["unlearn"] / seconds,
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
        before = mean(entry["original_gap"] for entry in entries)
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


def places_of(found: argparse.Namespace) -> list[tuple[str, str]]:
    """Tasks and models: Fashion-MNIST with every network, all other data with the small CNN, unless models are named."""
    if found.quick:
        return [place for place in QUICK if place[0] in found.tasks and place[1] in (found.models or MODELS)]
    if found.models:
        return [(task, model) for task in found.tasks for model in found.models]
    return [(task, model) for task in found.tasks for model in MODELS if task.startswith("fashion") or model == "small_cnn"]


def cells_of(found: argparse.Namespace) -> list[Cell]:
    """The runs that the command asks for, those of one original next to each other."""
    extra = tuple(found.overrides)
    if found.ablation:
        variants = [("pgu", "" if name == "pgu" else name, (*changes, *extra)) for name, changes in ABLATIONS.items()]
    else:
        variants = [(name, "", extra) for name in found.methods]
    return [
        Cell(task, model, method, seed, variant, overrides)
        for task, model in places_of(found)
        for seed in found.seeds
        for method, variant, overrides in variants
    ]


def beyond(rows: Iterable[dict[str, Any]]) -> list[Cell]:
    """The samples requests among ``rows`` once more, going on for three times as many epochs as it took to the stop."""
    stop = "+method.settings.stop={{_target_: pgu_lightning.stopping.Epochs, limit: {}}}"
    met = [entry for entry in rows if "samples" in entry["task"] and entry["method"] == "pgu" and entry["fulfilled"]]
    return [
        Cell(entry["task"], entry["model"], "pgu", entry["seed"], "run on", (stop.format(4 * entry["epochs"]), "method.epochs=9999"))
        for entry in met
    ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--quick", action="store_true", help="a subset in under ten minutes on two cores: pgu and pgu_paper, two seeds")
    what.add_argument("--ablation", action="store_true", help="parts of the default changed one at a time, on the mlp")
    what.add_argument("--run-on", action="store_true", help="also go on after the stop, for three times as many epochs (samples, pgu)")
    parser.add_argument("--json", type=Path, help="write the rows to this file, and go on from those that it has")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, metavar="NAME", help=", ".join(TASKS).replace("%", "%%"))
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"{', '.join(MODELS)}, or any model config")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="method configs; all but retrain unless told otherwise")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="0 1 2 unless told otherwise")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder of the runs, the cache and the plot")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every run")
    found = parser.parse_args(arguments)
    found.tasks = found.tasks or (ABLATION_TASKS if found.ablation else list(TASKS))
    found.models = found.models or (["mlp"] if found.ablation else None)
    found.methods = found.methods or (["pgu", "pgu_paper"] if found.quick else methods())
    found.seeds = found.seeds or ([0, 1] if found.quick else [0, 1, 2])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, print."""
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    found = parse(arguments)
    output = found.output.resolve()
    rows = run_all(cells_of(found), output, found.json)
    if found.run_on:
        rows += run_all(beyond(rows), output, found.json)
    show(rows, found.markdown)
    plot(rows, found.output / "forgetting.svg")


if __name__ == "__main__":
    main()
