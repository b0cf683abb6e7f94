"""Several cameras with 3-D boxes on their images, and the scene from above beside them. Needs PIL and NumPy only."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from boxquery.boxes3d import EDGES, NEAR, corners
from boxquery.pages.drawing import Colour, colour, font_for

_FRONT = ((0, 1), (1, 5), (5, 4), (4, 0), (0, 5), (1, 4))  # of the corners: the frame of the front, and its cross
_PAPER, _RINGS, _METRES, _INK = (250, 250, 250), (205, 205, 205), (125, 125, 125), (40, 40, 40)
_GAP = 6
_HOT, _COLD = (255, 225, 60), (30, 30, 90)


def draw_scene(
    images: Sequence[Image.Image],
    lidar2img: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    names: Sequence[str] = (),
    truth: tuple[np.ndarray, np.ndarray] | None = None,
    cameras: Sequence[str] = (),
    radius: float = 50.0,
    width: int = 1200,
) -> Image.Image:
    """The images of a scene in two rows with boxes on them, and beside them the scene from above.

    The images are in the order of the cameras; those that look to the left stand left where the matrices say where they look.

    Args:
        lidar2img: [V, 4, 4], for the pixels of these images.
        boxes, labels: [K, 7 or more] and [K], drawn with solid lines; colours are those of the labels, the front has a cross or an arrow.
        names: class names, for a legend.
        truth: boxes and labels of the ground truth, drawn thin and dashed.
        cameras: names of the images.
        radius: metres from the middle to the sides of the view from above.
        width: of the result in pixels; every image has a third of what the view from above leaves.
    """
    columns = -(-len(images) // 2)
    ratio = images[0].height / images[0].width
    rows = -(-len(images) // columns)
    # columns * w + side = width, with side = rows * (w * ratio) so that both are equally high
    wide = max(16, int((width - (columns + rows) * _GAP) / (columns + rows * ratio)))
    high = max(16, round(wide * ratio))
    side = rows * high + (rows - 1) * _GAP
    canvas = Image.new("RGB", (columns * (wide + _GAP) + side, side), (255, 255, 255))
    order = _order(lidar2img)
    for place, v in enumerate(order):
        picture = draw_camera(images[v], lidar2img[v], boxes, labels, truth=truth, size=(wide, high))
        if cameras:
            _write(picture, cameras[v])
        canvas.paste(picture, ((place % columns) * (wide + _GAP), place // columns * (high + _GAP)))
    canvas.paste(draw_from_above(boxes, labels, names=names, truth=truth, radius=radius, side=side), (columns * (wide + _GAP), 0))
    return canvas


def draw_camera(
    image: Image.Image,
    lidar2img: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    truth: tuple[np.ndarray, np.ndarray] | None = None,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """One image, resized to a size (width, height), with the edges of 3-D boxes on it; the front has a cross."""
    size = size or image.size
    canvas = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    matrix = np.diag([size[0] / image.width, size[1] / image.height, 1, 1]) @ lidar2img
    pen = ImageDraw.Draw(canvas)
    line = max(1, round((size[0] * size[1]) ** 0.5 / 220))
    if truth is not None:
        for box, label in zip(corners(truth[0]), truth[1], strict=True):
            _lines(pen, _segments(box, matrix, EDGES), colour(int(label)), line, size, dashed=True)
    for box, label in zip(corners(boxes), labels, strict=True):
        _lines(pen, _segments(box, matrix, EDGES), colour(int(label)), line, size)
        _lines(pen, _segments(box, matrix, _FRONT[4:]), colour(int(label)), line, size)
    return canvas


def draw_from_above(
    boxes: np.ndarray,
    labels: np.ndarray,
    *,
    names: Sequence[str] = (),
    truth: tuple[np.ndarray, np.ndarray] | None = None,
    radius: float = 50.0,
    side: int = 400,
) -> Image.Image:
    """The scene from above, forward at the top: boxes with an arrow to their front, the vehicle in the middle, rings every ten metres.

    To the right of the vehicle stands how far a ring is, on every second one where the picture is small.
    """
    canvas = Image.new("RGB", (side, side), _PAPER)
    pen, scale = ImageDraw.Draw(canvas), side / 2 / radius
    middle, line = side / 2, max(1, round(side / 220))
    for ring in range(10, int(radius * 1.5) + 1, 10):
        pen.ellipse((middle - ring * scale, middle - ring * scale, middle + ring * scale, middle + ring * scale), outline=_RINGS)
    _metres(pen, radius, side)
    pen.polygon(
        [(middle, middle - 3 * scale), (middle - 1.2 * scale, middle + 2 * scale), (middle + 1.2 * scale, middle + 2 * scale)], fill=_INK
    )
    for shown, kinds, dashed in ([(*truth, True)] if truth is not None else []) + [(boxes, labels, False)]:
        for box, points, label in zip(np.asarray(shown, np.float64), corners(shown), kinds, strict=True):
            flat = np.column_stack((middle - points[:4, 1] * scale, middle - points[:4, 0] * scale))
            _lines(pen, [(flat[i], flat[(i + 1) % 4]) for i in range(4)], colour(int(label)), line, canvas.size, dashed=dashed)
            centre = np.array([middle - box[1] * scale, middle - box[0] * scale])
            _lines(pen, [(centre, (flat[0] + flat[1]) / 2)], colour(int(label)), line, canvas.size, dashed=dashed)
    if names:
        _legend(canvas, names, [middle - corners(each)[:, :4, 1::-1].reshape(-1, 2) * scale for each in (boxes, *(truth or ())[:1])])
    return canvas


def _metres(pen: ImageDraw.ImageDraw, radius: float, side: int) -> None:
    """The distances of the rings that are whole."""
    middle, scale, size = side / 2, side / 2 / radius, max(9, side / 40)
    font = font_for(["m"], size)
    every = 10 if 10 * scale > pen.textlength("10 m", font=font) + 4 else 20
    for ring in range(every, math.ceil(radius), every):
        text = f"{ring} m"
        wide = pen.textlength(text, font=font)
        left, top = middle + ring * scale - wide / 2, middle - size * 0.65
        pen.rectangle((left - 1, top, left + wide + 1, top + 1.3 * size), fill=_PAPER)
        pen.text((left, top), text, fill=_METRES, font=font)


def _legend(canvas: Image.Image, names: Sequence[str], points: Sequence[np.ndarray]) -> None:
    """Class names in their colours, in the corner with the fewest points [K, 2] of boxes, and readable over them."""
    side, pen = canvas.width, ImageDraw.Draw(canvas, "RGBA")
    font, step = font_for(names, max(9, side / 34)), side / 26
    wide, high = max(pen.textlength(name, font=font) for name in names) + 8, 6 + len(names) * step
    x, y = np.concatenate(points).T
    spots = [(left, top) for top in (0, side - high) for left in (0, side - wide)]
    left, top = min(spots, key=lambda spot: ((x > spot[0]) & (x < spot[0] + wide) & (y > spot[1]) & (y < spot[1] + high)).sum())
    pen.rectangle((left, top, left + wide, top + high), fill=(*_PAPER, 220))
    for i, name in enumerate(names):
        pen.text((left + 4, top + 4 + i * step), name, fill=colour(i), font=font)


def tint(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """An image in grey, with a map [h, w] of numbers from 0 to 1 over all of it: dark blue where they are 0, yellow where they are 1."""
    size = image.width, image.height
    strength = np.asarray(Image.fromarray(np.asarray(heat, np.float32)).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)[..., None]
    grey = np.asarray(image.convert("L").convert("RGB"), np.float32)
    ink = np.array(_HOT, np.float32) * strength**0.5 + np.array(_COLD, np.float32) * (1 - strength**0.5)
    share = 0.25 + 0.45 * strength**0.5
    return Image.fromarray((grey * (1 - share) + ink * share).round().astype(np.uint8))


def _order(lidar2img: np.ndarray) -> list[int]:
    """Which camera stands where: the front ones from left to right in the first row, the rear ones from left to right in the second."""
    forward = lidar2img[:, 2, :3]
    heading = np.arctan2(forward[:, 1], forward[:, 0])
    columns = -(-len(lidar2img) // 2)
    front = sorted(sorted(range(len(heading)), key=lambda v: abs(heading[v]))[:columns], key=lambda v: -heading[v])
    rear = [v for v in range(len(heading)) if v not in front]
    return front + sorted(rear, key=lambda v: heading[v] % (2 * np.pi))


def _segments(box: np.ndarray, matrix: np.ndarray, edges: Sequence[tuple[int, int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The edges of a box as lines in pixels, cut off where they pass behind the camera."""
    points = np.column_stack((box, np.ones(len(box)))) @ matrix.T
    found = []
    for i, j in edges:
        a, b = points[i], points[j]
        if max(a[2], b[2]) < NEAR:
            continue
        if a[2] < NEAR:
            a = a + (b - a) * (NEAR - a[2]) / (b[2] - a[2])
        if b[2] < NEAR:
            b = b + (a - b) * (NEAR - b[2]) / (a[2] - b[2])
        found.append((a[:2] / a[2], b[:2] / b[2]))
    return found


