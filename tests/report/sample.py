"""Reports made by hand: one with everything, one with as little as may be; and a sweep of some."""

import base64
import io

import numpy as np
from PIL import Image

from pgu_lightning.records import (
    Answer,
    CurvePoint,
    Example,
    Histogram,
    Interference,
    LayerRecord,
    MeasuredLayer,
    MethodRecord,
    Outcome,
    Preflight,
    PreflightLayer,
    Report,
    RequestRecord,
    WorstSample,
    average_gap,
)
from pgu_lightning.report import Sweep, SweepJob, without_details

HOSTILE = "<script>alert(1)</script>"


def minimal() -> Report:
    """A method without steps, nothing but two models' accuracy."""
    return Report(
        request=RequestRecord("samples", 5, "e" * 64),
        method=MethodRecord("retrain", uses_retain_data=True),
        models={"unlearned": {"forget_accuracy": 0.25}, "original": {"forget_accuracy": 1.0}},
    )


def rich() -> Report:
    """A class request with every optional part and figures with many digits."""
    return Report(
        request=RequestRecord("class", 1234, "0123456789abcdef" * 4, classes=(1,)),
        method=MethodRecord("pgu", uses_retain_data=False, settings={"rule": "Soft(damping=0.01)", "anchor": 1.0}),
        models={
            "retrained": {
                "forget_accuracy": 0.0,
                "retain_accuracy": 0.98765,
                "test_accuracy": 0.91234,
                "forget_test_accuracy": 0.0,
                "mia_auc": 0.5123,
            },
            "original": {
                "forget_accuracy": 0.99912,
                "retain_accuracy": 0.99876,
                "test_accuracy": 0.9,
                "forget_test_accuracy": 0.94,
                "mia_auc": 0.5634,
            },
            "unlearned": {
                "forget_accuracy": 0.00123456,
                "retain_accuracy": 0.97531,
                "test_accuracy": 0.90876,
                "forget_test_accuracy": 0.0101,
                "mia_auc": 0.5045,
                "relearn_steps": 0.333,
            },
        },
        sizes={"forget": 1234, "retain": 8766, "test": 900, "forget_test": 100},
        outcome=Outcome(
            True, "forget accuracy 0.001 is at most 0.002", 12, 48, 2, ("2 of 48 steps were skipped: their gradients were not finite.",)
        ),
        preflight=Preflight(
            layers={
                "features.0": PreflightLayer(9, 2, 0.0345678, 0.75, 0.0),
                "features.3": PreflightLayer(216, 118, 0.21, 0.25, 1.5e-4),
                "blocks.0.attention.output.projection": PreflightLayer(4608, 3408, None, None, 0.012345),
            },
            samples=1234,
            survives=0.0812345,
            interference=1e-4,
            accuracy_error=0.0123456,
            warnings=("There is no validation sample with label 1: whether a membership trace is left cannot be checked.",),
        ),
        average_gap=0.00729312,
        floor=0.00312345,
        interference=Interference(
            1.23456e-4,
            {"features.0": 3.21e-5, "features.3": 0.0, "blocks.0.attention.output.projection": 4.56789e-3},
            {
                "features.0": MeasuredLayer(3.2101e-5, 3.2102e-5),
                "features.3": MeasuredLayer(0.0, 1.25e-4),
                "blocks.0.attention.output.projection": MeasuredLayer(4.56788e-3, 2.34567e-2),
            },
        ),
        layers={
            "features.0": LayerRecord(9, 7, 2, 0.0),
            "features.3": LayerRecord(216, 98, 118, 1.5e-4),
            "blocks.0.attention.output.projection": LayerRecord(4608, 1200, 3408, 0.012345),
        },
        frozen={"norm1": "normalisation parameters are not moved", "head": "its weight is tied to embed"},
        seconds={"train": 123.456, "collect": 2.5, "unlearn": 4.0625, "retrain": 120.75},
        curve=tuple(curve()),
        histograms=histograms(),
        examples=tuple(
            Example(
                f"{index:x}" * 64,
                1,
                picture(index),
                {"unlearned": Answer(0, 0.41234), "original": Answer(1, 0.99951), "retrained": Answer(2, 0.5)},
            )
            for index in range(1, 7)
        ),
        worst={
            "remembered": (
                WorstSample("a1b2c3d4e5f60718", 1, {"original": 0.99876, "unlearned": 0.31234, "retrained": 0.0123}),
                WorstSample("b1b2c3d4e5f60718", 1, {"original": 0.98, "unlearned": 0.2, "retrained": 0.001}),
            ),
            "damaged": (WorstSample("c1b2c3d4e5f60718", 2, {"original": 0.97, "unlearned": 0.41, "retrained": 0.95}),),
        },
        class_names=("T-shirt/top", "Trouser", "Pullover"),
        environment={"torch": "2.13.0", "device": "cpu"},
        config={"seed": 7, "method": {"name": "pgu", "rule": {"damping": 0.01}}},
        seed=7,
        finished="2026-03-04T05:06:07+00:00",
    )


