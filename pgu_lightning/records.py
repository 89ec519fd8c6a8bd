"""The dataclasses that are ``report.json``: a stable interface that scripts and people read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pgu_lightning.files import atomic_write

SCHEMA = 1


@dataclass(frozen=True)
class RequestRecord:
    """What was asked for, without naming anyone.

    Attributes:
        kind: ``"class"``, ``"samples"`` or ``"poison"``.
        size: Number of training samples to forget.
        digest: SHA-256 of the sorted ids.
        classes: The labels that are gone entirely (class requests only).
    """

    kind: str
    size: int
    digest: str
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class MethodRecord:
    """How it was done.

    Attributes:
        name: Of the method.
        uses_retain_data: Whether it read retained data.
        settings: As plain values.
        retain_samples: With how many retained samples it was repaired; None where it was not.
    """

    name: str
    uses_retain_data: bool
    settings: Mapping[str, Any] = field(default_factory=dict)
    retain_samples: int | None = None


@dataclass(frozen=True)
class EarlierRequest:
    """What a model was asked to forget before, and whether that stayed forgotten.

    Attributes:
        request: What was asked for then.
        models: ``forget_accuracy`` on its samples by model, as in ``Report.models``; empty where the samples are not at hand.
    """

    request: RequestRecord
    models: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One request of several that were fulfilled one after the other; its own folder has the whole report.

    Attributes:
        request: What was asked for.
        models: As in ``Report.models``; the original is the model that the request before left.
        earlier: The requests before it.
        outcome: How unlearning ended.
        average_gap: To the model retrained without anything that was asked for up to here.
        interference: Of this request.
        free: Free directions by layer.
        seconds: Wall-clock seconds of unlearning.
    """

    request: RequestRecord
    models: Mapping[str, Mapping[str, float]]
    earlier: tuple[EarlierRequest, ...] = ()
    outcome: Outcome | None = None
    average_gap: float | None = None
    interference: float = 0.0
    free: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How unlearning ended.

    Attributes:
        fulfilled: Whether the stop rule was reached.
        reason: Why it stopped, in words.
        epochs: Passes over the forget set.
        steps: Optimizer steps taken.
        skipped: Steps that were skipped since their gradients were not finite.
        notes: What a reader has to know to believe the rest.
    """

    fulfilled: bool
    reason: str
    epochs: int
    steps: int
    skipped: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerRecord:
    """One protected layer: input dimension, protected and free directions, and the share of its Gram's mass that was clamped."""

    dim: int
    rank: int
    free: int
    clamped: float = 0.0


@dataclass(frozen=True)
class MeasuredLayer:
    """What the retained data itself says of one layer's interference, with rows x before and x' after.

    Attributes:
        own: sum |dW x|^2 / sum |W x|^2: the same quantity as from the Gram.
        with_inputs: sum |(W + dW) x' - W x|^2 / sum |W x|^2: with what the layers before it changed.
    """

    own: float
    with_inputs: float


@dataclass(frozen=True)
class Interference:
    """tr(dW M dW^T) / tr(W M W^T) from the stored Grams: over all protected layers together, and for each.

    Attributes:
        total: Over all.
        layers: By layer.
        measured: By layer, where the retained data was at hand.
    """

    total: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, MeasuredLayer] = field(default_factory=dict)


@dataclass(frozen=True)
class PreflightLayer:
    """What one layer lets through, before the first step.

    Attributes:
        dim: Input dimension of a group.
        free: Directions of which more than half passes, over all groups.
        survives: ||G P|| / ||G||, G the gradient of the forget loss, with what a scale adds; None where it has none.
        share: The layer's share of the first step's interference; None where nothing interferes.
        clamped: Share of its Gram's mass that was clamped.
    """

    dim: int
    free: int
    survives: float | None
    share: float | None
    clamped: float = 0.0


@dataclass(frozen=True)
class Preflight:
    """What is to be expected, said before anything is changed.

    Attributes:
        layers: The layers that may change.
        samples: Number of forget samples that were looked at.
        survives: ||G P|| / ||G|| over all layers together.
        interference: Of the first step at its longest; None where the optimizer sets its length.
        drift: How far earlier requests may have moved the response to the retained data, relative to its size; 0 for a first request.
        accuracy_error: Standard error of the accuracy that a samples request aims at, from the number of validation samples.
        warnings: What to know before it is believed.
        refusal: Why it cannot work, and what to do; None: it can.
    """

    layers: Mapping[str, PreflightLayer]
    samples: int
    survives: float | None = None
    interference: float | None = None
    accuracy_error: float | None = None
    warnings: tuple[str, ...] = ()
    refusal: str | None = None
    drift: float = 0.0


@dataclass(frozen=True)
class CurvePoint:
    """The model after so many unlearning steps; the first point is the original.

    Validation values are None without validation data, the accuracy on what earlier requests took where there is nothing of it at hand,
    that on corrected labels where the request gives none.
    """

    step: int
    forget_accuracy: float
    forget_loss: float
    validation_accuracy: float | None = None
    validation_loss: float | None = None
    mia_auc: float | None = None
    objective: float | None = None
    interference: float = 0.0
    earlier_accuracy: float | None = None
    corrected_accuracy: float | None = None


@dataclass(frozen=True)
class Histogram:
    """Counts of per-example losses between ``edges`` (one more edge than counts)."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What a model says about one sample: the class it prefers and with what probability."""

    label: int
    probability: float


