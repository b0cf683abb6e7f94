"""A picture for a paper: what one query of each model read, layer by layer. Drawn with PIL alone."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from boxquery.errors import UserError
from boxquery.explain.explanation import Explanation
from boxquery.files import atomic_write
from boxquery.pages.drawing import colour, draw, font_for

Relevance = Callable[[tuple[int, int]], Tensor]

ENDINGS = (".png", ".svg")
#: times an even reading, at which the colours end
MOST = 100.0

# matplotlib's "inferno" (Smith and van der Walt, CC0) at eleven even steps: equal steps look equal, also without colour
_INFERNO = np.array(
    [
        (0, 0, 4), (22, 11, 57), (66, 10, 104), (106, 23, 110), (147, 38, 103), (188, 55, 84),
        (221, 81, 58), (243, 120, 25), (252, 165, 10), (246, 215, 70), (252, 255, 164),
    ],
    np.float64,
)  # fmt: skip
_INK, _QUIET = (20, 20, 20), (110, 110, 110)
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class _Panel:
    """One cell of the figure, in its own pixels: the picture with the map on it, and what is drawn over and under it."""

    picture: Image.Image
    box: np.ndarray
    reference: np.ndarray | None
    label: int
    caption: str


@dataclass(frozen=True)
class _Column:
    heading: tuple[str, str]
    panels: list[_Panel]


def write_figure(
    explanations: Sequence[Explanation],
    path: Path,
    *,
    queries: Sequence[int] | None = None,
    titles: Sequence[str] | None = None,
    relevances: Sequence[Relevance | None] | None = None,
    panel: int = 480,
) -> Path:
    """Write the figure: a column an explanation, a row a decoder layer.

    Each panel is the image in grey with what the query read over it: clear where it read no more than an even reading of the image would,
    then brighter on a logarithmic scale up to ``MOST`` times that, the same in every panel and every figure. The box that the layer
    predicts is solid, the reference that it was placed at dashed (a cross where it is a point); below are class and score. A query that
    the model drops has the layers that it took part in.

    Args:
        explanations: of any models and images.
        path: ``.png``, or ``.svg`` with letters and lines that stay sharp.
        queries: one an explanation; None: the first of its ``shown``.
        titles: what each explanation is called; None: its model's name.
        relevances: of each chosen query, a second opinion in a last row, or None: (height, width) -> map of this size that sums to one.
        panel: long side of an image in pixels.

    Raises ``UserError`` for another ending.
    """
    path = checked_ending(path)
    chosen = [story.shown[0] for story in explanations] if queries is None else queries
    names = [story.model for story in explanations] if titles is None else titles
    opinions = [None] * len(explanations) if relevances is None else relevances
    columns = [_column(*each, panel) for each in zip(explanations, chosen, names, opinions, strict=True)]
    return atomic_write(path, _svg(columns) if path.suffix.lower() == ".svg" else _png(columns))


def checked_ending(path: Path) -> Path:
    """The path; ``UserError`` unless a figure can have it."""
    if path.suffix.lower() not in ENDINGS:
        raise UserError(f"{path}: a figure ends with {' or '.join(ENDINGS)}")
    return path


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1] of any shape [...] -> uint8 [..., 3], perceptually uniform."""
    at = np.clip(values, 0, 1) * (len(_INFERNO) - 1)
    channels = [np.interp(at, np.arange(len(_INFERNO)), _INFERNO[:, i]) for i in range(3)]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def above_even(heat: np.ndarray) -> np.ndarray:
    """A map [h, w] that sums to one -> [h, w] in [0, 1]: 0 up to an even reading, 1 from ``MOST`` times that, logarithmic between."""
    return np.clip(np.log(np.maximum(heat * heat.size, 1.0)) / np.log(MOST), 0, 1)


