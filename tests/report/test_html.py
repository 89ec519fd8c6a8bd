"""The page, parsed with the standard library's parser and opened in a browser, against the report."""

import itertools
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser

import pytest

from pgu_lightning.report import write_html
from pgu_lightning.report.html import render_html
from pgu_lightning.report.table import METRIC_MEANINGS, METRIC_NAMES, number
from tests.report.sample import HOSTILE, hostile, minimal, rich, unfulfilled

REPORTS = {"rich": rich, "minimal": minimal, "unfulfilled": unfulfilled, "hostile": hostile}
VOID = {"meta", "link", "img", "br"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --enable-logging=stderr --hide-scrollbars"
QUIET = "--disable-background-networking --disable-component-update --disable-sync"


class Page(HTMLParser):
    """Elements with their attributes and text; fails where tags do not match."""

    def __init__(self, source):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(source)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>: {names}"
        element = {"tag": tag, "text": "", "inside": [parent["tag"] for parent in self._open], **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag=None, **attributes):
        wanted = {name.replace("_", "-"): value for name, value in attributes.items()}
        return [
            element
            for element in self.elements
            if (tag is None or element["tag"] == tag) and all(element.get(name) == value for name, value in wanted.items())
        ]

    def one(self, tag=None, **attributes):
        (element,) = self.all(tag, **attributes)
        return element


def page(report):
    return Page(render_html(report))


@cache
def source_of(name):
    return render_html(REPORTS[name]())


@pytest.mark.parametrize("name", REPORTS)
def test_nothing_is_fetched_and_nothing_runs(name):
    source = source_of(name)
    tags = set()
    for element in Page(source).elements:
        tags.add(element["tag"])
        for attribute, value in element.items():
            if attribute in ("tag", "text", "inside"):
                continue
            assert not attribute.startswith("on")
            if attribute in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
                assert value.startswith(("data:", "#"))
            if attribute in ("style", "clip-path", "fill"):
                assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", value))
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    assert "default-src 'none'" in Page(source).one("meta", http_equiv="Content-Security-Policy")["content"]
    assert "@import" not in source
    assert "url(" not in Page(source).one("style")["text"]
    assert set(re.findall(r'https?://[^"\s]*', source)) <= {"http://www.w3.org/2000/svg"}  # the name of a namespace


def test_figures_equal_the_report():
    report, parsed = rich(), Page(source_of("rich"))
    for model, metrics in report.models.items():
        for metric, value in metrics.items():
            cell = parsed.one("td", data_metric=metric, data_model=model)
            assert float(cell["data-value"]) == value
            assert abs(float(cell["text"]) - value) <= (0.0005001 if value >= 0.01 else 0.005001 * value)
    shown = {(cell["data-metric"], cell["data-model"]) for cell in parsed.all("td") if "data-metric" in cell}
    both = report.models["unlearned"].keys() & report.models["retrained"].keys()
    assert shown == {(metric, model) for model in report.models for metric in report.models[model]} | {(metric, "gap") for metric in both}
    for metric in both:
        gap = abs(report.models["unlearned"][metric] - report.models["retrained"][metric])
        assert float(parsed.one("td", data_metric=metric, data_model="gap")["data-value"]) == gap
    for element in parsed.elements:  # also where the summary says them in percent
        if "data-metric" in element and element["data-model"] != "gap":
            assert float(element["data-value"]) == report.models[element["data-model"]][element["data-metric"]]
    measured_on = {"forget_accuracy": 1234, "retain_accuracy": 8766, "test_accuracy": 900, "forget_test_accuracy": 100}
    assert {cell["data-samples"]: int(cell["data-value"]) for cell in parsed.elements if "data-samples" in cell} == measured_on
    named = {"average_gap": report.average_gap, "floor": report.floor, "interference": report.interference.total, "request_size": 1234}
    assert {element["data-figure"]: float(element["data-value"]) for element in parsed.elements if "data-figure" in element} == named
    assert {cell["data-stage"]: float(cell["data-value"]) for cell in parsed.all("td") if "data-stage" in cell} == report.seconds


def test_layers_equal_the_report():
    report = rich()
    rows = re.findall(r'<tr data-layer="(.*?)">(.*?)</tr>', render_html(report), re.DOTALL)
    assert [name for name, _ in rows] == list(report.layers)
    for name, row in rows:
        layer = report.layers[name]
        values = [float(value) for value in re.findall(r'data-value="(.*?)"', row)]
        assert values == [layer.rank, layer.free, layer.clamped, report.interference.layers[name]]
        assert f">{layer.dim}<" in row
        measured = report.interference.measured[name]
        assert row.endswith(f'<td class="n">{number(measured.own)}</td><td class="n">{number(measured.with_inputs)}</td>')
    frozen = re.search(r'<table id="frozen">(.*?)</table>', render_html(report), re.DOTALL).group(1)
    assert all(name in frozen and reason in frozen for name, reason in report.frozen.items())


def test_worst_samples_equal_the_report():
    report, source = rich(), source_of("rich")
    for name, samples in report.worst.items():
        table = re.search(rf'<table id="worst-{name}">(.*?)</table>', source, re.DOTALL).group(1)
        assert re.findall(r"<code>([^<]*)</code>", table) == [sample.digest for sample in samples]
        values = [sample.probabilities[model] for sample in samples for model in ("original", "unlearned", "retrained")]
        assert [float(value) for value in re.findall(r'data-value="([^"]*)"', table)] == values
    assert "This file names samples" not in source
    assert "This file names samples" in source_of("hostile")
    assert "Samples to look at first" not in render_html(report.replace(worst={"remembered": (), "damaged": ()}))


def test_the_summary_says_it_in_plain_words():
    text = " ".join(Page(source_of("rich")).one("main")["text"].split())
    for words in (
        "The model had learnt from 1,234 samples that it was asked to forget (whole classes: Trouser (1)).",
        "It used to give over 99.9% of them the label they had in training. Now it does so for 0.1%; a model that never saw them, for 0%.",
        "it used to get 90.0% right. Now it gets 90.9%; a model that never saw the samples, 91.2%.",
        "its loss is lower for the forgotten one in 50.4% of the pairs (51.2% for a model that never saw either)",
        "an accuracy over 1,234 samples has a standard error of up to 0.014",
    ):
        assert words in text
    assert "2026-03-04, 05:06 UTC" in Page(source_of("rich")).one("header")["text"]
    assert "In short" not in page(rich().replace(models={"original": rich().models["original"]})).one("main")["text"]


@pytest.mark.parametrize("name", REPORTS)
def test_every_section_can_be_reached(name):
    parsed = Page(source_of(name))
    links = [element["href"] for element in parsed.all("a")]
    headings = [f"#{element['id']}" for element in parsed.all("h2")]
    assert links == ["#content", *headings, *(["#claims"] if "#short" in headings else [])]
    assert all(region["aria-label"] and region["tabindex"] == "0" for region in parsed.all(role="region"))


def test_gallery_equals_the_report():
    report, parsed = rich(), Page(source_of("rich"))
    images = parsed.all("img")
    assert [image["src"] for image in images] == [example.image for example in report.examples]
    assert all("label Trouser (1)" in image["alt"] for image in images)
    figures = [element["text"] for element in parsed.all("figure") if "label Trouser" in element["text"]]
    for text in figures:
        assert re.search(
            r"original\s*Trouser \(1\)\s*1\.000\s*unlearned\s*T-shirt/top \(0\)\s*0\.412\s*retrained\s*Pullover \(2\)\s*0\.500", text
        )
    assert len(figures) == len(report.examples) == 6


def test_the_officer_reads_what_was_asked_and_what_is_not_claimed():
    text = " ".join(Page(source_of("rich")).one("main")["text"].split())
    order = [
        "The stop rule was met: forget accuracy 0.001 is at most 0.002.",
        "What was asked",
        "ClassesTrouser (1)",
        "1,234 training samples",
        "0123456789abcdef" * 4,
        "What was done",
        "It did not read the retained training data. It made 48 steps in 12 passes over the samples to forget, and skipped 2 steps",
        "What was measured",
        "What is not claimed",
        "in one run with seed 7",
        "no proof",
        "a stronger attacker",
        "This file shows forgotten samples.",
        "How it went",
        "The run",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert all(METRIC_NAMES[metric] in text and METRIC_MEANINGS[metric] in text for metric in rich().models["original"])


def test_the_preflight_is_a_table():
    report, source = rich(), source_of("rich")
    table = re.search(r'<table id="preflight">(.*?)</table>', source, re.DOTALL).group(1)
    assert re.findall(r"<code>([^<]*)</code>", table) == list(report.preflight.layers)
    values = [value for layer in report.preflight.layers.values() for value in (layer.survives, layer.share) if value is not None]
    assert [float(value) for value in re.findall(r'data-value="([^"]*)"', table)] == values
    caption = re.search(r"<caption>(.*?)</caption>", table).group(1)
    for words in ("1,234 forget samples", "0.081 of the forget gradient", "at most 0.0001", "standard error of 0.012"):
        assert words in caption
    text = page(report).one("body")["text"]
    assert report.preflight.warnings[0] in text
    assert "Refused:" not in text
    assert 'id="preflight"' not in render_html(report.replace(preflight=None))


def test_not_fulfilled_is_said_at_the_top():
    source = source_of("unfulfilled")
    text = " ".join(Page(source).one("main")["text"].split())
    top = text[: text.index("What was asked")]
    assert top.startswith("The request is NOT fulfilled: the epochs ran out before the stop rule was met.")
    assert all(note in top for note in unfulfilled().outcome.notes)
    assert "Next step: treat the data as still known to the model." in top
    assert Page(source).one(role="alert")
    assert "stop rule was met:" not in text


def test_a_report_with_little_in_it():
    parsed = Page(source_of("minimal"))
    text = " ".join(parsed.one("main")["text"].split())
    assert "does not say whether the request is fulfilled" in text
    assert "It read the retained training data too." in text
    assert "how near the unlearned model comes to one is not known" in text
    assert [cell["data-value"] for cell in parsed.all("td", data_metric="forget_accuracy")] == ["1.0", "0.25"]
    assert not parsed.all("figure")
    assert not parsed.all("details")
    for words in ("with seed", "This file shows", "Classes", "How it went", "Two models"):
        assert words not in text
    assert "Nothing was measured." in page(minimal().replace(models={})).one("main")["text"]


@pytest.mark.parametrize("name", REPORTS)
def test_no_claim_beyond_the_evidence(name):
    text = Page(source_of(name)).one("body")["text"].lower()
    for word in ("certif", "guarantee", "provabl", "erased", "compliant"):
        assert word not in text


def test_hostile_names_stay_text():
    evil = f'"x={HOSTILE}&[bold] $\\frac$'
    parsed = Page(source_of("hostile"))
    assert "<script" not in source_of("hostile")
    assert parsed.one("body")["text"].count(evil) >= 20
    assert parsed.one(data_layer=evil)
    assert parsed.all("td", data_model=evil, data_metric=evil)[0]["data-value"] == "0.5"
    assert parsed.one("img")["alt"].endswith(f"label {evil} (1)")
    assert "no picture of this sample" in parsed.one("body")["text"]


@pytest.mark.parametrize("name", REPORTS)
def test_it_can_be_read_aloud(name):
    parsed = Page(source_of(name))
    assert parsed.one("html")["lang"] == "en"
    levels = [int(element["tag"][1]) for element in parsed.elements if re.fullmatch(r"h[1-6]", element["tag"])]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(element.get("scope") in ("row", "col") for element in parsed.all("th"))
    assert all(image.get("alt") for image in parsed.all("img"))
    assert len(parsed.all("caption")) == len([table for table in parsed.all("table") if "aria-label" not in table])
    assert len(parsed.all("svg")) == len(parsed.all(role="img")) == len([div for div in parsed.all(role="img") if div["aria-label"]])
    ids = [element["id"] for element in parsed.elements if "id" in element]
    assert len(ids) == len(set(ids))
    assert all(element["aria-labelledby"] in ids for element in parsed.elements if "aria-labelledby" in element)


def test_curve_is_also_a_table():
    table = re.search(r'<table id="curve">(.*?)</table>', source_of("rich"), re.DOTALL).group(1)
    cells = [re.findall(r"<t[hd][^>]*>([^<]*)<", row) for row in table.split("<tr>")[2:]]
    assert [int(row[0]) for row in cells] == [point.step for point in rich().curve]
    for row, point in zip(cells, rich().curve, strict=True):
        values = [
            point.forget_accuracy,
            point.forget_loss,
            point.validation_accuracy,
            point.validation_loss,
            point.mia_auc,
            point.objective,
        ]
        for cell, value in zip(row[1:], values, strict=False):
            assert cell == "-" if value is None else float(cell) == pytest.approx(value, rel=0.006, abs=0.0005)


def test_written_to_a_folder_that_is_not_there_yet(tmp_path):
    path = write_html(rich(), tmp_path / "runs" / "report.html")
    assert path.read_text(encoding="utf-8") == source_of("rich")


def open_in_chromium(path, folder, *switches):
    command = [CHROMIUM, *SWITCHES.split(), *QUIET.split(), f"--user-data-dir={folder}", *switches, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def complaints(result):
    return [line for line in result.stderr.splitlines() if "CONSOLE" in line]


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")


@needs_chromium
@pytest.mark.parametrize("name", ["rich", "hostile"])
def test_a_browser_shows_it_without_complaint(name, tmp_path):
    path = write_html(REPORTS[name](), tmp_path / "report.html")
    result = open_in_chromium(path, tmp_path / "profile", "--dump-dom")
    assert complaints(result) == []
    assert "<title>Unlearning report: Forget whole classes" in result.stdout
    assert result.stdout.count("<svg") == 5


@needs_chromium
def test_the_browser_would_complain(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(
        render_html(minimal()).replace("</body>", '<script>alert(1)</script><img src="http://127.0.0.1:9/x.png" alt=""></body>')
    )
    lines = complaints(open_in_chromium(path, tmp_path / "profile", "--dump-dom"))
    assert len([line for line in lines if "Content Security Policy" in line]) == 2
