"""Figures show the numbers they were given: what is drawn is read back from the SVG."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.watch.plots import (
    Interval,
    Series,
    histogram,
    interval_plot,
    line_plot,
    log_ticks,
    smooth,
    stacked_plot,
    thin,
    ticks,
)

Pairs = list[tuple[float, float]]


def elements(svg: str, tag: str, kind: str) -> list[ET.Element]:
    return [node for node in ET.fromstring(svg).iter(tag) if kind in node.get("class", "").split()]


def texts(svg: str, kind: str) -> list[str]:
    return ["".join(node.itertext()) for node in elements(svg, "text", kind)]


def labels(svg: str) -> list[list[str]]:
    return [[span.text or "" for span in node] for node in elements(svg, "text", "label")]


def grid(svg: str) -> list[float]:
    """Heights of the grid lines, lowest value first."""
    return [float(re.search(r" ([\d.]+)H", node.get("d", ""))[1]) for node in elements(svg, "path", "grid")]  # pyright: ignore[reportOptionalSubscript]


def drawn(svg: str, kind: str) -> list[Pairs]:
    """Corners of every path of a kind."""
    return [
        [(float(x), float(y)) for x, y in re.findall(r"([-\d.]+) ([-\d.]+)", node.get("d", ""))]
        for node in elements(svg, "path", kind)
    ]


def series(*ys: float, name: str = "a") -> Series:
    return Series(name=name, points=[(float(step), y) for step, y in enumerate(ys, start=1)])


def test_a_curve_passes_through_the_grid_line_of_its_value() -> None:
    svg = line_plot([series(0.0, 1.0, 2.0, 4.0)])
    assert texts(svg, "tick")[:5] == ["0", "1", "2", "3", "4"]
    heights = grid(svg)
    assert [y for _, y in drawn(svg, "line")[0]] == [heights[0], heights[1], heights[2], heights[4]]


@pytest.mark.parametrize("top", [2e-4, 1.5e-3, 3e-6, 0.7, 12.0, 1500.0, 25e3])
def test_no_two_ticks_have_the_same_label(top: float) -> None:
    """1.5e-4 was once written 2e-4."""
    svg = line_plot([series(0.0, top)])
    marks = texts(svg, "tick")[: len(grid(svg))]
    assert len(set(marks)) == len(marks) > 2
    numbers = [float(mark.replace("k", "e3")) for mark in marks]
    assert np.ptp(np.diff(numbers)) < 1e-9 * top + 1e-12, marks


def test_steps_are_evenly_spaced_and_gaps_stay_gaps() -> None:
    svg = line_plot([Series(name="a", points=[(1.0, 0.0), (2.0, 1.0), (6.0, 1.0)])])
    (first, second, third) = (x for x, _ in drawn(svg, "line")[0])
    assert third - second == pytest.approx(4 * (second - first), abs=0.6)


def test_a_log_axis_has_a_grid_line_per_decade() -> None:
    svg = line_plot([series(1e-6, 1e-5, 1e-3)], log=True)
    assert texts(svg, "tick")[:4] == ["10-6", "10-5", "10-4", "10-3"]
    heights = grid(svg)
    assert [y for _, y in drawn(svg, "line")[0]] == [heights[0], heights[1], heights[3]]
    assert np.ptp(np.diff(heights)) < 0.11


def test_zeros_have_no_place_on_a_log_axis() -> None:
    assert len(drawn(line_plot([series(0.0, 1e-5, 1e-6)], log=True), "line")[0]) == 2
    assert "exactly 0 at every step" in line_plot([series(0.0, 0.0)], log=True)


def test_two_curves_share_an_axis_and_carry_their_names() -> None:
    svg = line_plot([series(0.0, 0.5, name="reward"), series(1.0, 0.25, name="accuracy")])
    assert labels(svg) == [["reward", "0.5"], ["accuracy", "0.25"]], "from top to bottom"
    heights = dict(zip(texts(svg, "tick"), grid(svg), strict=False))
    assert [line[0][1] for line in drawn(svg, "line")] == [heights["0.0"], heights["1.0"]]


def test_one_curve_is_labelled_with_its_last_value_only() -> None:
    assert labels(line_plot([series(1.0, 0.1234)])) == [["0.123"]]
    assert labels(line_plot([series(0.5, 0.01234)], percent=True)) == [["1.2 %"]]
    assert labels(line_plot([series(3e-6, 4.56e-6)], log=True)) == [["4.6e-06"]]


@pytest.mark.parametrize("ends", [(0.5, 0.5, 0.5, 0.5), (0.0, 0.0, 1.0, 1.0), (0.9, 1.0, 1.0, 1.0)])
def test_labels_do_not_overlap(ends: tuple[float, ...]) -> None:
    svg = line_plot([series(0.0, end, name=f"curve {n}") for n, end in enumerate(ends)])
    tops = sorted(float(node.get("y", "nan")) for node in elements(svg, "text", "label"))
    assert min(np.diff(tops)) >= 28, "two lines of text each"
    assert tops[0] > 8
    assert tops[-1] + 14 < 224


def test_up_to_thirty_points_are_joined_and_more_are_smoothed() -> None:
    noise = [1.0, 3.0] * 50
    few, many = line_plot([series(*noise[:30])]), line_plot([series(*noise)])
    assert len(drawn(few, "dots")[0]) == 30
    assert drawn(few, "line") == drawn(few, "dots")
    assert len(drawn(many, "faint")[0]) == 100, "every raw point stays visible"
    spread = np.ptp([y for _, y in drawn(many, "line")[0]])
    assert spread < 0.35 * np.ptp([y for _, y in drawn(many, "faint")[0]])
    exact = line_plot([series(*noise)], raw_limit=math.inf)
    assert drawn(exact, "line") == drawn(exact, "faint")


def test_smoothing_is_a_running_mean() -> None:
    values = np.random.default_rng(0).normal(size=200)
    got = [y for _, y in smooth(series(*values).points)]
    width = 2 * (200 // 40) + 1
    half = width // 2
    np.testing.assert_allclose(got[half:-half], np.convolve(values, np.ones(width) / width, mode="valid"), rtol=1e-12)
    np.testing.assert_allclose(got[-1], values[-half - 1 :].mean(), rtol=1e-12)


def test_a_long_curve_is_smoothed_at_some_of_its_points() -> None:
    values = np.random.default_rng(3).normal(size=8000)
    got = dict(smooth(series(*values).points))
    assert 350 < len(got) <= 402
    assert {1.0, 8000.0} <= set(got)
    for step in list(got)[20:-20:37]:
        place = int(step) - 1
        assert got[step] == pytest.approx(values[place - 200 : place + 201].mean(), rel=1e-9)


def test_smoothing_on_a_log_axis_is_a_geometric_mean() -> None:
    got = smooth(series(1e-6, 1e-6, 1e-2, 1e-6, 1e-6).points, log=True)
    assert got[2][1] == pytest.approx(np.exp(np.mean(np.log([1e-6, 1e-6, 1e-2, 1e-6, 1e-6]))), rel=1e-12)


def test_thinning_keeps_every_spike() -> None:
    values = np.random.default_rng(1).normal(size=9973)
    values[[137, 5000, 9972]] = [50.0, -60.0, 70.0]
    points = series(*values).points
    kept = thin(points)
    assert len(kept) <= 400
    assert {(138.0, 50.0), (5001.0, -60.0), (9973.0, 70.0)} <= set(kept)
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert thin(points[:400]) == list(points[:400])


def bars(svg: str) -> list[list[tuple[float, float, float, float]]]:
    """(left, right, bottom, top) of every bar of every series."""
    shape = re.compile(r"M([\d.]+) ([\d.]+)V([\d.]+)H([\d.]+)V[\d.]+Z")
    return [
        [
            (float(left), float(right), float(low), float(high))
            for left, low, high, right in shape.findall(node.get("d", ""))
        ]
        for node in elements(svg, "path", "fill")
    ]


def test_stacked_bars_stand_on_each_other() -> None:
    svg = stacked_plot([series(1.0, 2.0, name="sample"), series(3.0, 0.0, name="train")])
    heights = dict(zip(texts(svg, "tick"), grid(svg), strict=False))
    sample, train = bars(svg)
    assert [(low, high) for _, _, low, high in sample] == [(heights["0"], heights["1"]), (heights["0"], heights["2"])]
    assert [(low, high) for _, _, low, high in train] == [(heights["1"], heights["4"]), (heights["2"], heights["2"])]
    assert sample[0][1] < sample[1][0], "a gap between the bars of two steps"
    assert sorted(labels(svg)) == [["sample", "1.5"], ["train", "1.5"]]


def test_many_steps_share_a_bar_that_is_their_mean() -> None:
    svg = stacked_plot([series(*([1.0, 3.0] * 300), name="sample")])
    heights = dict(zip(texts(svg, "tick"), grid(svg), strict=False))
    ((*all_bars,),) = bars(svg)
    assert len(all_bars) == 60
    assert all(high == heights["2.0"] for *_, high in all_bars)
    assert all(right > left for left, right, _, _ in all_bars)


def test_an_interval_is_drawn_to_scale() -> None:
    svg = interval_plot([Interval(name="before <SFT>", value=0.5, low=0.25, high=0.75)])
    left, right = re.fullmatch(r"M([\d.]+) [\d.]+H([\d.]+)", elements(svg, "path", "range")[0].get("d", "")).groups()  # pyright: ignore[reportOptionalMemberAccess]
    at = {
        text: float(node.get("x", "nan"))
        for text, node in zip(texts(svg, "tick"), elements(svg, "text", "tick"), strict=True)
    }
    assert (float(left), float(right)) == (at["25%"], at["75%"])
    assert float(elements(svg, "circle", "mark")[0].get("cx", "nan")) == at["50%"]
    assert texts(svg, "name") == ["before <SFT>", "50.0 % [25.0, 75.0]"]


def test_a_histogram_counts_like_numpy() -> None:
    values = np.random.default_rng(2).gamma(3.0, 20.0, size=300)
    svg = histogram([("before", list(values)), ("after", [10.0] * 30)], "characters")
    edges = ticks(0.0, float(values.max()), 30)
    counts, _ = np.histogram(values, bins=edges)
    heights = grid(svg)
    top = float(texts(svg, "tick")[len(heights) - 1].rstrip(" %")) / 100
    outline = elements(svg, "path", "area")[0].get("d", "")
    tops = [float(y) for y in re.findall(r"V([\d.]+)H", outline)]
    shares = [(heights[0] - y) / (heights[0] - heights[-1]) * top for y in tops]
    np.testing.assert_allclose(shares, counts / 300, atol=0.1 / (heights[0] - heights[-1]))
    assert labels(svg) == [["before", f"mean {values.mean():.3g}"], ["after", "mean 10"]]


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 30))
def test_ticks_are_round_and_enclose_the_values(low: float, span: float, count: int) -> None:
    high = low + span
    if high - low < abs(low) * 1e-9:
        return  # two values that a label cannot tell apart
    marks = ticks(low, high, count)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-6 * step
    assert marks[-1] >= high - 1e-6 * step
    assert 2 <= len(marks) <= 2 * count + 3
    leading = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(leading - factor) for factor in (1, 2, 5, 10)) < 1e-3


@given(st.floats(-12, 6), st.floats(0, 14))
def test_log_ticks_are_powers_of_ten_that_enclose_the_values(low: float, span: float) -> None:
    marks = log_ticks(10**low, 10 ** (low + span))
    assert 2 <= len(marks) <= 8
    assert marks[0] <= 10**low * 1.0001
    assert marks[-1] >= 10 ** (low + span) * 0.9999
    assert all(math.log10(mark) == pytest.approx(round(math.log10(mark)), abs=1e-9) for mark in marks)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=70), st.booleans(), st.booleans())
def test_any_finite_numbers_make_a_picture(values: list[float], log: bool, percent: bool) -> None:
    svg = line_plot([series(*values, name="<a>")], log=log, percent=percent)
    ET.fromstring(svg)
    assert not re.search(r"nan|inf", svg)
    for line in drawn(svg, "line"):
        assert all(0 <= x <= 560 and 0 <= y <= 224 for x, y in line)