def _lines(
    pen: ImageDraw.ImageDraw, lines: Sequence[tuple[np.ndarray, np.ndarray]], ink: Colour, width: int, size: tuple[int, int], *,
    dashed: bool = False,
) -> None:  # fmt: skip
    """Draw what of the lines is on a canvas of that size."""
    for a, b in filter(None, (_inside(*line, size, width) for line in lines)):
        if not dashed:
            pen.line((*a, *b), fill=ink, width=width)
            continue
        steps = int(np.hypot(*(b - a)) / (3 * width + 2)) | 1  # odd: both ends are drawn
        for k in range(0, steps, 2):
            pen.line((*(a + (b - a) * k / steps), *(a + (b - a) * (k + 1) / steps)), fill=ink, width=width)


def _inside(a: np.ndarray, b: np.ndarray, size: tuple[int, int], margin: float) -> tuple[np.ndarray, np.ndarray] | None:
    """The part of a line that is on a canvas or in its margin: beside a camera, lines end thousands of pixels away."""
    low, high = 0.0, 1.0
    for start, move, side in zip(a, b - a, size, strict=True):
        if move:
            first, last = sorted(((-margin - start) / move, (side + margin - start) / move))
            low, high = max(low, first), min(high, last)
        elif not -margin <= start <= side + margin:
            return None
    return (a + low * (b - a), a + high * (b - a)) if low < high else None


def _write(picture: Image.Image, text: str) -> None:
    pen, font = ImageDraw.Draw(picture, "RGBA"), font_for([text], max(9, picture.width / 26))
    pen.rectangle((0, 0, pen.textlength(text, font=font) + 6, picture.width / 20 + 4), fill=(255, 255, 255, 170))
    pen.text((3, 1), text, fill=_INK, font=font)
