"""What the figures show, read from their artists, and the SVG, read as XML."""

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex

from pgu_lightning.records import Histogram, Interference, LayerRecord
from pgu_lightning.report import plots
from pgu_lightning.report.table import number
from tests.report.sample import HOSTILE, hostile, minimal, rich

FIGURES = (plots.accuracy_curve, plots.loss_histograms, plots.interference_bars, plots.interference_measured, plots.rank_bars)
IDS = [figure.__name__ for figure in FIGURES]


def lines(ax):
    return {line.get_label(): (np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)) for line in ax.lines}


@pytest.mark.parametrize("figure", FIGURES, ids=IDS)
def test_without_data_there_is_no_figure(figure):
    assert figure(minimal()) is None


def test_curve_shows_every_point():
    report = rich()
    top, bottom = plots.accuracy_curve(report).axes
    for ax, quantity in ((top, "accuracy"), (bottom, "loss")):
        for part in ("forget", "validation"):
            steps, values = lines(ax)[part]
            assert steps.tolist() == [point.step for point in report.curve]
            assert values.tolist() == [getattr(point, f"{part}_{quantity}") for point in report.curve]
    assert set(lines(top)["forget, retrained model"][1]) == {report.models["retrained"]["forget_accuracy"]}
    low, high = bottom.get_ylim()
    assert low <= min(point.forget_loss for point in report.curve)
    assert max(point.forget_loss for point in report.curve) <= high


def test_curve_without_validation_and_retrained_model():
    points = tuple(
        point.__class__(point.step, point.forget_accuracy, 0.0 if point.step == 0 else point.forget_loss) for point in rich().curve
    )
    top, bottom = plots.accuracy_curve(rich().replace(curve=points, models={})).axes
    assert list(lines(top)) == list(lines(bottom)) == ["forget"]
    assert bottom.get_yscale() == "linear"


def test_histograms_are_shares_on_common_axes():
    report = rich()
    axes = plots.loss_histograms(report).axes
    assert [ax.get_title(loc="left") for ax in axes] == ["original", "unlearned", "retrained"]
    for ax in axes:
        outlines = {patch.get_label(): patch.get_data() for patch in ax.patches if not patch.get_fill()}
        for name, histogram in report.histograms[ax.get_title(loc="left")].items():
            data = outlines[f"{name}, {sum(histogram.counts):,} samples"]
            np.testing.assert_allclose(data.values, np.array(histogram.counts) / np.sum(histogram.counts))
            np.testing.assert_array_equal(data.edges, histogram.edges)
        assert ax.get_xlim() == axes[0].get_xlim()
        assert ax.get_xscale() == "log"


def test_interference_bars():
    report = rich()
    (ax,) = plots.interference_bars(report).axes
    assert [bar.get_width() for bar in ax.patches] == list(report.interference.layers.values())
    assert [label.get_text() for label in ax.get_yticklabels()] == list(report.interference.layers)
    assert [text.get_text() for text in ax.texts] == [number(value) for value in report.interference.layers.values()]
    low, high = ax.get_xlim()
    assert all(low < value < high for value in report.interference.layers.values() if value)
    assert ax.get_xscale() == "log"


def test_no_interference_at_all():
    figure = plots.interference_bars(rich().replace(interference=Interference(0.0, {"a": 0.0, "b": 0.0})))
    assert figure.axes[0].get_xscale() == "linear"
    assert ">0.000<" in plots.to_svg(figure)


def test_interference_and_what_was_measured():
    report = rich()
    (ax,) = plots.interference_measured(report).axes
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}
    measured = report.interference.measured
    assert [label.get_text() for label in ax.get_yticklabels()] == list(measured)
    assert drawn == {
        "from the statistics": ([report.interference.layers[name] for name in measured], [0, 1, 2]),
        "measured": ([layer.own for layer in measured.values()], [0, 1, 2]),
        "measured, with changed inputs": ([layer.with_inputs for layer in measured.values()], [0, 1, 2]),
    }
    low, high = ax.get_xlim()
    assert all(low < value < high for values, _ in drawn.values() for value in values if value)
    assert plots.interference_measured(report.replace(interference=Interference(0.1, {"a": 0.1}))) is None


def test_rank_bars_add_up():
    layers = {**rich().layers, "empty": LayerRecord(0, 0, 0)}
    (ax,) = plots.rank_bars(rich().replace(layers=layers)).axes
    protected, free = (np.array([bar.get_width() for bar in container]) for container in ax.containers)
    sizes = np.array([[layer.rank, layer.free] for layer in layers.values()])
    np.testing.assert_allclose(protected[:3], (sizes[:, 0] / sizes.sum(1).clip(1))[:3])
    np.testing.assert_allclose(protected + free, [1, 1, 1, 0])
    np.testing.assert_allclose([bar.get_x() for bar in ax.containers[1]], protected)
    assert [text.get_text() for text in ax.texts] == ["7 + 2", "98 + 118", "1,200 + 3,408", "0 + 0"]


def test_svgs_stand_alone_side_by_side():
    settings = dict(matplotlib.rcParams)
    roots = [ElementTree.fromstring(plots.to_svg(figure(rich()))) for figure in FIGURES]
    assert dict(matplotlib.rcParams) == settings
    ids = [element.attrib["id"] for root in roots for element in root.iter() if "id" in element.attrib]
    assert len(ids) == len(set(ids))
    referred = 0
    for root in roots:
        own = {element.attrib.get("id") for element in root.iter()}
        for element in root.iter():
            assert not element.tag.endswith(("}style", "}image", "}script"))
            for value in element.attrib.values():
                assert "http" not in value
                for reference in re.findall(r"^#([\w.-]+)$|url\(#([\w.-]+)\)", value):
                    referred += 1
                    assert (reference[0] or reference[1]) in own
    assert referred > 50


def test_svg_text_is_text_in_the_pages_colour():
    svg = plots.to_svg(plots.rank_bars(rich()))
    texts = {element.text: element.attrib["style"] for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")}
    assert {"protected", "free", "98 + 118", "share of the directions", *rich().layers} <= texts.keys()
    assert all("fill: currentColor" in style for style in texts.values())
    assert plots.INK not in svg


def test_svg_does_not_change_from_run_to_run():
    assert plots.to_svg(plots.accuracy_curve(rich())) == plots.to_svg(plots.accuracy_curve(rich()))


@pytest.mark.parametrize("figure", FIGURES[1:], ids=IDS[1:])
def test_names_are_neither_mathematics_nor_markup(figure):
    texts = " ".join(ElementTree.fromstring(plots.to_svg(figure(hostile()))).itertext())
    assert f'"x={HOSTILE}&[bold] $\\frac$' in texts


def test_linear_edges_keep_a_linear_axis():
    histograms = {"original": {"forget": Histogram((0.0, 1.0, 2.0), (3, 1))}}
    assert plots.loss_histograms(rich().replace(histograms=histograms)).axes[0].get_xscale() == "linear"


def luminance(colour):
    channels = np.array([int(to_hex(colour)[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("colour", [plots.FORGET, plots.OTHER, plots.REFERENCE])
@pytest.mark.parametrize("paper", ["#ffffff", "#14171a"])
def test_colours_can_be_told_from_the_paper(colour, paper):
    dark, light = sorted((luminance(colour), luminance(paper)))
    assert (light + 0.05) / (dark + 0.05) >= 3
