from __future__ import annotations

import threading
import time

import pytest

from pgu_lightning.app.cache import Cache


def test_a_folder_is_made_once_and_remembered(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        (folder / "model").write_text("weights")
        return {"seconds": 1.5}

    for _ in range(2):
        folder, facts = Cache(tmp_path).folder("original", {"seed": 0, "lr": 0.1}, make)
        assert (folder / "model").read_text() == "weights"
        assert facts == {"seconds": 1.5}
    assert len(made) == 1
    other, _ = Cache(tmp_path).folder("original", {"seed": 1, "lr": 0.1}, make)
    assert other != folder


def test_the_order_of_keys_does_not_matter(tmp_path):
    one, _ = Cache(tmp_path).folder("a", {"x": 1, "y": 2}, lambda folder: {})
    two, _ = Cache(tmp_path).folder("a", {"y": 2, "x": 1}, lambda folder: {})
    assert one == two


def test_an_interrupted_stage_leaves_no_folder(tmp_path):
    def breaks(folder):
        (folder / "half").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        Cache(tmp_path).folder("a", {}, breaks)
    folder, _ = Cache(tmp_path).folder("a", {}, lambda folder: {"ok": True})
    assert not (folder / "half").exists()


def test_runs_at_the_same_time_make_it_once(tmp_path):
    made = []

    def make(folder):
        made.append(folder)
        time.sleep(0.2)
        return {}

    threads = [threading.Thread(target=Cache(tmp_path).folder, args=("a", {}, make)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
