"""The benchmark that decides, on one tiny task: its rows against the reports of the runs, and that it goes on where it stopped. Scaling."""

from __future__ import annotations

import json

import pytest
import torch
from hydra import compose, initialize_config_module

from benchmarks import collect, curves, decompose, end_to_end, estimate, forgetting, gram, networks, scaling, step, table, timing
from pgu_lightning.statistics.moment import second_moment
from tests.helpers.processes import ROOT

TINY = ["--tasks", "digits_samples_120", "--models", "mlp", "--methods", "pgu", "--seeds", "0", "1"]


def command(folder, *changes):
    return [*TINY, "--json", str(folder / "rows.json"), "--output", str(folder / "runs"), *changes, "model.epochs=2", "method.epochs=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark")
    forgetting.main(command(folder))
    return folder


def test_rows_are_those_of_the_reports(folder):
    rows = json.loads((folder / "rows.json").read_text())
    assert [(row["task"], row["model"], row["method"], row["seed"]) for row in rows] == [
        ("digits_samples_120", "mlp", "pgu", s) for s in (0, 1)
    ]
    for row in rows:
        (path,) = (folder / "runs").glob(f"digits_samples_120-mlp-pgu-{row['seed']}/report.json")
        report = json.loads(path.read_text())
        assert {name: row[name] for name in ("original", "unlearned")} == report["models"]
        assert row["uses_retain_data"] is False
        assert row["seconds"]["unlearn"] == report["seconds"]["unlearn"]
        assert row["epochs"] == report["outcome"]["epochs"]
        assert report["request"]["size"] == 120
        assert report["config"]["model"]["epochs"] == 2
    assert rows[0]["original"] != rows[1]["original"]
    assert len(list((folder / "runs" / "cache").glob("original-*/key.json"))) == 2
    assert len(list((folder / "runs" / "cache").glob("reference-*/key.json"))) == 6
    assert "two retrained models" in (folder / "runs" / "forgetting.svg").read_text()


def test_gap_and_floor_are_means_over_three_retrained_models(folder):
    """Of seeds 10000, 20000 and 30000, without the request's samples: their figures lie in the cache."""
    rows = json.loads((folder / "rows.json").read_text())
    trios = {}
    for path in (folder / "runs" / "cache").glob("figures-*/facts.json"):
        key = json.loads(path.with_name("key.json").read_text())
        trios.setdefault(key["samples"], {})[key["seed"]] = json.loads(path.read_text())["metrics"]
    assert sorted(map(sorted, trios.values())) == [[10_000, 20_000, 30_000]] * 2

    def gap(one, other):
        return sum(abs(one[name] - other[name]) for name in one) / len(one)

    def figures(row, a, b, c):
        gaps = [sum(gap(row[model], other) for other in (a, b, c)) / 3 for model in ("unlearned", "original")]
        return pytest.approx([*gaps, (gap(a, b) + gap(a, c) + gap(b, c)) / 3])

    for row in rows:
        own = [row["average_gap"], row["original_gap"], row["floor"]]
        assert any(own == figures(row, *trio.values()) for trio in trios.values())


def test_rows_that_are_there_are_not_run_again(folder, monkeypatch, capsys):
    monkeypatch.setattr(forgetting, "run", lambda *_: pytest.fail("it was run again"))
    before = (folder / "rows.json").read_bytes()
    forgetting.main(command(folder, "--markdown"))
    assert (folder / "rows.json").read_bytes() == before
    *_, line = capsys.readouterr().out.splitlines()
    rows = json.loads(before)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[:4] == ["digits_samples_120", "mlp", "pgu", "2"]
    assert float(cells[6]) == pytest.approx((rows[0]["average_gap"] + rows[1]["average_gap"]) / 2, abs=6e-5)
    assert float(cells[7]) == pytest.approx((rows[0]["floor"] + rows[1]["floor"]) / 2, abs=6e-5)
    with pytest.raises(pytest.fail.Exception, match="run again"):
        forgetting.main([*command(folder), "method.settings.batch_size=50"])  # another command, other rows


