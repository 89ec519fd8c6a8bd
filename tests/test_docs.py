"""The commands in README.md and docs/ are right, and the pages name what is there. Python blocks run through conftest.py in the root."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.helpers.processes import ROOT, run_script

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    blocks = [block for page in PAGES for language, block in BLOCK.findall(page.read_text()) if not language]
    lines = [shlex.join(shlex.split(line, comments=True)) for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if line.split(" ")[0] == "pgu-lightning" and "--" not in line})


def jobs(command: str) -> list[list[str]]:
    """The overrides of each job of a command."""
    overrides = [word for word in shlex.split(command)[1:] if word != "-m" and not word.startswith("hydra")]
    return list(BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)[0])


def composed(overrides):
    with initialize_config_module("pgu_lightning.conf", version_base="1.3"):
        return compose("config", overrides=["output_dir=unused", *overrides])


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command):
    found = jobs(command)
    assert len(found) == 1 or " -m " in command
    for overrides in found:
        OmegaConf.to_container(composed(overrides), resolve=True, throw_on_missing=True)


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_commands_run(command, tmp_path):
    """The first job of each, with few epochs."""
    overrides = jobs(command)[0]
    config = composed(overrides)
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    if config.data._target_.endswith(("CIFAR10", "TinyImageNet", "ImageFolder")) and config.data.root is None:
        pytest.skip("needs data that is not at hand")
    short = [f"hydra.run.dir={tmp_path}", f"cache={tmp_path}/cache", "model.epochs=2"]
    short += ["method.epochs=2"] * ("epochs" in config.method) + ["logger=none"] * ("logger" not in command)
    short += ["data.train_size=500"] * ("train_size" in config.data) + ["logger.wandb.offline=true"] * ("wandb.offline" in command)
    run_script(ROOT / "pgu_lightning" / "__main__.py", *overrides, *short)
    assert (tmp_path / "report.json").exists()


@pytest.mark.slow
def test_figures_are_made_by_the_code(tmp_path):
    run_script(ROOT / "docs" / "figures.py", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in (ROOT / "docs/figures").iterdir()} - {"stages.svg"}


def test_every_example_is_on_the_page_and_in_a_test():
    files = {path.stem for path in (ROOT / "examples").iterdir() if path.suffix in (".py", ".ipynb")}
    page = (ROOT / "docs" / "examples.md").read_text()
    assert files == set(re.findall(r"^\| `(\w+)\.\w+`", page, re.MULTILINE))
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_examples.py"))
    assert not [name for name in files if f'"{name}' not in tests and f"{name}.py" not in tests]
