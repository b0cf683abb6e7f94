"""Boxes drawn on images, readable from 100 to 4000 pixels. Needs PIL and NumPy only."""

from __future__ import annotations

import colorsys
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Okabe and Ito's palette, distinguishable under the common kinds of colour blindness, without black, which is useless on photographs
_PALETTE = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66))
_SHADES = (1.0, 0.72, 1.3, 0.5)
_HALO = (0, 0, 0, 110)
#: font files with many scripts on Linux, Windows and macOS, for names that Pillow's own font cannot write
_FONTS = (
    "DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "NotoSansCJKsc-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf", "msyh.ttc", "simsun.ttc", "malgun.ttf", "meiryo.ttc", "segoeui.ttf", "Nirmala.ttf",
    "PingFang.ttc", "Hiragino Sans GB.ttc", "Arial Unicode.ttf", "NotoSansArabic-Regular.ttf", "NotoSansDevanagari-Regular.ttf",
    "NotoSans-Regular.ttf", "unifont.otf",
)  # fmt: skip

Colour = tuple[int, int, int]
_Rectangle = tuple[int, int, int, int]
_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class _Item(NamedTuple):
    """A box in whole pixels inside the image (both ends included), and what is written on it."""

    box: _Rectangle
    label: int
    score: float | None
    dashed: bool
    track: int = -1


def colour(label: int) -> Colour:
    """The RGB colour of a class: seven hues far apart, then darker and lighter shades of them (28 in all, then again)."""
    red, green, blue = _PALETTE[label % len(_PALETTE)]
    shade = _SHADES[label // len(_PALETTE) % len(_SHADES)]
    hue, light, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    red, green, blue = colorsys.hls_to_rgb(hue, min(light * shade, 0.85), saturation)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(
    image: Image.Image,
    boxes: np.ndarray | Sequence[Sequence[float]],
    labels: np.ndarray | Sequence[int],
    names: Sequence[str | None],
    *,
    scores: np.ndarray | Sequence[float] | None = None,
    dashed: tuple[np.ndarray, np.ndarray] | None = None,
    tracks: np.ndarray | None = None,
    tags: bool = True,
) -> Image.Image:
    """A copy of the image with boxes on it; lines and letters grow with the image.

    Args:
        image: any mode; the result is RGB.
        boxes: [K, 4] xyxy in pixels; clipped to the image; boxes outside it, inverted or not finite are left out.
        labels: [K] int, indices into ``names``; they choose the colour.
        names: class names; if one is None or missing, or no font of this machine has its letters, the number is written.
        scores: [K] in [0, 1], written after the name.
        dashed: (boxes [M, 4], labels [M]) drawn with dashed lines: ground truth, or the missed objects of it.
        tracks: [K] int, written after the name where it is not negative.
        tags: whether names and scores are written. A tag stays inside the image, and covers other tags only if there is no other place;
            then the one with the better score is on top.
    """
    canvas = image.convert("RGB")
    scale = (canvas.width * canvas.height) ** 0.5
    line = max(1, round(scale / 220))
    items = _items(canvas.size, boxes, labels, scores, False, tracks)
    if dashed is not None:
        items += _items(canvas.size, *dashed, None, True)

    pen = ImageDraw.Draw(canvas, "RGBA")
    for item in sorted(items, key=_size, reverse=True):  # small boxes end up on top
        (_draw_dashed if item.dashed else _draw_solid)(pen, item.box, colour(item.label), line)
    if tags:
        font = font_for((names[item.label] or "" for item in items if 0 <= item.label < len(names)), float(np.clip(scale / 38, 9, 120)))
        _write_tags(pen, canvas.size, items, names, font, line)
    return canvas


def font_for(texts: Iterable[str], size: float) -> _Font:
    """A font of ``size`` pixels for the texts: Pillow's own if it has all letters, else the one of this machine that has most of them."""
    letters, own = set("".join(texts)), ImageFont.load_default(size=size)
    if writes(own, letters):
        return own
    fonts = [own, *(font for name in _FONTS if (font := _system_font(name, size)) is not None)]
    return max(fonts, key=lambda font: sum(writes(font, letter) for letter in letters))


def writes(font: _Font, letters: Iterable[str]) -> bool:
    """Whether a font has all letters: none is drawn as its sign for a missing one."""
    other = [letter for letter in letters if not letter.isascii()]
    missing = _ink(font, "\U0010ffff") if other else b""
    return all(_ink(font, letter) != missing for letter in other)


def _ink(font: _Font, letter: str) -> bytes:
    return bytes(cast(Any, font.getmask(letter)))


def _writable(font: _Font, name: str | None) -> str:
    """The name, without its accents if the font lacks them; empty if it cannot write it at all."""
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name or "") if not unicodedata.combining(letter))
    return next((text for text in (name or "", plain) if writes(font, text)), "")


@lru_cache(maxsize=64)
def _system_font(name: str, size: float) -> ImageFont.FreeTypeFont | None:
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        return None


