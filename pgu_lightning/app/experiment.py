"""One run, stage by stage: prepare, train, forget, refer, evaluate, report."""

from __future__ import annotations

import inspect
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import Dataset

from pgu_lightning import distributed
from pgu_lightning.app import loggers
from pgu_lightning.app.cache import Cache
from pgu_lightning.app.config import ConfigError, check, is_personal
from pgu_lightning.app.gallery import gallery
from pgu_lightning.app.lock import hold
from pgu_lightning.app.responses import measured_interference
from pgu_lightning.app.show import ShowPreflight
from pgu_lightning.app.worst import worst
from pgu_lightning.batches import over
from pgu_lightning.callback import PGUCallback
from pgu_lightning.data import ImageData
from pgu_lightning.evaluation import Scores, TrainedAttack, estimated_gap, loss_histograms, model_metrics
from pgu_lightning.files import atomic_write, digest, retain_path
from pgu_lightning.methods import Job, Method, train
from pgu_lightning.models import Classifier
from pgu_lightning.passes import score
from pgu_lightning.records import EarlierRequest, MeasuredLayer, MethodRecord, Report, Stage, average_gap
from pgu_lightning.repair import retained
from pgu_lightning.report import MODELS, print_report, print_stages, write_html
from pgu_lightning.requests import ForgetRequest, Split
from pgu_lightning.statistics import RetainSpace
from pgu_lightning.unlearning_fit import environment, request_record
from pgu_lightning.views import View

Scored = Mapping[str, tuple[Scores, Tensor]]


@dataclass(frozen=True)
class Task:
    """What a run is about: the data, the request that splits it, and how models are made and trained.

    Attributes:
        config: The resolved configuration.
        data: Set up.
        request: What shall be forgotten.
        split: The training data in two parts.
        method: How it shall be forgotten.
        output: Folder of the run, or of this request where there are several.
        earlier: What the requests before this one took.
        loggers: Lightning loggers, once the stage that forgets begins.
    """

    config: DictConfig
    data: ImageData
    request: ForgetRequest
    split: Split
    method: Method
    output: Path
    earlier: tuple[Split, ...] = ()
    loggers: tuple[Logger, ...] = ()

    def untrained(self) -> Classifier:
        """A model of the recipe, before training."""
        model: Classifier = instantiate(self.config.model, network={"shape": list(self.data.shape), "num_classes": self.data.num_classes})
        return model

    def trainer(self, **arguments: Any) -> L.Trainer:
        """A Trainer as configured, with these arguments too."""
        trainer: L.Trainer = instantiate(self.config.trainer, **arguments)
        return trainer

    def load(self, path: Path) -> Classifier:
        """A trained model."""
        model = self.untrained()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
        return model

    def public_config(self) -> dict[str, Any]:
        """The resolved configuration without the names of those to forget: personal data, for which the request's digest stands."""
        content: dict[str, Any] = OmegaConf.to_container(self.config, resolve=True)  # type: ignore[assignment]
        return {
            **content,
            "forget": {name: value for name, value in content["forget"].items() if not is_personal(f"forget.{name}", value)},
        }

    def key(self, seed: int, positions: Tensor | None) -> dict[str, Any]:
        """All that determines a trained model."""
        recipe = inspect.getmodule(type(self.untrained().network))
        sources = [inspect.getsource(module) for module in (recipe, inspect.getmodule(Classifier)) if module is not None]
        return {
            "data": self.data.digest(),
            "batch_size": self.data.batch_size,
            "samples": None if positions is None else digest([positions.numpy().tobytes()]),
            "model": OmegaConf.to_container(self.config.model),
            "trainer": OmegaConf.to_container(self.config.trainer),
            "seed": seed,
            "source": digest(sources),
            "versions": [version("torch"), version("lightning"), version("pgu-lightning")],
        }


