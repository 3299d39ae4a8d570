"""Draw curves as SVG text for the report: with one y axis, labels at the curves, and colours from the style sheet.

Written by hand rather than by a plotting library because the page switches between light and dark by CSS alone, and a
figure is some 10 kB instead of 100. What is not covered: dates, legends, a second axis, interaction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 560.0, 224.0
_LEFT, _TOP, _BOTTOM = 48.0, 10.0, 36.0
_LABEL_GAP = 14.0
RAW_LIMIT = 30
_BINS = 200
_BARS = 60
_TINY = 1e-300
"""A value below this counts as 0 on a log axis."""

Point = tuple[float, float]
_Label = tuple[float, int, str, str]
"""Height on the page, tone, name ("" if the title says it), value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A named curve; `points` are (x, y) with x growing, both finite."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A measured share with its confidence interval, all in 0..1."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps a value to a place on the page, linearly or by its logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def line_plot(
    series: Sequence[Series],
    *,
    log: bool = False,
    percent: bool = False,
    raw_limit: float = RAW_LIMIT,
    x_name: str = "step",
) -> str:
    """Draws curves over steps, or over what `x_name` says in whole numbers.

    On a log axis points at or below 0 have no place and are left out.

    Up to `raw_limit` points are drawn and joined; more are drawn faint, and the line is their running mean.
    """
    kept = [Series(name=one.name, points=[p for p in one.points if p[1] >= _TINY or not log]) for one in series]
    kept = [one for one in kept if one.points]
    if not kept:
        return _svg('<text class="quiet" x="50" y="30">exactly 0 at every step</text>', 60)
    ys = [y for one in kept for _, y in one.points]
    y_ticks = log_ticks(min(ys), max(ys)) if log else ticks(*_padded(min(ys), max(ys)))
    text = _percent if percent else _power if log else _plain(y_ticks)
    y = _Scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP, log)
    lines = [smooth(one.points, log=log) if len(one.points) > raw_limit else one.points for one in kept]
    labels = [
        (y(line[-1][1]), tone, one.name if len(kept) > 1 else "", _short(line[-1][1], percent=percent))
        for tone, (one, line) in enumerate(zip(kept, lines, strict=True))
    ]
    x = _step_scale([x for one in kept for x, _ in one.points], labels)
    body = [_axes(x, y, y_ticks, text, x_name=x_name)]
    for tone, (one, line) in enumerate(zip(kept, lines, strict=True)):
        body.append(f'<g class="tone{tone}">{_dots(one.points, x, y)}{_path(thin(line), x, y)}</g>')
    return _svg("".join(body) + _labels(labels, x.end), HEIGHT)


def stacked_plot(series: Sequence[Series]) -> str:
    """Draws a bar per step, the series on top of each other; above 60 steps a bar is the mean of several steps.

    All series have the same xs. The labels on the right give the mean over the run.
    """
    xs = [x for x, _ in series[0].points]
    size = math.ceil(len(xs) / _BARS)
    chunks = [range(at, min(at + size, len(xs))) for at in range(0, len(xs), size)]
    heights = [[_mean([one.points[i][1] for i in chunk]) for chunk in chunks] for one in series]
    tops = [sum(column) for column in zip(*heights, strict=True)]
    y_ticks = ticks(0.0, max(*tops, 1e-9))
    y = _Scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    labels, last = [], 0.0
    for tone, (one, column) in enumerate(zip(series, heights, strict=True)):
        labels.append((y(last + column[-1] / 2), tone, one.name, _short(_mean([y for _, y in one.points]))))
        last += column[-1]
    x = _step_scale([xs[0] - 0.5, xs[-1] + 0.5], labels)
    body = [_axes(x, y, y_ticks, _plain(y_ticks))]
    base = [0.0] * len(chunks)
    for tone, column in enumerate(heights):
        path = ""
        for place, (chunk, height) in enumerate(zip(chunks, column, strict=True)):
            left, right = x(xs[chunk[0]] - 0.5), x(xs[chunk[-1]] + 0.5)
            gap = min(1.0, (right - left) / 5)
            low, high = y(base[place]), y(base[place] + height)
            path += f"M{left + gap:.1f} {low:.1f}V{high:.1f}H{right - gap:.1f}V{low:.1f}Z"
        body.append(f'<path class="tone{tone} fill" d="{path}"/>')
        base = [low + height for low, height in zip(base, column, strict=True)]
    return _svg("".join(body) + _labels(labels, x.end), HEIGHT)


