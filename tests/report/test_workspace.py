"""The dashboard is built without a network and shows what runs log."""

from __future__ import annotations

from pgu_lightning.report.workspace import workspace
from tests.helpers.metrics import documented, known


def strings(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return [value] if isinstance(value, str) else []


def sections():
    content = workspace("someone", "project")._to_model().model_dump(by_alias=True, exclude_none=True)
    return content["spec"]["section"]["panelBankConfig"]["sections"]


def test_the_sections():
    found = sections()
    assert [section["name"] for section in found] == ["Forgetting", "Retention", "Membership", "Interference", "Cost"]
    assert all(section["panels"] and section["isOpen"] for section in found)


def test_it_refers_only_to_metrics_that_exist():
    names = documented()
    prefixes = {name.partition("/")[0] for name in names if "/" in name}
    shown = [text for text in strings([section["panels"] for section in sections()]) if text.partition("/")[0] in prefixes]
    assert len(set(shown)) >= 25
    for text in shown:
        patterns = [text.replace("/.*", "/<layer>"), text.removesuffix("_table")]
        assert any(pattern in names or known(pattern, names) for pattern in patterns), text


def test_an_unknown_metric_would_be_noticed():
    assert not known("forget/acuracy", documented())
    assert not known("final/unlearned/accuracy", documented())
    assert known("interference/network.features.0", documented())