def run(config: DictConfig, output: Path) -> Report:
    """The whole experiment. Several requests are fulfilled one after the other, each on the model that the one before left.

    Args:
        config: As composed by Hydra.
        output: Folder for the files of the run.

    Returns:
        What ``report.json`` holds.

    Raises:
        ConfigError: If the configuration or the request cannot be meant; no result was written then.
        RuntimeError: If another run writes to the same folder.
    """
    check(config)
    with hold(output):
        try:
            tasks = prepare(config, output)
        except (InstantiationException, ValueError, TypeError, FileNotFoundError) as error:
            raise ConfigError(str(error.__cause__ or error)) from error
        cache = Cache(Path(config.cache))
        seconds = train_original(tasks[0], cache)
        reports = [fulfil(tasks[0], cache, seconds)]
        if len(tasks) == 1 or config.preflight == "only":
            return reports[0]
        for before, task in pairwise(tasks):
            hand_over(before.output, task.output)
            reports.append(fulfil(task, cache, seconds))
        return conclude(output, reports)


def fulfil(task: Task, cache: Cache, seconds: Mapping[str, float]) -> Report:
    """Forget what one request asks for, compare with a model that was retrained without it, and publish the report."""
    config, seconds = task.config, dict(seconds)
    task = replace(task, loggers=loggers.make(config.logger))  # one at a time: wandb knows one run a process
    report = forget(task)
    models = {"original": task.load(task.output / "original.ckpt")}
    compares = config.preflight != "only"
    if compares:
        models["unlearned"] = task.load(task.output / "unlearned.ckpt")
    if compares and config.reference:
        models["retrained"], seconds["retrain"] = train_model(task, cache, config.seed + 10_000, task.split.retain)
    if compares and config.floor:
        models["retrained again"], _ = train_model(task, cache, config.seed + 20_000, task.split.retain)
    scored = {name: evaluate(task, name, model) for name, model in models.items()}
    if compares and config.measure_interference and report.interference.layers:
        report = report.replace(interference=replace(report.interference, measured=measure(task, models, report.interference.layers)))
    if compares and config.attack_models:
        report = report.replace(trained_attack=attack(task, cache, scored))
    return publish(task, scored, report.replace(seconds={**seconds, **report.seconds}))


def prepare(config: DictConfig, output: Path) -> list[Task]:
    """Load the data and split it, for each request; whatever is wrong with one of them is refused here, before any work."""
    if config.preflight == "only" and OmegaConf.select(config, "method.settings.preflight") is None:
        raise ValueError(f"preflight=only needs a method that projects, such as method=pgu; {config.method._target_} does not.")
    if config.repair is not None and "repair" not in config.method:
        raise ValueError(
            f"repair={config.repair} needs a method that can be repaired, such as method=pgu; {config.method._target_} cannot."
        )
    L.seed_everything(config.seed, verbose=False)
    data: ImageData = instantiate(config.data)
    data.setup()
    made = instantiate(config.forget)
    made = made if isinstance(made, ForgetRequest) else made(data)
    requests: list[ForgetRequest] = [made] if isinstance(made, ForgetRequest) else list(made)
    splits: list[Split] = []
    for request in requests:
        splits.append(request.split(data.train, [entry for split in splits for entry in split.entries()]))
        if config.repair is not None:
            retained(config.repair, splits[-1])
    methods: list[Method] = [instantiate(config.method, _convert_="all") for _ in requests]
    atomic_write(output / "config.yaml", lambda path: OmegaConf.save(config, path, resolve=True))
    tasks = []
    for number, request in enumerate(requests):
        folder = output / f"request-{number + 1}" if len(requests) > 1 else output
        own = OmegaConf.create({**config, "output_dir": str(folder)})
        tasks.append(Task(own, data, request, splits[number], methods[number], folder, tuple(splits[:number])))
    return tasks


def hand_over(before: Path, after: Path) -> None:
    """The next request begins with what the one before left."""
    for left, found in (("unlearned.ckpt", "original.ckpt"), ("retain.safetensors", "retain.safetensors")):
        atomic_write(after / found, partial(shutil.copyfile, before / left))


def conclude(output: Path, reports: Sequence[Report]) -> Report:
    """The report of all requests together, beside the files that the last one left."""
    stages = tuple(
        Stage(
            request=report.request,
            models=report.models,
            earlier=report.earlier,
            outcome=report.outcome,
            average_gap=report.average_gap,
            interference=report.interference.total,
            free={name: layer.free for name, layer in report.layers.items()},
            seconds=report.seconds.get("unlearn"),
        )
        for report in reports
    )
    report = reports[-1].replace(stages=stages)
    if distributed.is_first():
        folders = [output / f"request-{number + 1}" for number in (0, len(reports) - 1)]
        for folder, name in zip((*folders, folders[-1]), ("original.ckpt", "unlearned.ckpt", "retain.safetensors"), strict=True):
            atomic_write(output / name, partial(shutil.copyfile, folder / name))
        report.save(output / "report.json")
        write_html(report, output / "report.html")
        print_stages(report)
        print(f"{output / 'report.html'}")
    return report


