"""Runs a file of examples/ in this process: one of its own would import torch again."""

from __future__ import annotations

import io
import re
import runpy
import sys
import warnings
from contextlib import redirect_stdout
from unittest import mock

from tests.helpers.processes import ROOT

EXAMPLES = ROOT / "examples"


def run_example(name: str, *arguments: object) -> str:
    """Standard output of ``python examples/NAME.py ARGUMENTS``."""
    path, out = str(EXAMPLES / f"{name}.py"), io.StringIO()
    command, folders = [path, *map(str, arguments)], [str(EXAMPLES), *sys.path]
    with warnings.catch_warnings(), redirect_stdout(out), mock.patch("sys.argv", command), mock.patch("sys.path", folders):
        warnings.simplefilter("ignore")  # of the libraries that an example brings along
        runpy.run_path(path, run_name="__main__")
    return out.getvalue()


def figures(out: str, name: str) -> list[float]:
    """All values that follow a metric's name."""
    return [float(value) for value in re.findall(rf"\b{name} ([\d.]+\d)", out)]
