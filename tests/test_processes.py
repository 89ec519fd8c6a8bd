"""Two processes against one."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader

from pgu_lightning import collect
from tests.helpers.processes import run_script
from tests.helpers.toys import Module, blobs, trainer

SCRIPT = Path(__file__).parent / "scripts" / "fit.py"


def results(folder, mode, devices):
    return [torch.load(folder / f"{mode}-{devices}-{rank}.pt", weights_only=True) for rank in range(devices)]


def test_the_switch_within_a_fit_on_two_processes(tmp_path):
    run_script(SCRIPT, "2", "switch", str(tmp_path), "32-true")
    first, second = results(tmp_path, "switch", 2)
    assert first["fulfilled"]
    assert first["forget_accuracy"] == 0
    for name, value in first["state"].items():
        if "running" not in name:  # BatchNorm's own statistics are each process's while learning
            assert torch.equal(value, second["state"][name])


def test_world_size_does_not_matter(tmp_path):
    """Invariant 4, for a forget set and validation data that two processes cannot share evenly."""
    L.seed_everything(0, verbose=False)
    module = Module()
    trainer(15).fit(module, DataLoader(blobs(163), 32, shuffle=True))
    torch.save(module.state_dict(), tmp_path / "start.pt")
    collect(module, DataLoader(blobs(163), 32)).save(tmp_path / "start.safetensors")
    for devices in (1, 2):
        run_script(SCRIPT, str(devices), "separate", str(tmp_path), "32-true")
    (one,), both = results(tmp_path, "separate", 1), results(tmp_path, "separate", 2)
    for two in both:
        assert two["epochs"] == one["epochs"]
        for key, gram in one["grams"].items():
            assert (two["grams"][key] - gram).norm() <= 1e-6 * gram.norm()
        for name, value in one["state"].items():
            torch.testing.assert_close(two["state"][name], value, rtol=1e-4, atol=1e-5)