def _items(
    size: tuple[int, int],
    boxes: np.ndarray | Sequence[Sequence[float]],
    labels: np.ndarray | Sequence[int],
    scores: np.ndarray | Sequence[float] | None,
    dashed: bool,
    tracks: np.ndarray | None = None,
) -> list[_Item]:
    corners = np.asarray(boxes, np.float64).reshape(-1, 4)
    certainty = [None] * len(corners) if scores is None else np.asarray(scores, np.float64).reshape(-1).tolist()
    numbers = [-1] * len(corners) if tracks is None else tracks.tolist()
    items = []
    for corner, label, score, track in zip(corners, np.asarray(labels, np.int64).reshape(-1).tolist(), certainty, numbers, strict=True):
        low, high = corner[:2], corner[2:]
        if np.isfinite(corner).all() and (low <= high).all() and (high > 0).all() and (low < size).all():
            first = np.maximum(low, 0).astype(int)
            last = np.maximum(first, np.minimum(high.round(), size).astype(int) - 1)
            items.append(_Item((*first.tolist(), *last.tolist()), label, score, dashed, track))
    return items


def _size(item: _Item) -> int:
    left, top, right, bottom = item.box
    return (right - left) * (bottom - top)


def _grown(box: _Rectangle, by: int) -> _Rectangle:
    return box[0] - by, box[1] - by, box[2] + by, box[3] + by


def _draw_solid(pen: ImageDraw.ImageDraw, box: _Rectangle, ink: Colour, line: int) -> None:
    """A frame with its line inside the box, and a thin dark halo that separates it from a background of its own colour."""
    halo = max(1, line // 3)
    pen.rectangle(_grown(box, halo), outline=_HALO, width=halo)
    pen.rectangle(box, outline=ink, width=line)


def _draw_dashed(pen: ImageDraw.ImageDraw, box: _Rectangle, ink: Colour, line: int) -> None:
    left, top, right, bottom = box
    dash, step, halo = 4 * line, 7 * line, max(1, line // 3)
    rows, columns = (top, max(top, bottom - line + 1)), (left, max(left, right - line + 1))
    strokes = [(x, y, min(x + dash - 1, right), y + line - 1) for y in rows for x in range(left, right + 1, step)]
    strokes += [(x, y, x + line - 1, min(y + dash - 1, bottom)) for x in columns for y in range(top, bottom + 1, step)]
    for stroke in strokes:
        pen.rectangle(_grown(stroke, halo), fill=_HALO)
    for stroke in strokes:
        pen.rectangle(stroke, fill=ink)


def _write_tags(
    pen: ImageDraw.ImageDraw, size: tuple[int, int], items: list[_Item], names: Sequence[str | None], font: _Font, line: int
) -> None:
    """Tags are placed by falling score, and painted in the opposite order."""
    pad = max(2, line)
    ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (9, 2)
    height = ascent + descent + pad
    placed: list[tuple[_Rectangle, str, Colour]] = []
    for item in sorted(items, key=lambda item: 1.0 if item.score is None else -item.score):
        name = names[item.label] if 0 <= item.label < len(names) else ""
        score = "" if item.score is None else f" {item.score:.2f}"
        score = score if item.track < 0 else f" #{item.track}{score}"
        text = _fit(pen, font, _writable(font, name) or str(item.label), score, max(size[0] // 2, 40) - 2 * pad)
        width = round(pen.textlength(text, font=font)) + 2 * pad
        x, y = _place(size, item.box, width, height, line, [other for other, _, _ in placed])
        placed.append(((x, y, x + width, y + height), text, colour(item.label)))
    for (x, y, right, bottom), text, ink in reversed(placed):
        pen.rectangle((x, y, right - 1, bottom - 1), fill=ink)
        pen.text((x + pad, y + pad // 2), text, font=font, fill=_contrast(ink))


def _fit(pen: ImageDraw.ImageDraw, font: _Font, name: str, score: str, room: int) -> str:
    """Name and score in at most ``room`` pixels: a long name is cut, and in the last resort the score is dropped."""
    name = " ".join(name.split())
    if pen.textlength(name + score, font=font) <= room:
        return name + score
    for text in [name[:end] + ".." + score for end in range(min(len(name), 80) - 1, 2, -1)] + [name[:3] + score, name[:5]]:
        if pen.textlength(text, font=font) <= room:
            return text
    return name[:3]


def _place(size: tuple[int, int], box: _Rectangle, width: int, height: int, line: int, taken: list[_Rectangle]) -> tuple[int, int]:
    """The corner of a tag: the first of nine places along the edges of the box that covers no other tag, else the one that covers least."""
    left, top, right, bottom = box
    end, foot, extent = right - width + 1, bottom - height + 1, np.array([width, height])
    wanted = np.array([
        (left, top - height), (left + line, top + line), (left, bottom + 1),
        (end, top - height), (end, bottom + 1), (end - line, top + line),
        (left + line, foot - line), (end - line, foot - line), ((left + right - width) // 2, (top + bottom - height) // 2),
    ])  # fmt: skip
    corners = wanted.clip(0, np.maximum(size - extent, 0))
    moved = np.abs(corners - wanted).sum(1)
    others = np.reshape(taken, (-1, 4))
    shared = np.minimum((corners + extent)[:, None], others[:, 2:]) - np.maximum(corners[:, None], others[:, :2])
    covered = shared.clip(0).prod(2).sum(1)
    x, y = corners[np.argmin(100 * covered + moved * height + np.arange(len(wanted)))].tolist()
    return x, y


def _contrast(ink: Colour) -> Colour:
    """Black or white, whichever reads better on a colour (WCAG relative luminance)."""
    linear = [value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in ink]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.18 else (255, 255, 255)