def interval_plot(rows: Sequence[Interval]) -> str:
    """Draws one row per measurement: the value as a dot, its interval as a bar."""
    height = 46.0 + 30 * len(rows)
    x = _Scale(0.0, 1.0, 130.0, WIDTH - 160)
    body = ""
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        body += f'<path class="grid" d="M{x(tick):.1f} 8V{height - 34:.0f}"/>'
        body += f'<text class="tick" text-anchor="middle" x="{x(tick):.1f}" y="{height - 16:.0f}">{tick:.0%}</text>'
    for place, row in enumerate(rows):
        y = 26.0 + 30 * place
        numbers = f"{100 * row.value:.1f} % [{100 * row.low:.1f}, {100 * row.high:.1f}]"
        body += (
            f'<text class="name" text-anchor="end" x="116" y="{y + 4:.0f}">{escape(row.name[:18])}</text>'
            f'<g class="tone0"><path class="range" d="M{x(row.low):.1f} {y:.0f}H{x(row.high):.1f}"/>'
            f'<circle class="mark" cx="{x(row.value):.1f}" cy="{y:.0f}" r="5"/></g>'
            f'<text class="name" x="{WIDTH - 140:.0f}" y="{y + 4:.0f}">{numbers}</text>'
        )
    return _svg(body, height)


