"""The names that docs/metrics.md documents."""

import re
from collections.abc import Collection
from pathlib import Path

MODELS = ("original", "unlearned", "retrained")


def documented() -> list[str]:
    """The first column of its tables, with ``<layer>`` and ``<set>`` as they stand and every model by name."""
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    names = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(names) == len(set(names))
    return [name.replace("<model>", model) for name in names for model in (MODELS if "<model>" in name else ("",))]


def known(metric: str, names: Collection[str]) -> bool:
    """Whether one of ``names`` is this metric's."""
    return any(re.fullmatch(re.sub(r"<\w+>", r"[^/]+", re.escape(name)), metric) for name in names)