def unfulfilled() -> Report:
    """The epochs ran out."""
    notes = (
        "The weights after epoch 9 are kept: of 12 epochs they are nearest to the goal.",
        "The request is not fulfilled. Allow more epochs; if that does not help, train again on the retained data.",
    )
    return rich().replace(outcome=Outcome(False, "the epochs ran out before the stop rule was met", 12, 48, 0, notes))


def hostile() -> Report:
    """Names that would run as a script, end an attribute, read as markup or as mathematics."""
    report = rich()
    evil = f'"x={HOSTILE}&[bold] $\\frac$'
    metrics = dict(report.models["original"])
    return report.replace(
        method=MethodRecord(evil, uses_retain_data=False, settings={evil: evil}),
        models={**report.models, evil: {**metrics, evil: 0.5}},
        outcome=Outcome(False, evil, 1, 1, 0, (evil,)),
        interference=Interference(0.5, {evil: 0.5}, {evil: MeasuredLayer(0.5, 0.75)}),
        layers={evil: LayerRecord(4, 1, 3)},
        preflight=Preflight({evil: PreflightLayer(4, 3, 0.5, 0.5)}, 3, warnings=(evil,), refusal=evil),
        frozen={evil: evil},
        seconds={evil: 1.0},
        histograms={evil: {evil: Histogram((0.0, 1.0, 2.0), (0, 0))}},
        examples=(Example(evil, 1, picture(1), {evil: Answer(1, 0.5)}), Example(evil, 9, "", {})),
        worst={"remembered": (WorstSample(evil, 1, {evil: 0.5}, evil),)},
        class_names=(evil, evil),
        environment={evil: evil},
        config={evil: [evil]},
    )


def curve() -> list[CurvePoint]:
    """Forgetting in twelve passes; the objective is not known before the first."""
    return [
        CurvePoint(
            step=4 * epoch,
            forget_accuracy=0.99912 * 0.55**epoch,
            forget_loss=0.0123 * 1.7**epoch,
            validation_accuracy=0.9 - 0.001 * epoch,
            validation_loss=0.31 + 0.004 * epoch,
            mia_auc=0.56 - 0.005 * epoch,
            objective=5 * 0.6**epoch if epoch else None,
            interference=1e-5 * epoch,
        )
        for epoch in range(13)
    ]


def histograms() -> dict[str, dict[str, Histogram]]:
    """Log-normal losses; forget and test lie apart for the original only."""
    generator = np.random.default_rng(0)
    edges = np.logspace(-5, 2, 41)
    centres = {"original": (-2.5, -1.0), "unlearned": (0.6, -0.9), "retrained": (0.7, -0.9)}

    def histogram(centre: float, size: int) -> Histogram:
        return Histogram(tuple(edges.tolist()), tuple(np.histogram(10 ** generator.normal(centre, 0.6, size), edges)[0].tolist()))

    return {model: {"forget": histogram(forget, 1234), "test": histogram(test, 1000)} for model, (forget, test) in centres.items()}


def picture(seed: int) -> str:
    """A PNG of 8 x 8 grey pixels as data URI."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def sweep() -> Sweep:
    """Two requests by two methods with two seeds; the last job failed, with an error that would run as a script."""
    jobs = []
    for forget in ("class", "samples"):
        for method in ("pgu", "pgu_paper"):
            for seed in (0, 1):
                number = len(jobs)
                overrides = {"forget": forget, "method": method, "seed": str(seed), "model.epochs": "2"}
                if number == 7:
                    jobs.append(SweepJob("7", overrides, error=f"ValueError: {HOSTILE} of nothing"))
                    continue
                models = {
                    "original": {"forget_accuracy": 1.0, "test_accuracy": 0.95},
                    "unlearned": {"forget_accuracy": 0.011 * number, "test_accuracy": 0.94 - 0.007 * number},
                    "retrained": {"forget_accuracy": 0.005, "test_accuracy": 0.93},
                }
                report = rich().replace(
                    models=models,
                    average_gap=average_gap(models["unlearned"], models["retrained"]),
                    estimated_gap=0.0123 * (number + 1),
                    seconds={"unlearn": 1.5 + number, "retrain": 12.25},
                    method=MethodRecord(method, False),
                    seed=seed,
                )
                jobs.append(SweepJob(str(number), overrides, report=without_details(report)))
    return Sweep("sweeps/some", tuple(jobs))
