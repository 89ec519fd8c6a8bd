"""The command as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys


def command(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "pgu_lightning", *arguments], cwd=cwd, capture_output=True, text=True, timeout=200)


def test_help_lists_the_groups(tmp_path):
    out = command("--help", cwd=tmp_path).stdout
    for group in ("data", "model", "forget", "method", "trainer", "logger", "experiment", "sweep"):
        assert f"\n{group}: " in out
    assert "forget=samples" in out


def test_a_run_in_an_empty_folder(tmp_path):
    done = command("model.epochs=2", "logger=csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy on the forget set" in done.stdout
    (report,) = tmp_path.glob("outputs/*/*/report.json")
    assert str(report.parent.name) in done.stdout
    assert json.loads(report.read_text())["schema"] == 1
    assert list(tmp_path.glob("outputs/*/*/csv/*/metrics.csv"))
