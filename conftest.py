"""The Python blocks of README.md and docs/ run as tests, one namespace a page, with the names below for the reader's own model and data."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import lightning as L
import wandb
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from torch.utils.data import DataLoader, Subset

from pgu_lightning import collect
from tests.helpers.toys import Data, Module, blobs, network, trainer

collect_ignore = ["docs/griffe_examples.py"]  # imports what builds the site, which not every environment has


def setup(namespace: dict[str, Any]) -> None:
    """A trained model, an untrained one, and their data, in an empty folder."""
    stack = namespace["_stack"] = contextlib.ExitStack()
    stack.enter_context(contextlib.chdir(stack.enter_context(tempfile.TemporaryDirectory())))
    L.seed_everything(0, verbose=False)
    train, model = blobs(160), Module()
    trainer(15).fit(model, datamodule=Data())
    namespace.update(
        L=L,
        model=model,
        untrained=Module(),
        make_network=network,
        datamodule=Data(),
        train_loader=DataLoader(train, 32, shuffle=True),
        val_loader=DataLoader(blobs(80, seed=1), 80),
        forget_loader=DataLoader(Subset(train, range(0, 160, 16)), 32),  # of class 0
        space=collect(model, DataLoader(train, 32)),
    )


def teardown(namespace: dict[str, Any]) -> None:
    """Back to where the tests run; a run of wandb ends first, it writes to the folder."""
    wandb.finish()
    namespace["_stack"].close()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()], patterns=["README.md", "docs/*.md"], setup=setup, teardown=teardown
).pytest()