def histogram(samples: Sequence[tuple[str, Sequence[float]]], unit: str) -> str:
    """Draws the shares of each named sample in common bins, as outlines over each other."""
    top = max(value for _, values in samples for value in values)
    edges = ticks(0.0, max(top, 1.0), 30)
    width = edges[1] - edges[0]
    shares = []
    for _, values in samples:
        counts = [0] * (len(edges) - 1)
        for value in values:
            counts[min(int(value / width), len(counts) - 1)] += 1
        shares.append([count / len(values) for count in counts])
    y_ticks = ticks(0.0, max(share for row in shares for share in row))
    labels = [
        (_TOP + 14 + 32.0 * tone, tone, name, f"mean {_short(_mean(values))}")
        for tone, (name, values) in enumerate(samples)
    ]
    x = _step_scale(edges, labels)
    y = _Scale(y_ticks[0], y_ticks[-1], HEIGHT - _BOTTOM, _TOP)
    x_ticks = [tick for tick in ticks(0.0, edges[-1], 6) if tick <= edges[-1]]
    body = _axes(x, y, y_ticks, _percent, x_name=unit, x_ticks=x_ticks)
    for tone, row in enumerate(shares):
        path = f"M{x(edges[0]):.1f} {y(0):.1f}"
        path += "".join(f"V{y(share):.1f}H{x(edge):.1f}" for share, edge in zip(row, edges[1:], strict=True))
        path += f"V{y(0):.1f}"
        body += f'<path class="tone{tone} area" d="{path}"/>'
    return _svg(body + _labels(labels, x.end), HEIGHT)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Chooses about `count` round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]."""
    rough = (high - low) / count or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, max(last, first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Chooses powers of ten that enclose [low, high], at most seven and at least two; `low` is above 0."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    step = math.ceil((last - first) / 6)
    return [10.0**place for place in range(first, last + step, step)]


def smooth(points: Sequence[Point], *, log: bool = False) -> list[Point]:
    """Takes the centred running mean over a twentieth of the points; at the ends over what the window still holds.

    On a log axis it is the geometric mean, so that a single spike does not lift the whole curve. A long curve is
    evaluated at some 400 of its points, the first and the last among them.
    """
    half = max(2, len(points) // 40)
    values = [math.log(y) if log else y for _, y in points]
    last = len(points) - 1
    line = []
    for place in [*range(0, last, math.ceil(len(points) / (2 * _BINS))), last]:
        mean = _mean(values[max(0, place - half) : place + half + 1])
        line.append((points[place][0], math.exp(mean) if log else mean))
    return line


def thin(points: Sequence[Point]) -> list[Point]:
    """Keeps at most 400 points: the lowest and the highest of every stretch, so that no spike is lost."""
    if len(points) <= 2 * _BINS:
        return list(points)
    size = math.ceil(len(points) / _BINS)
    kept: list[Point] = []
    for at in range(0, len(points), size):
        stretch = points[at : at + size]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept.extend(sorted(ends))
    return kept


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _padded(low: float, high: float) -> tuple[float, float]:
    """Lets the axis start at 0, unless the values are so far from it that the curve would be flat."""
    if 0 <= low < 0.6 * high or low == high:
        return min(low, 0.0), max(high, 0.0)
    return low, high


def _step_scale(xs: Sequence[float], labels: Sequence[_Label]) -> _Scale:
    """Makes the horizontal axis as wide as the labels to its right allow."""
    low, high = min(xs), max(xs)
    longest = max(len(text) for _, _, *texts in labels for text in texts)
    return _Scale(low, high if high > low else low + 1, _LEFT, WIDTH - 16 - 7.2 * longest)


def _axes(
    x: _Scale, y: _Scale, y_ticks: Sequence[float], text: Callable[[float], str], *,
    x_name: str = "step", x_ticks: Sequence[float] | None = None,
) -> str:  # fmt: skip
    body = ""
    for tick in y_ticks:
        body += f'<path class="grid" d="M{_LEFT:.0f} {y(tick):.1f}H{x.end:.0f}"/>'
        body += f'<text class="tick" text-anchor="end" x="{_LEFT - 7:.0f}" y="{y(tick) + 4:.1f}">{text(tick)}</text>'
    inside = [t for t in ticks(x.low, x.high) if x.low <= t <= x.high and t == int(t)] if x_ticks is None else x_ticks
    name = _plain(inside)
    for tick in inside:
        body += f'<text class="tick" text-anchor="middle" x="{x(tick):.1f}" y="{HEIGHT - 19:.0f}">{name(tick)}</text>'
    middle = (x.start + x.end) / 2
    return (
        f'{body}<text class="tick" text-anchor="middle" x="{middle:.0f}" y="{HEIGHT - 4:.0f}">{escape(x_name)}</text>'
    )


def _dots(points: Sequence[Point], x: _Scale, y: _Scale) -> str:
    marks = "".join(f"M{x(a):.1f} {y(b):.1f}h0" for a, b in thin(points))
    return f'<path class="{"faint" if len(points) > RAW_LIMIT else "dots"}" d="{marks}"/>'


def _path(points: Sequence[Point], x: _Scale, y: _Scale) -> str:
    return f'<path class="line" d="M{"L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points)}"/>'


def _labels(labels: Sequence[_Label], right: float) -> str:
    """Writes name and value to the right of each curve's end, and pushes labels apart where they would overlap.

    Each label belongs at the height where its curve ends. Going down the page, a label moves below the one above it;
    the last ones may then leave the figure, so going back up, each moves above the one below it.
    """
    order = sorted(labels)
    sizes = [(2 if name else 1) * _LABEL_GAP + 2 for _, _, name, _ in order]
    tops, floor = [], _TOP - 8
    for (height, *_), size in zip(order, sizes, strict=True):
        tops.append(max(height - size / 2, floor))
        floor = tops[-1] + size
    ceiling = HEIGHT - 8
    for place in reversed(range(len(order))):
        tops[place] = ceiling = min(tops[place], ceiling - sizes[place])
    body = ""
    for (_, tone, name, value), top in zip(order, tops, strict=True):
        y, rows = top + 11, [name, value] if name else [value]
        spans = "".join(f'<tspan x="{right + 10:.0f}" dy="{_LABEL_GAP * (n > 0):.0f}">{escape(row)}</tspan>'
                        for n, row in enumerate(rows))  # fmt: skip
        body += f'<text class="tone{tone} label" y="{y:.1f}">{spans}</text>'
    return body


def _svg(body: str, height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img">{body}</svg>'


def _percent(value: float) -> str:
    text = f"{100 * value:.4f}".rstrip("0").rstrip(".")
    return f"{text} %"


def _power(value: float) -> str:
    return f'10<tspan dy="-5" class="power">{round(math.log10(value))}</tspan>'


def _plain(all_ticks: Sequence[float]) -> Callable[[float], str]:
    """Returns a format for evenly spaced ticks: as many decimals as tell them apart, and thousands as k."""
    gap = min((b - a for a, b in pairwise(all_ticks)), default=1.0)
    if gap >= 500:
        return lambda value: f"{value / 1000:g}k" if value else "0"
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    if decimals >= 4:
        return lambda value: f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-") if value else "0"
    return lambda value: f"{value:.{decimals}f}"


def _short(value: float, *, percent: bool = False) -> str:
    """Writes three significant digits, for a label."""
    if percent:
        return f"{100 * value:.1f} %"
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.1e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