def train_original(task: Task, cache: Cache) -> dict[str, float]:
    """Train the model that shall forget and collect its retain space, once, and copy both into the run's folder.

    Returns:
        Seconds of training and collecting.
    """

    def make(folder: Path) -> dict[str, float]:
        L.seed_everything(task.config.seed, verbose=False)
        module, callback = task.untrained(), PGUCallback()
        started = time.perf_counter()
        trainer = task.trainer(max_epochs=module.epochs, callbacks=[callback], logger=False)
        trainer.fit(module, datamodule=task.data)
        seconds = time.perf_counter() - started
        trainer.save_checkpoint(folder / "model.ckpt")
        return {"train": seconds - callback.seconds["collect"], **callback.seconds}

    folder, seconds = cache.folder("original", task.key(task.config.seed, None), make)
    for source, name in ((folder / "model.ckpt", "original.ckpt"), (retain_path(folder / "model.ckpt"), "retain.safetensors")):
        atomic_write(task.output / name, partial(shutil.copyfile, source))
    return seconds


def forget(task: Task) -> Report:
    """Let the method make the model forget, and save the result as ``unlearned.ckpt``."""
    config = task.config
    L.seed_everything(config.seed, verbose=False)
    loggers.begin(task.loggers, RetainSpace.load(task.output / "retain.safetensors").protected, task.public_config())
    method = task.method
    job = Job(
        module=task.load(task.output / "original.ckpt"),
        untrained=task.untrained,
        data=task.data,
        request=task.request,
        split=task.split,
        retain_space=task.output / "retain.safetensors",
        trainer=lambda **arguments: task.trainer(**{**arguments, "callbacks": [*arguments.get("callbacks", ()), ShowPreflight()]}),
        epochs=task.untrained().epochs,
        seed=config.seed,
        loggers=task.loggers,
    )
    started = time.perf_counter()
    module, report = method.unlearn(job)
    seconds = {"unlearn": time.perf_counter() - started}
    if config.preflight != "only":
        state = {"state_dict": module.state_dict(), "pytorch-lightning_version": L.__version__}
        atomic_write(task.output / "unlearned.ckpt", lambda path: torch.save(state, path))
    if report is None:
        record = MethodRecord(method.name, method.uses_retain_data)
        report = Report(
            request_record(task.split), record, {}, seconds=seconds, environment=environment(module.device, distributed.world())
        )
    return report


def train_model(task: Task, cache: Cache, seed: int, samples: View) -> tuple[Classifier, float]:
    """A model of the recipe trained on these samples of the training data and no others, once, and the seconds that took."""

    def make(folder: Path) -> dict[str, float]:
        L.seed_everything(seed, verbose=False)
        module = task.untrained()
        trainer = task.trainer(max_epochs=module.epochs, logger=False)
        started = time.perf_counter()
        train(module, samples, task.data, trainer)
        seconds = time.perf_counter() - started
        trainer.save_checkpoint(folder / "model.ckpt")
        return {"retrain": seconds}

    folder, seconds = cache.folder("reference", task.key(seed, samples.positions), make)
    return task.load(folder / "model.ckpt"), seconds["retrain"]


def attack(task: Task, cache: Cache, scored: Mapping[str, Scored]) -> dict[str, float]:
    """Train a membership attack on other original and retrained models, and let it judge those of this run."""
    everything, like = View(task.data.train, torch.arange(len(task.data.train))), task.data.test_dataloader()

    def answers(samples: View, seed: int) -> Tensor:
        model, _ = train_model(task, cache, seed, samples)
        return score(model, over(task.split.forget, like), description="Scoring for the attack")[1]

    seeds = [task.config.seed + 30_000 + number for number in range(task.config.attack_models)]
    label = next(iter(scored.values()))["forget"][0].label
    trained = TrainedAttack.fit(
        [answers(everything, seed) for seed in seeds], [answers(task.split.retain, seed + 10_000) for seed in seeds], label
    )
    return {name: trained.called_members(parts["forget"][1], label) for name, parts in scored.items() if name in MODELS}