@pytest.mark.parametrize("variant", forgetting.ABLATIONS)
@pytest.mark.parametrize("task", forgetting.TASKS)
def test_every_task_and_ablation_composes(task, variant):
    cell = forgetting.Cell(task, "mlp", "pgu", 3, variant, forgetting.ABLATIONS[variant])
    with initialize_config_module("pgu_lightning.conf", version_base="1.3"):
        config = compose("config", overrides=cell.config())
    assert config.seed == 3
    if variant == "rule: hard .95":
        assert dict(config.method.settings.rule) == {"_target_": "pgu_lightning.projection.Hard", "retained_variance": 0.95}
    if variant == "objective: margin":
        assert config.method.settings.objective["_target_"] == "pgu_lightning.objectives.Margin"


def test_what_is_run_unless_told_otherwise():
    cells = forgetting.cells_of(forgetting.parse([]))
    fashion = sum(task.startswith("fashion") for task in forgetting.TASKS)
    places = fashion * len(forgetting.MODELS) + len(forgetting.TASKS) - fashion
    assert len(cells) == places * len(forgetting.methods()) * 3
    assert {"pgu", "pgu_paper"} <= set(forgetting.methods())
    quick = forgetting.cells_of(forgetting.parse(["--quick"]))
    assert {(cell.task, cell.model) for cell in quick} == set(forgetting.QUICK)
    assert {cell.method for cell in quick} == {"pgu", "pgu_paper"}
    ablation = forgetting.cells_of(forgetting.parse(["--ablation", "--seeds", "0"]))
    assert {cell.model for cell in ablation} == {"mlp"}
    assert len(ablation) == len(forgetting.ABLATIONS) * len(forgetting.ABLATION_TASKS)


def test_running_on_is_three_times_as_far_again():
    rows = [
        {"task": task, "model": "mlp", "method": "pgu", "seed": 1, "fulfilled": met, "epochs": 7}
        for task, met in (("fashion_samples_2%", True), ("fashion_samples_10%", False), ("fashion_class_7", True))
    ]
    (cell,) = forgetting.beyond(rows)
    assert (cell.task, cell.title, cell.seed) == ("fashion_samples_2%", "run on", 1)
    assert "limit: 28" in cell.overrides[0]


@pytest.mark.parametrize(("model", "fixed"), [("mlp", False), ("small_cnn", True)])
def test_slow_networks_forget_the_same_samples_for_each_seed(model, fixed):
    for task, key in (("fashion_samples_2%", "forget.seed=0"), ("fashion_poison_10%", "data.seed=0")):
        assert (key in forgetting.Cell(task, model, "pgu", 2).config()) is fixed
    assert not any("seed=0" in value for value in forgetting.Cell("digits_poison_150", model, "pgu", 2).config())


def test_the_estimate_is_that_of_the_note():
    note = (ROOT / "docs" / "scaling.md").read_text()
    assert estimate.ASSUMED in note
    assert estimate.table() in note


def test_the_estimate_knows_its_models():
    """Weights as published: 304 M and 6.7 G with norms, biases and embeddings; one Gram matrix counted by hand."""
    vit, decoder = estimate.vit(), estimate.decoder(None)
    assert sum(layer.weights for layer in vit.layers) == pytest.approx(304e6, rel=0.01)
    assert sum(layer.weights for layer in decoder.layers) + 32_000 * 4096 == pytest.approx(6.74e9, rel=0.01)
    assert estimate.figures(vit, 8)["Gram matrices, float64"] == f"{8 * (768**2 + 24 * (3 * 1024**2 + 4096**2) + 1024**2) / 1e9:.1f} GB"
    sent = 2 * 7 / 8 * 8 * 8 * (2 * 4096**2 + 11008**2)
    assert estimate.figures(estimate.decoder(8), 8)["collecting: sent by each process, once"] == f"{sent / 1e9:.1f} GB"


@pytest.mark.slow
def test_scaling_measures_groups_of_processes():
    rows = scaling.measure(16, [1, 2], repeats=1)
    assert [(row["work"], row["processes"]) for row in rows] == [(work, count) for work in scaling.WORK for count in (1, 2)]
    assert all(row["ms_per_sample"] > 0 for row in rows)
    assert [row["ratio"] for row in rows if row["processes"] == 1] == [1, 1]


