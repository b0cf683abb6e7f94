"""Line charts as inline SVG: few ticks, names at the ends of the lines, values under the pointer without a script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from boxquery.pages.format import number
from boxquery.pages.html import render_part

Point = tuple[float, float]
Band = tuple[float, float, float]

# in SVG units; letters are 12 high
_LEFT, _TOP, _BOTTOM = 46, 26, 30  # margins
_LETTER = 7.1  # width of a letter of the labels, about
_ROW = 15  # height of a label
_HOVER_LETTER, _HOVER_ROW = 6.2, 14  # the same of the values under the pointer
_HOVERS = 120  # most columns that show their values under the pointer


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to SVG units along one axis."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start), 1)


def ticks(low: float, high: float, count: int = 4, whole: bool = False) -> list[float]:
    """Round values from at or below ``low`` to at or above ``high``: about ``count`` steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        high = low + (abs(low) or 1)
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions of labels moved apart until they are ``gap`` from each other and within low..high, in the same order."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    result = list(positions)
    edge = low
    for i in order:
        result[i] = edge = max(result[i], edge)
        edge += gap
    edge = high
    for i in reversed(order):
        result[i] = edge = min(result[i], edge)
        edge -= gap
    return result


def line_chart(
    series: Mapping[str, Sequence[Point]],
    *,
    title: str,
    unit: str = "epoch",
    best: str | None = None,
    kinds: Mapping[str, str] | None = None,
    bands: Mapping[str, Sequence[Band]] | None = None,
    x_range: tuple[float, float] | None = None,
    last: bool = True,
    width: int = 420,
    height: int = 235,
) -> Markup:
    """An ``<svg>`` of one or more lines; the y axis begins at 0 unless a value is below.

    Args:
        series: name -> points (x, y), finite, rising in x; lines may have gaps in x. A single point is drawn as a dot.
        title: for those who cannot see it, with the last values.
        unit: what x counts.
        best: a series whose highest point gets a mark, on ties the last.
        kinds: name -> CSS class of its line; None: s0, s1, ... in order.
        bands: name -> (x, low, high), rising in x: a lighter area behind that line.
        x_range: of the x axis; None: that of the points.
        last: write a line's last value beside its name.
        width, height: in SVG units.

    Raises:
        ValueError: no points at all.
    """
    series = {name: line for name, line in series.items() if line}
    if not series:
        raise ValueError("a chart needs at least one point")
    bands = {name: band for name, band in (bands or {}).items() if len(band) > 1}
    texts = _texts(series, last, width)
    values_per_row = max(int(width / _HOVER_LETTER / (max(map(len, series)) + 8)), 1)

    columns = sorted({x for line in series.values() for x, _ in line})
    low, high = x_range or (columns[0], columns[-1])
    heights = [y for line in series.values() for _, y in line] + [y for band in bands.values() for _, *ends in band for y in ends]
    y_ticks = ticks(min(0.0, *heights), max(heights))
    x_ticks = [value for value in ticks(low, high, whole=True) if low <= value <= high] if high > low else [low]
    together = x_range is None and len({line[-1][0] for line in series.values()}) == 1
    around = int(low == high)
    x = _Scale(low - around, high + around, _LEFT, round(width - 14 - max(map(len, texts.values())) * _LETTER, 1))
    if together:  # an end that all lines share is worth its own tick, in place of round ones that it would touch
        room = (len(number(high)) + 1) * _LETTER
        x_ticks = [*(value for value in x_ticks if x(high) - x(value) > room), high]
    y = _Scale(y_ticks[0], y_ticks[-1], height - _BOTTOM, _TOP + _HOVER_ROW * (len(series) // values_per_row))
    end = max([x.stop, *(x(value) + len(number(value)) * _LETTER / 2 for value in x_ticks[-1:])])
    context = {
        "series": series,
        "bands": {name: [(a, top) for a, _, top in band] + [(a, foot) for a, foot, _ in reversed(band)] for name, band in bands.items()},
        "kinds": kinds or {name: f"s{i}" for i, name in enumerate(series)},
        "places": dict(zip(series, spread([y(line[-1][1]) for line in series.values()], _ROW, y.stop, y.start), strict=True)),
        "hovers": _hovers(series, columns, unit, values_per_row),
        "hover_row": _HOVER_ROW,
    }
    axes = {"x": x, "y": y, "x_ticks": x_ticks, "y_ticks": y_ticks, "unit": unit, "unit_at": round(end + 9, 1)}
    return render_part("chart.html", title=title, width=width, height=height, texts=texts, best=best, **context, **axes)


def _texts(series: Mapping[str, Sequence[Point]], last: bool, width: int) -> dict[str, str]:
    """What is written at the end of each line: its name, cut to leave half of the chart to the lines, and its last value."""
    if len(series) == 1:  # the caption names it
        return {name: number(line[-1][1]) for name, line in series.items()}
    texts = {}
    for name, line in series.items():
        value = f" {number(line[-1][1])}" if last else ""
        room = int(width / 2 / _LETTER) - len(value.strip())
        texts[name] = (name if len(name) <= room else f"{name[: room - 2]}..") + value
    return texts


def _hovers(series: Mapping[str, Sequence[Point]], columns: list[float], unit: str, per_row: int) -> list[tuple]:
    """Per x: the x where its column begins and ends, its values by name, and their text in rows of ``per_row``."""
    if len(columns) > _HOVERS:
        columns = [columns[round(i * (len(columns) - 1) / (_HOVERS - 1))] for i in range(_HOVERS)]
    values = {name: dict(line) for name, line in series.items()}
    borders = [columns[0], *((a + b) / 2 for a, b in pairwise(columns)), columns[-1]]
    hovers = []
    for column, (begin, end) in zip(columns, pairwise(borders), strict=True):
        here = {name: line[column] for name, line in values.items() if column in line}
        words = [f"{unit} {column:g}", *(f"{name} {number(value)}" for name, value in here.items())]
        rows = [" · ".join(words[start : start + per_row]) for start in range(0, len(words), per_row)]
        hovers.append((column, begin, end, here, rows))
    return hovers