def measure(task: Task, models: Mapping[str, Classifier], layers: Collection[str]) -> dict[str, MeasuredLayer]:
    """What the retained data says of the interference that the statistics give."""
    loader = over(task.split.retain, task.data.test_dataloader())
    return measured_interference(models["original"], models["unlearned"], loader, layers)


def evaluate(task: Task, name: str, model: Classifier) -> Scored:
    """Scores and probabilities of one model on the forget set, the retained data, validation and test data, and what earlier requests took.

    Validation and test data of a class that an earlier request took is left out.
    """
    model.to(task.trainer(logger=False).strategy.root_device)
    like = task.data.test_dataloader()
    gone = torch.tensor([label for split in task.earlier for label in split.classes], dtype=torch.int64)
    held_out = {"validation": task.data.validation, "test": task.data.test}
    kept = {name: View(part, (~torch.isin(part.targets, gone)).nonzero().flatten()) for name, part in held_out.items()}
    sets: dict[str, Dataset[Any]] = {"forget": task.split.forget, "retain": task.split.retain, **kept}
    sets |= {f"request {number + 1}": split.forget for number, split in enumerate(task.earlier)}
    return {part: score(model, over(dataset, like), description=f"Scoring {name}: {part}") for part, dataset in sets.items()}


def alike(test: Scores, split: Split) -> Scores:
    """The test samples that the forget set is held against: those of the classes that are gone, or all."""
    return test.select(torch.isin(test.label, torch.tensor(split.classes))) if split.classes else test


def sizes(scores: Mapping[str, Scores], split: Split) -> dict[str, int]:
    """How many samples stand behind the figures; where classes are gone, their test samples are counted apart."""
    counts = {part: len(found) for part, found in scores.items()}
    gone = len(alike(scores["test"], split)) if split.classes else 0
    return {**counts, "test": counts["test"] - gone, **({"forget_test": gone} if split.classes else {})}


def publish(task: Task, scored: Mapping[str, Scored], report: Report) -> Report:
    """Put the figures of all models together; write ``report.json``, and from it the table, ``report.html`` and what wandb shows."""
    scores = {name: {part: found[0] for part, found in parts.items()} for name, parts in scored.items()}
    metrics = {name: model_metrics(parts["forget"], parts["retain"], parts["test"], task.split.classes) for name, parts in scores.items()}
    again = metrics.pop("retrained again", None)
    shown = [name for name in scores if name in metrics]
    earlier = tuple(
        EarlierRequest(request_record(split), {name: {"forget_accuracy": scores[name][f"request {number + 1}"].accuracy} for name in shown})
        for number, split in enumerate(task.earlier)
    )
    report = report.replace(
        models=metrics,
        sizes=sizes(scores["original"], task.split),
        corrected_accuracy={
            name: share for name in shown if (share := task.split.corrected_accuracy(scored[name]["forget"][1])) is not None
        },
        average_gap=average_gap(metrics["unlearned"], metrics["retrained"]) if "retrained" in metrics else None,
        floor=average_gap(metrics["retrained"], again) if again and "retrained" in metrics else None,
        estimated_gap=_estimated_gap(task.split, scores) if "unlearned" in scores else None,
        histograms=loss_histograms(
            {name: {"forget": scores[name]["forget"], "test": alike(scores[name]["test"], task.split)} for name in shown}
        ),
        examples=gallery(task.split, {name: scored[name]["forget"][1] for name in shown}, task.config.examples),
        worst=worst(
            task.split,
            {name: scores[name] for name in shown},
            task.config.worst,
            task.request.id_attribute if task.config.show_ids else None,
        ),
        class_names=task.data.class_names,
        earlier=earlier,
        config=task.public_config(),
        seed=task.config.seed,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    if distributed.is_first():
        report.save(task.output / "report.json")
        write_html(report, task.output / "report.html")
        loggers.end(task.loggers, report, task.output)
        print_report(report)
        print(f"{task.output / 'report.html'}")
    return report


def _estimated_gap(split: Split, scores: Mapping[str, Mapping[str, Scores]]) -> float | None:
    before, after = scores["original"], scores["unlearned"]
    return estimated_gap(split.kind, after["forget"], before["validation"], after["validation"], split.classes)
