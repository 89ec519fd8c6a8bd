"""Sweeps: what is done is left alone, what fails is named, and through the real command the same holds for processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from omegaconf import OmegaConf

from pgu_lightning.app import sweep as app
from pgu_lightning.app.config import ConfigError
from pgu_lightning.report import Sweep, SweepJob
from tests.app.test_configs import composed
from tests.report.sample import rich


@pytest.fixture
def runs(monkeypatch):
    """Stands for the experiment: leaves what a run leaves, in its order, and keeps the configurations that it was given."""
    given = []

    def run(config, output):
        given.append(config)
        if config.model.epochs == 0:
            raise ConfigError("model.epochs=0: nothing")
        OmegaConf.save(config, output / "config.yaml", resolve=True)
        if config.model.epochs == 13:
            raise RuntimeError("out of luck")
        report = rich().replace(seed=config.seed)
        report.save(output / "report.json")
        return report

    monkeypatch.setattr(app, "run", run)
    return given


def job(folder, *overrides, name="0"):
    output = folder / name
    output.mkdir(exist_ok=True)
    return app.run_job(composed("logger=none", *overrides, tmp_path=output), output, overrides)


def test_a_finished_job_is_not_done_again(tmp_path, runs):
    first = job(tmp_path, "seed=1")
    assert job(tmp_path, "seed=1") == first
    assert len(runs) == 1
    assert SweepJob.load(tmp_path / "0" / "job.json").report.average_gap == first.average_gap


@pytest.mark.parametrize("same", ["logger=csv", "cache=elsewhere", "objective=average_gap"])
def test_where_results_go_does_not_make_another_job(tmp_path, runs, same):
    job(tmp_path, "seed=1")
    job(tmp_path, "seed=1", same)
    assert len(runs) == 1


@pytest.mark.parametrize("other", ["seed=2", "method.settings.trust_radius=0.02", "reference=false", "forget=samples"])
def test_another_configuration_is_another_job(tmp_path, runs, other):
    job(tmp_path, "seed=1")
    job(tmp_path, "seed=1", other)
    assert len(runs) == 2


def test_a_killed_job_is_done_again(tmp_path, runs):
    job(tmp_path, "seed=1")
    (tmp_path / "0" / "report.json").unlink()
    job(tmp_path, "seed=1")
    (tmp_path / "0" / "report.json").write_text('{"schema": 1, "req')
    job(tmp_path, "seed=1")
    assert len(runs) == 3


def test_a_failure_takes_its_old_report_along(tmp_path, runs):
    job(tmp_path, "seed=1")
    assert job(tmp_path, "model.epochs=13") is None
    assert not (tmp_path / "0" / "report.json").exists()
    saved = SweepJob.load(tmp_path / "0" / "job.json")
    assert (saved.error, saved.report) == ("RuntimeError: out of luck", None)
    assert job(tmp_path, "model.epochs=13") is None  # its config.yaml is there, and it is tried again
    assert len(runs) == 3


def test_a_mistake_is_told_without_its_type(tmp_path, runs):
    assert job(tmp_path, "model.epochs=0") is None
    assert SweepJob.load(tmp_path / "0" / "job.json").error == "model.epochs=0: nothing"


def test_people_stay_in_the_jobs_own_folder(tmp_path, runs):
    output = tmp_path / "0"
    output.mkdir()
    overrides = ("~forget.classes", "+forget.ids=[anna,bert]", "seed=1")
    app.run_job(composed(*overrides, tmp_path=output), output, overrides)
    assert "anna" not in (output / "job.json").read_text()


def test_the_summary_is_of_this_sweep(tmp_path, runs, capsys):
    config, summary = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}), app.Summary()
    for place in range(11):
        job(tmp_path, f"seed={place}", name=str(place))
    summary.on_multirun_end(config)
    assert [entry.folder for entry in Sweep.load(tmp_path / "sweep.json").jobs] == [str(place) for place in range(11)]
    assert (tmp_path / "sweep.html").exists()
    summary.on_multirun_start(config)
    job(tmp_path, "seed=0")
    job(tmp_path, "seed=1", "model.epochs=13", name="1")
    with pytest.raises(SystemExit) as ended:
        summary.on_multirun_end(config)
    assert ended.value.code == 1
    assert [entry.error for entry in Sweep.load(tmp_path / "sweep.json").jobs] == [None, "RuntimeError: out of luck"]
    assert "FAILED 1 (seed=1, epochs=13): RuntimeError: out of luck" in " ".join(capsys.readouterr().out.split())
    assert len(runs) == 12


FAST = ("model.epochs=1", "method.epochs=1", "logger=none", "examples=0")


def command(*arguments, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "pgu_lightning", "-m", *FAST, "hydra.sweep.dir=sweep", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=200):
    try:
        out, _ = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out


def test_the_command_goes_on_after_a_failure(tmp_path):
    status, out = finish(command("forget.classes=[12],[3]", "reference=false", cwd=tmp_path))
    assert status == 1, out[-3000:]
    failed, done = Sweep.load(tmp_path / "sweep" / "sweep.json").jobs
    assert failed.error.startswith("No sample has the label 12")
    assert done.report.estimated_gap is not None
    assert "FAILED 0 (" in out[out.index("2 jobs, 1 failed") :]
    assert "Traceback" not in out


@pytest.mark.slow
def test_killed_halfway_it_does_the_rest_and_trains_no_model_twice(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    jobs = ("forget=class,samples,poison", "method=pgu,pgu_paper", "seed=0,1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    process = command(*jobs, cwd=tmp_path)
    deadline = time.monotonic() + 240
    while len(list(tmp_path.glob("sweep/*/report.json"))) < 8:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("report.json")}
    trained = {path: path.stat().st_mtime_ns for path in tmp_path.glob("outputs/cache/*/model.ckpt") if ".partial" not in str(path)}
    assert 8 <= len(done) < 18

    status, out = finish(command(*jobs, cwd=tmp_path))
    assert status == 0, out[-3000:]
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    kinds = [path.parent.name.partition("-")[0] for path in tmp_path.glob("outputs/cache/*/model.ckpt") if ".partial" not in str(path)]
    assert (kinds.count("original"), kinds.count("reference")) == (6, 9)
    sweep = Sweep.load(tmp_path / "sweep" / "sweep.json")
    assert len(sweep.jobs) == 18
    assert not sweep.failed
    for entry in sweep.jobs:
        own = json.loads((tmp_path / "sweep" / entry.folder / "report.json").read_text())
        assert (own["average_gap"], own["request"]["digest"]) == (entry.report.average_gap, entry.report.request.digest)


@pytest.mark.slow
def test_a_search_minimises_what_needs_no_retrained_model(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    status, out = finish(command("sweep=search", "hydra.sweeper.n_trials=3", "reference=false", cwd=tmp_path))
    assert status == 0, out[-3000:]
    found = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    estimates = [entry.report.estimated_gap for entry in Sweep.load(tmp_path / "sweep" / "sweep.json").jobs]
    assert len(estimates) == 3
    assert found.best_value == pytest.approx(min(estimates))