def laid_over(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The image in grey under the map [h, w], at the map's size."""
    height, width = heat.shape
    small = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    grey = np.asarray(small.convert("L"), np.float64)[..., None] * 0.75 + 40
    level = above_even(heat)[..., None]
    cover = 0.85 * np.sqrt(level)
    return Image.fromarray(np.rint(grey * (1 - cover) + heat_colours(0.25 + 0.75 * level[..., 0]) * cover).astype(np.uint8))


def _column(story: Explanation, query: int, name: str, relevance: Relevance | None, panel: int) -> _Column:
    scale = panel / max(story.size)
    size = max(1, round(story.size[0] * scale)), max(1, round(story.size[1] * scale))
    panels = []
    for layer in range(present := story.present(query)):
        heat = story.heatmap(query, layer, size)
        lost = f", {heat.lost:.0%} outside" if heat.lost >= 0.005 else ""
        caption = f"layer {layer + 1}: {story.name(query, layer)} {story.scores[layer, query]:.2f}{lost}"
        reference = None if story.references is None else _point_or_box(story.references[layer, query] * scale)
        picture = laid_over(story.image, heat.map.double().numpy())
        panels.append(_Panel(picture, story.boxes[layer, query] * scale, reference, int(story.labels[layer, query]), caption))
    if relevance is not None:
        picture = laid_over(story.image, relevance(size).double().numpy())
        panels.append(replace(panels[-1], picture=picture, reference=None, caption="relevance by gradient, all layers"))
    dropped = f", dropped after layer {present}" if present < len(story.boxes) else ""
    return _Column((name, f"query {query}{dropped}"), panels)


def _point_or_box(reference: np.ndarray) -> np.ndarray:
    """[2] or [4]; a box without size is the point."""
    return reference[:2] if len(reference) == 4 and np.array_equal(reference[:2], reference[2:]) else reference


# -- layout: the same for both kinds ----------------------------------------------------------------------------------------------------

_GAP, _LINE, _TEXT = 16, 26, 18


@dataclass(frozen=True)
class _Layout:
    """Left ends of columns, tops of rows (of their pictures), and the whole; in pixels."""

    lefts: list[int]
    tops: list[int]
    width: int
    height: int

    @property
    def bar(self) -> tuple[int, int]:
        """The left top of the scale."""
        return _GAP, self.height - _GAP - _LINE - _LINE // 2


def _layout(columns: Sequence[_Column]) -> _Layout:
    lefts, x = [], _GAP
    for column in columns:
        lefts.append(x)
        words = (*column.heading, *(panel.caption for panel in column.panels))
        x += max(*(panel.picture.width for panel in column.panels), *map(_length, words)) + _GAP
    tops, y = [], _GAP + 2 * _LINE
    for row in range(max(len(column.panels) for column in columns)):
        tops.append(y)
        y += max(column.panels[row].picture.height for column in columns if row < len(column.panels)) + _LINE + _GAP
    scale = _GAP + max(dx + _length(word) for dx, word in _BAR_WORDS) + _GAP
    return _Layout(lefts, tops, max(x, scale), y + 2 * _LINE)


def _length(words: str) -> int:
    """Pixels, in the font of the PNG; that of the SVG is about as wide."""
    return math.ceil(font_for([words], _TEXT).getlength(words))


def _bar() -> Image.Image:
    """The scale as a strip, as it looks on a middle grey."""
    return laid_over(Image.new("RGB", (160, 10), (128, 128, 128)), np.tile(np.geomspace(1, MOST, 160) / 1600, (10, 1)))


_BAR_WORDS = ((0, "1x"), (72, "10x"), (140, f"{MOST:.0f}x an even reading"))


def _png(columns: Sequence[_Column]) -> bytes:
    at = _layout(columns)
    page = Image.new("RGB", (at.width, at.height), _WHITE)
    pen = ImageDraw.Draw(page)
    font = font_for((word for column in columns for word in (*column.heading, *(panel.caption for panel in column.panels))), _TEXT)
    for left, column in zip(at.lefts, columns, strict=True):
        pen.text((left, _GAP), column.heading[0], font=font, fill=_INK)
        pen.text((left, _GAP + _LINE), column.heading[1], font=font, fill=_QUIET)
        for top, panel in zip(at.tops, column.panels, strict=False):
            page.paste(_drawn(panel), (left, top))
            pen.text((left, top + panel.picture.height + 2), panel.caption, font=font, fill=_INK)
    x, y = at.bar
    page.paste(_bar(), (x, y))
    for dx, word in _BAR_WORDS:
        pen.text((x + dx, y + 10), word, font=font, fill=_QUIET)
    stream = io.BytesIO()
    page.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _drawn(panel: _Panel) -> Image.Image:
    """The panel's picture with box and reference on it."""
    label = [panel.label]
    dashed = None
    if panel.reference is not None and len(panel.reference) == 4:
        dashed = panel.reference[None], np.array(label)
    picture = draw(panel.picture, panel.box[None], label, [], dashed=dashed, tags=False)
    if panel.reference is not None and len(panel.reference) == 2:
        pen = ImageDraw.Draw(picture)
        for ink, width in (((0, 0, 0), 4), (_WHITE, 2)):
            for stroke in _cross(panel.reference):
                pen.line(stroke, fill=ink, width=width)
    return picture


def _cross(point: np.ndarray) -> list[tuple[float, float, float, float]]:
    x, y = point.tolist()
    return [(x - 6, y, x + 6, y), (x, y - 6, x, y + 6)]


def _svg(columns: Sequence[_Column]) -> str:
    at = _layout(columns)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{at.width}" height="{at.height}" viewBox="0 0 {at.width} {at.height}"'
        f' font-family="Helvetica, Arial, sans-serif" font-size="{_TEXT}">',
        f'<rect width="{at.width}" height="{at.height}" fill="#fff"/>',
    ]
    for number, (left, column) in enumerate(zip(at.lefts, columns, strict=True)):
        parts.append(_words(left, _GAP + _TEXT, column.heading[0], _INK, ' font-weight="bold"'))
        parts.append(_words(left, _GAP + _LINE + _TEXT, column.heading[1], _QUIET))
        for row, (top, panel) in enumerate(zip(at.tops, column.panels, strict=False)):
            parts += _vector(panel, left, top, f"c{number}r{row}")
            parts.append(_words(left, top + panel.picture.height + 2 + _TEXT, panel.caption, _INK))
    x, y = at.bar
    parts.append(_embedded(_bar(), x, y))
    parts += [_words(x + dx, y + 10 + _TEXT, word, _QUIET) for dx, word in _BAR_WORDS]
    return "\n".join([*parts, "</svg>\n"])


