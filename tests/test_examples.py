"""Every example runs."""

from __future__ import annotations

import re

from tests.helpers.processes import ROOT, run_script


def test_existing_trainer(tmp_path):
    out = run_script(ROOT / "examples" / "existing_trainer.py", str(tmp_path))
    accuracies = [float(value) for value in re.findall(r"forget accuracy [\d.]+ -> ([\d.]+)", out)]
    assert accuracies[:3] == [0.0, 0.0, 0.0]
    assert 0.9 <= accuracies[3] < 1.0
    assert len(accuracies) == 4


def test_its_own_part_does_not_mention_the_package():
    source = (ROOT / "examples" / "existing_trainer.py").read_text()
    before, after = source.split("# ---- what is added ----")
    assert "pgu" not in before.split('"""', 2)[2].lower()
    assert "pgu" in after
