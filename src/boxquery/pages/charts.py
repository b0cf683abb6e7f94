"""Line charts as inline SVG: few ticks, names written at the lines' ends, values under the pointer by CSS alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from boxquery.pages.format import number

Point = tuple[float, float]
Band = tuple[float, float, float]

_LEFT, _TOP, _BOTTOM = 46, 26, 30
_LETTER = 7.1  # width of a letter of the labels, about, in SVG units
_ROW = 15  # height of a label
_VALUES_ROW = 14  # height of a row of values under the pointer
_VALUE = 6.2  # width of a letter of the values under the pointer, about
_HOVERS = 120  # at most so many columns answer to the pointer


@dataclass(frozen=True, slots=True)
class _Scale:
    """From values to SVG units along one axis."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def ticks(low: float, high: float, count: int = 4, whole: bool = False) -> list[float]:
    """Round values from at or below ``low`` to at or above ``high``: about ``count`` steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        high = low + (abs(low) or 1)
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    if whole:
        step = max(1, math.ceil(step))
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move label positions apart until they are ``gap`` from each other and within low..high, keeping their order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    result = list(wanted)
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
    from_zero: bool = True,
    best: str | None = None,
    kinds: Mapping[str, str] | None = None,
    bands: Mapping[str, Sequence[Band]] | None = None,
    last: bool = True,
    width: int = 420,
    height: int = 235,
) -> Markup:
    """An ``<svg>`` of one or more lines.

    Args:
        series: name -> points (x, y), finite, rising in x; lines may have gaps in x. A single point is drawn as a dot.
        title: for those who cannot see it, with the last values.
        unit: what x counts.
        from_zero: whether the y axis begins at 0 when no value is below.
        best: a series whose highest point gets a mark.
        kinds: name -> CSS class of its line; None: s0, s1, ... in order.
        bands: name -> (x, low, high), rising in x: a lighter area behind that line.
        last: write a line's last value beside its name.
        width, height: in SVG units; letters are 12 high.

    Raises:
        ValueError: no points at all.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        raise ValueError("a chart needs at least one point")
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    heights = [y for _, y in points] + [y for band in (bands or {}).values() for _, *ends in band for y in ends]
    y_low, y_high = min(heights), max(heights)
    if from_zero and y_low >= 0:
        y_low = 0.0
    y_ticks = ticks(y_low, y_high)
    kinds = kinds or {name: f"s{place}" for place, name in enumerate(series)}
    in_a_row = max(int(width / _VALUE / (max(map(len, series)) + 8)), 1)  # of the values under the pointer
    above = _TOP + _VALUES_ROW * (len(series) // in_a_row)
    alone = len(series) == 1  # then the caption names it
    room = int(width / 2 / _LETTER)  # for names, so that half of the chart is left for the lines
    ends = {name: number(line[-1][1]) if last or alone else "" for name, line in series.items() if line}
    names = {name: f"{'' if alone else _cut(name, room - len(value))} {value}".strip() for name, value in ends.items()}
    right = 14 + max(len(text) for text in names.values()) * _LETTER
    x = _Scale(x_low - (x_high == x_low), x_high + (x_high == x_low), _LEFT, width - right)
    y = _Scale(y_ticks[0], y_ticks[-1], height - _BOTTOM, above)

    parts = [_axes(x, y, x_low, x_high, y_ticks, unit)]
    for name, band in (bands or {}).items():
        if len(band) > 1:
            edge = [(a, high) for a, _, high in band] + [(a, low) for a, low, _ in reversed(band)]
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in edge)
            parts.append(f'<polygon class="band {kinds[name]}" points="{path}"/>')
    places = spread([y(series[name][-1][1]) for name in names], _ROW, above, height - _BOTTOM)
    for (name, text), place in zip(names.items(), places, strict=True):
        kind = kinds[name]
        line = series[name]
        if len(line) > 1:
            path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
            parts.append(f'<polyline class="line {kind}" points="{path}"/>')
        parts.append(_dot(x(line[-1][0]), y(line[-1][1]), kind))
        if name == best and len(line) > 1:
            top = max(line, key=lambda point: point[1])
            parts.append(f'<circle class="best {kind}" cx="{x(top[0]):.1f}" cy="{y(top[1]):.1f}" r="5.5"/>')
        end = x(line[-1][0]) + 9
        parts.append(f'<text class="name {kind}" x="{end:.1f}" y="{place + 4:.1f}">{escape(text)}</text>')
    parts.append(_hovers(series, kinds, x, y, unit, (width, height), in_a_row))
    label = f"{title}. Last: {', '.join(f'{name} {number(series[name][-1][1])}' for name in names)}."
    return Markup(f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>')


def _cut(name: str, room: int) -> str:
    return name if len(name) <= room else f"{name[: room - 2]}.."


def _dot(x: float, y: float, kind: str) -> str:
    return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'


def _axes(x: _Scale, y: _Scale, x_low: float, x_high: float, y_ticks: Sequence[float], unit: str) -> str:
    parts = []
    for value in y_ticks:
        height = y(value)
        kind = "base" if value == y_ticks[0] else "grid"
        parts.append(f'<line class="{kind}" x1="{x.start}" x2="{x.stop:.1f}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick end" x="{x.start - 7}" y="{height + 4:.1f}">{number(value)}</text>')
    shown = [value for value in ticks(x_low, x_high, whole=True) if x_low <= value <= x_high] if x_high > x_low else [x_low]
    for value in shown:
        parts.append(f'<text class="tick mid" x="{x(value):.1f}" y="{y.start + 18:.1f}">{number(value)}</text>')
    beside = max(x.stop, x(shown[-1]) + len(number(shown[-1])) * _LETTER / 2) if shown else x.stop
    parts.append(f'<text class="tick" x="{beside + 9:.1f}" y="{y.start + 18:.1f}">{escape(unit)}</text>')
    return "".join(parts)


def _hovers(
    series: Mapping[str, Sequence[Point]], kinds: Mapping[str, str], x: _Scale, y: _Scale, unit: str, size: tuple[int, int], in_a_row: int
) -> str:
    """Invisible columns, one per x; the one under the pointer shows a guide, dots, and its values above the chart."""
    width, height = size
    columns = sorted({a for line in series.values() for a, _ in line})
    if len(columns) < 2:
        return ""
    if len(columns) > _HOVERS:
        columns = [columns[round(i * (len(columns) - 1) / (_HOVERS - 1))] for i in range(_HOVERS)]
    values = {name: dict(line) for name, line in series.items()}
    parts = []
    for i, column in enumerate(columns):
        before = (columns[i - 1] + column) / 2 if i else column
        after = (columns[i + 1] + column) / 2 if i + 1 < len(columns) else column
        here = {name: table[column] for name, table in values.items() if column in table}
        dots = "".join(_dot(x(column), y(value), kinds[name]) for name, value in here.items())
        words = [f"{unit} {column:g}", *(f"{name} {number(value)}" for name, value in here.items())]
        rows = [" · ".join(words[start : start + in_a_row]) for start in range(0, len(words), in_a_row)]
        text = "".join(
            f'<text class="tick end" x="{width - 2}" y="{12 + _VALUES_ROW * row}">{escape(line)}</text>' for row, line in enumerate(rows)
        )
        parts.append(
            f'<g class="at"><rect x="{x(before):.1f}" y="0" width="{x(after) - x(before):.1f}" height="{height}"/><g>'
            f'<line x1="{x(column):.1f}" x2="{x(column):.1f}" y1="{y.stop}" y2="{y.start}"/>{dots}{text}</g></g>'
        )
    return "".join(parts)


def bar(value: float | None) -> str:
    """A share in [0, 1] as a bar for a table cell; nothing for None."""
    if value is None:
        return ""
    return f'<svg class="bar" aria-hidden="true"><rect width="{100 * min(max(value, 0), 1):.1f}%" height="100%"/></svg>'