def test_gram_matrices_are_timed_by_layer_and_network(tmp_path, monkeypatch):
    monkeypatch.setattr(gram, "NETWORKS", {"tiny": (lambda shape, classes: networks.ViT(shape, classes, 4, 8, 2, 2), (3, 8, 8))})
    gram.main(["--turns", "1", "--batch", "4", "--json", str(tmp_path / "rows.json")])
    *layers, whole = json.loads((tmp_path / "rows.json").read_text())
    assert (whole["case"], whole["layers"]) == ("tiny", 10)
    assert {row["case"]: row["layers"] for row in layers} == {
        "tiny: embed": 1,
        **{f"tiny: blocks.0.{name}": 2 for name in ("self_attn", "self_attn.out_proj", "linear1", "linear2")},
        "tiny: head": 1,
    }
    assert whole["ratio"] == pytest.approx(sum(r["layers"] * r["plain_ms"] for r in layers) / sum(r["layers"] * r["ms"] for r in layers))
    assert all(0 < row["fraction_of_peak"] < 1.5 for row in layers)


@torch.no_grad()
def test_the_plain_form_is_the_gram():
    layer, x = torch.nn.Conv2d(2, 3, 3, 2, 1), torch.randn(4, 2, 7, 6)
    total = torch.zeros(18, 18, dtype=torch.float64)
    gram.plain(layer, x, total)
    found, _ = second_moment(layer, x)
    torch.testing.assert_close(total, found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_collecting_is_timed_against_training(monkeypatch):
    monkeypatch.setattr(collect, "NETWORKS", {"SmallCNN": networks.NETWORKS["SmallCNN"]})
    (row,) = collect.measure(["SmallCNN"], turns=1, batch=4)
    assert row["grams_mb"] * 1e6 == 8 * (9**2 + 144**2 + 288**2 + 64**2 + 128**2)
    assert row["epochs"] > 0
    assert row["training_mb"] > 0


def test_what_a_share_of_the_samples_misses():
    few, most, every = collect.lost([0.02, 0.5, 1.0], epochs=1)
    assert few["lost"] > most["lost"] > every["lost"]
    assert abs(every["lost"]) < 1e-9


# Speed: what is compared does the same, whatever it takes


def test_decomposing_gives_the_plain_filter(tmp_path):
    decompose.main(["--sizes", "96", "--turns", "1", "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["case"] for row in rows] == [f"{rule}, 96{few}" for few in ("", ", few rows") for rule in decompose.RULES]
    for row in rows:
        assert row["difference"] < 1e-5
        assert row["rank"] == row["plain_rank"]
        assert row["ratio"] > 0


def test_end_to_end_gives_the_plain_ranks_and_leak():
    first, *rows = end_to_end.measure("SmallCNN", samples=24, batch=8)
    assert first["forward_passes"] > 0
    for row in rows:
        assert row["rank"] <= 0.01
        assert row["leak"] == pytest.approx(row["plain_leak"], rel=1e-3)


def test_steps_and_the_table(tmp_path, capsys):
    step.main(["--networks", "SmallCNN", "--batch", "4", "--turns", "1", "--json", str(tmp_path / "step.json")])
    rows = json.loads((tmp_path / "step.json").read_text())
    assert len(rows) == len(step.RULES) * (len(step.VARIANTS) + 1)
    point = curves.measure("width", 16, 1, curves.Size(batch=8, samples=16))
    timing.show([point], curves.COLUMNS, tmp_path / "curves.json")
    capsys.readouterr()
    table.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(format(row["ratio"], ".2f") in printed for row in rows)
    assert {path.name for path in tmp_path.glob("*.svg")} == {"ratios.svg", "curves.svg"}
    with pytest.raises(SystemExit, match="no rows"):
        table.main([str(tmp_path / "elsewhere")])


def test_turns(monkeypatch):
    """The median of the turns' ratios, not the ratio of medians; the first does not count."""
    clock, spent = iter(range(10**6)), {"slow": iter([9.0, 4, 6, 20]), "fast": iter([9.0, 2, 2, 10])}
    now = [0.0]
    monkeypatch.setattr(timing.time, "process_time", lambda: now[0] + 1e-9 * next(clock))

    def work(name):
        now[0] += next(spent[name])

    turns = timing.Turns({name: lambda name=name: work(name) for name in spent}, 3)
    assert turns.ratio("slow", "fast") == pytest.approx(2)
    assert turns.ratio("slow", "fast", "slow") == pytest.approx(2 / 3)
    assert turns.seconds("slow") == pytest.approx(6)
