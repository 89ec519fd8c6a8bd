"""Many runs: each keeps its failure to itself, what is done is not done again, and the end is one summary."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from pgu_lightning.app.config import ConfigError, public
from pgu_lightning.app.experiment import run
from pgu_lightning.records import Report
from pgu_lightning.report import Sweep, SweepJob, print_sweep, without_details, write_sweep_html

log = logging.getLogger(__name__)

_JOB = "job.json"
_WHERE = ("output_dir", "cache", "logger", "objective")  # says where results go and who is told, not what they are


def run_job(config: DictConfig, output: Path, overrides: Sequence[str]) -> Report | None:
    """One run of a sweep: not done again where the folder has its report, and no end of the sweep where it fails.

    Args:
        config: As composed for this job.
        output: Folder of the job, a folder inside the sweep's.
        overrides: What makes it this job, ``key=value`` each.

    Returns:
        Its report, or None if it failed; ``job.json`` has the error then.
    """
    report, error = _finished(config, output), None
    if report is not None:
        log.info("done before: %s", output / "report.json")
    else:
        (output / "report.json").unlink(missing_ok=True)
        try:
            report = run(config, output)
        except ConfigError as problem:
            error = str(problem)
            log.error("%s", error)
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
            log.exception("job %s failed", output.name)
    SweepJob(output.name, public(overrides), error, None if report is None else without_details(report)).save(output / _JOB)
    return report


class Summary(Callback):
    """Hydra's callback that puts the jobs of a sweep together: ``sweep.json``, ``sweep.html`` and a table."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget which jobs an earlier sweep in this folder had; their results stay."""
        for stale in Path(config.hydra.sweep.dir).rglob(_JOB):
            stale.unlink()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write and print the summary.

        Raises:
            SystemExit: If a job failed, so that the command's exit status says so.
        """
        folder = Path(config.hydra.sweep.dir)
        jobs = [SweepJob.load(path).replace(folder=path.parent.relative_to(folder).as_posix()) for path in folder.rglob(_JOB)]
        sweep = Sweep(_name(folder), tuple(sorted(jobs, key=lambda job: _natural(job.folder))))
        sweep.save(folder / "sweep.json")
        write_sweep_html(sweep, folder / "sweep.html")
        print_sweep(sweep)
        print(folder / "sweep.html")
        if any(job.error for job in sweep.jobs):
            raise SystemExit(1)


def _finished(config: DictConfig, output: Path) -> Report | None:
    """The report of this configuration, if it is there; ``config.yaml`` is written before a run, its report at the end."""
    try:
        report, before = Report.load(output / "report.json"), OmegaConf.load(output / "config.yaml")
        same = _what(before) == _what(config)
    except (OSError, ValueError):
        return None
    return report if same else None


def _what(config: Any) -> dict[str, Any]:
    content: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return {key: value for key, value in content.items() if key not in _WHERE}


def _name(folder: Path) -> str:
    """The last two parts, since the last may be a time of day."""
    return "/".join(folder.absolute().parts[-2:])


def _natural(name: str) -> tuple[int, int | str]:
    return (0, int(name)) if name.isdigit() else (1, name)