@dataclass(frozen=True)
class Example:
    """One forgotten sample: its picture as a PNG data URI, its training label, and each model's answer."""

    digest: str
    label: int
    image: str
    answers: Mapping[str, Answer]


@dataclass(frozen=True)
class WorstSample:
    """A sample that the unlearned model still remembers, or one that it lost.

    Attributes:
        digest: Says which one without naming it, as in ``Split.entries``.
        label: The label it had in training.
        probabilities: What each model gives that label.
        id: Its id, or its position where the data has no ids; None unless that was asked for.
    """

    digest: str
    label: int
    probabilities: Mapping[str, float]
    id: str | None = None


@dataclass(frozen=True)
class Report:
    """What was forgotten, what it cost, and what it left alone.

    Attributes:
        request: What was asked for.
        method: How it was done.
        models: Metrics in [0, 1] by model (``original``, ``unlearned``, ``retrained``) and name (``forget_accuracy``, ``retain_accuracy``,
            ``test_accuracy``, ``mia_auc``, ...).
        sizes: Number of samples in each set that was measured on (``forget``, ``retain``, ``test``, ``forget_test``).
        outcome: How unlearning ended; None for methods without steps.
        preflight: What was to be expected before the first step.
        average_gap: Mean |unlearned - retrained| over the metrics that both have.
        floor: The same between two models retrained with different seeds.
        corrected_accuracy: Share of the forget set that gets its corrected label, by model; empty where the request gives none. It is in no
            gap: the unlearned model has learnt these labels, a retrained one has not seen the samples.
        trained_attack: Share of the forget set that an attack takes for members, by model; it was trained on other models of both kinds.
        estimated_gap: What validation data says of the gap, without a retrained model.
        interference: Relative squared change of the protected layers' response to the retained data.
        layers: The protected layers. Their weights are updated, their biases only with ``bias="augment"``: ``dim`` is then one more.
        frozen: The layers that were not updated, with the reason.
        seconds: Wall-clock seconds by stage (``train``, ``collect``, ``unlearn``, ``retrain``).
        curve: The model after each pass over the forget set.
        earlier: The requests that the same model fulfilled before.
        stages: Where several requests were fulfilled one after the other: each of them. The rest of the report is about the last.
        histograms: Per-example loss by model and by set (``forget``, ``test``).
        examples: Some of the forgotten samples.
        worst: Under ``remembered`` the forget samples that the unlearned model knows best, under ``damaged`` the retained ones that
            it lost most of, the worst first.
        class_names: Names of the labels, where the data has them.
        environment: Versions and hardware.
        config: The resolved configuration, where there is one.
        seed: Random seed of the run.
        finished: When, as ISO 8601 in UTC.
        schema: Version of this interface.
    """

    request: RequestRecord
    method: MethodRecord
    models: Mapping[str, Mapping[str, float]]
    sizes: Mapping[str, int] = field(default_factory=dict)
    outcome: Outcome | None = None
    preflight: Preflight | None = None
    average_gap: float | None = None
    floor: float | None = None
    corrected_accuracy: Mapping[str, float] = field(default_factory=dict)
    trained_attack: Mapping[str, float] = field(default_factory=dict)
    estimated_gap: float | None = None
    interference: Interference = field(default_factory=Interference)
    layers: Mapping[str, LayerRecord] = field(default_factory=dict)
    frozen: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[CurvePoint, ...] = ()
    earlier: tuple[EarlierRequest, ...] = ()
    stages: tuple[Stage, ...] = ()
    histograms: Mapping[str, Mapping[str, Histogram]] = field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    worst: Mapping[str, tuple[WorstSample, ...]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    finished: str | None = None
    schema: int = SCHEMA

    def save(self, path: str | Path) -> None:
        """Write ``report.json`` atomically."""
        text = self.to_json()
        atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def to_json(self) -> str:
        """What ``save`` writes."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Read a ``report.json``.

        Raises:
            ValueError: If the file is not a report of this schema.
        """
        return cls.from_json(Path(path).read_bytes(), str(path))

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> Report:
        """Read what ``to_json`` gave.

        Args:
            text: The report.
            source: Where it comes from, for errors.

        Raises:
            ValueError: If it is not a report of this schema.
        """
        try:
            report = _ADAPTER.validate_json(text)
        except ValidationError as error:
            raise ValueError(f"{source} is not a report of pgu-lightning (schema {SCHEMA}): {error}") from error
        if report.schema != SCHEMA:
            raise ValueError(
                f"{source} has report schema {report.schema}, this version reads {SCHEMA}: rebuild it with the version that wrote it."
            )
        return report

    def replace(self, **changes: Any) -> Report:
        """A copy with other values, as ``dataclasses.replace``."""
        return dataclasses.replace(self, **changes)


_ADAPTER = TypeAdapter(Report)


def average_gap(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Mean absolute difference over the metrics that both models have.

    Example:
        >>> round(average_gap({"forget_accuracy": 0.0, "test_accuracy": 0.9}, {"forget_accuracy": 0.1, "test_accuracy": 0.9}), 3)
        0.05
    """
    shared = one.keys() & other.keys()
    if not shared:
        raise ValueError(f"no metric in common: {sorted(one)} and {sorted(other)}")
    return sum(abs(one[name] - other[name]) for name in shared) / len(shared)