def _vector(panel: _Panel, left: int, top: int, name: str) -> list[str]:
    """Picture, reference and box; what lies outside the picture is cut off."""
    width, height = panel.picture.size
    parts = [f'<clipPath id="{name}"><rect width="{width}" height="{height}"/></clipPath>']
    parts.append(f'<g transform="translate({left} {top})" clip-path="url(#{name})">')
    parts.append(_embedded(panel.picture, 0, 0))
    ink = _hex(colour(panel.label))
    if panel.reference is not None and len(panel.reference) == 4:
        parts += _frame(panel.reference, ink, ' stroke-dasharray="6 4"')
    parts += _frame(panel.box, ink, "")
    if panel.reference is not None and len(panel.reference) == 2:
        strokes = " ".join(f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}" for a, b, c, d in _cross(panel.reference))
        parts += [f'<path d="{strokes}" stroke="{ink}" stroke-width="{width}"/>' for ink, width in (("#000", 4), ("#fff", 2))]
    return [*parts, "</g>"]


def _frame(box: np.ndarray, ink: str, dash: str) -> list[str]:
    x1, y1, x2, y2 = (round(v, 1) for v in box.tolist())
    place = f'x="{x1}" y="{y1}" width="{max(x2 - x1, 0):.1f}" height="{max(y2 - y1, 0):.1f}" fill="none"'
    return [
        f'<rect {place} stroke="#000" stroke-opacity="0.45" stroke-width="4"{dash}/>',
        f'<rect {place} stroke="{ink}" stroke-width="2"{dash}/>',
    ]


def _words(x: float, y: float, text: str, ink: tuple[int, int, int], more: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{_hex(ink)}"{more}>{escape(text)}</text>'


def _embedded(picture: Image.Image, x: int, y: int) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<image x="{x}" y="{y}" width="{picture.width}" height="{picture.height}" href="data:image/png;base64,{data}"/>'


def _hex(ink: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*ink)
