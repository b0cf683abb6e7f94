"""The pixels of the built-in scenes: a textured background, and silhouettes filled with gradients and textures of their own."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from boxquery.data.shapes.silhouettes import Silhouette

_FINE = 3  # outlines are drawn this many times larger, then averaged
_CONTRAST = 70.0  # least distance in RGB levels of a fill from the background under it
_NEAR = 25.0  # standard deviation in RGB levels of a colour from that of its class
_GRAIN = (8, 16, 32, 64)  # cells of the image's side of the layers of a rough ground


def paint(rng: np.random.Generator, size: int, things: list[tuple[Silhouette, float, np.ndarray]], rough: bool) -> Image.Image:
    """Render a scene.

    Args:
        size: side in pixels.
        things: what is seen, its rotation in radians and its box, float [4] xyxy in pixels, from back to front.
        rough: the ground has detail of every size, and colours and contrasts are stronger or weaker from scene to scene.
    """
    canvas = _ground(rng, size)
    if rough:
        canvas = _faded(rng, canvas) + _rough(rng, size)
    for silhouette, angle, box in things:
        left, top = np.floor(box[:2]).astype(int)
        right, bottom = np.minimum(np.ceil(box[2:]).astype(int), size)
        under = canvas[top:bottom, left:right]
        colours, body = None, None
        if silhouette.colours is not None and rng.random() < 0.5:
            colours = silhouette.colours + rng.normal(0, _NEAR, silhouette.colours.shape).astype(np.float32)
        for i, corners in enumerate(silhouette.turned(angle)):
            mask = _mask(corners, box - (left, top, left, top), right - left, bottom - top)[..., None]
            body, mask = (mask, mask) if body is None else (body, mask * body)
            fill = _fill(rng, under.mean((0, 1)), None if colours is None else colours[i], right - left, bottom - top)
            under += mask * (fill - under)
    if rough:
        canvas = _faded(rng, canvas)
    canvas += rng.integers(-12, 13, (size, size, 1), dtype=np.int8)
    return Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Float32 [size, size, 3], around 0..255: smooth colours, two straight edges, stripes."""
    cells = int(rng.integers(3, 6))
    grid = Image.fromarray(rng.integers(30, 226, (cells, cells, 3), dtype=np.uint8))
    canvas = np.asarray(grid.resize((size, size), Image.Resampling.BICUBIC)).astype(np.float32)
    for _ in range(2):
        angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.3, 0.3)
        beyond = _slope(size, size, angle) > offset
        canvas += beyond[..., None] * rng.uniform(-70, 70, 3).astype(np.float32)
    canvas += _stripes(rng, size, size, rng.uniform(0.04, 0.15) * size, 85)
    canvas += _stripes(rng, size, size, rng.uniform(0.04, 0.15) * size, 85)
    return canvas


def _rough(rng: np.random.Generator, size: int) -> np.ndarray:
    """Float32 [size, size, 3], around 0: layers of noise, the coarser the stronger."""
    canvas, strength = np.zeros((size, size, 3), np.float32), rng.uniform(0, 60)
    for cells in _GRAIN:
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        layer = np.asarray(grid.resize((size, size), Image.Resampling.BILINEAR)).astype(np.float32) / 127.5 - 1
        canvas += layer * np.float32(strength * (_GRAIN[0] / cells) ** rng.uniform(0.2, 1))
    return canvas


def _faded(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """With less colour and contrast."""
    grey = canvas.mean(2, keepdims=True)
    mean = grey.mean()
    return mean + np.float32(rng.uniform(0.5, 1)) * (grey + np.float32(rng.uniform(0.1, 1)) * (canvas - grey) - mean)


def _fill(rng: np.random.Generator, ground: np.ndarray, colour: np.ndarray | None, width: int, height: int) -> np.ndarray:
    """Float32 [height, width, 3]: a gradient between two colours, the first that of the class or far enough from the mean colour below,
    with stripes."""
    colours = rng.uniform(10, 245, (6, 3)).astype(np.float32)
    distance = np.linalg.norm(colours - ground, axis=1)
    first = colours[(distance > _CONTRAST).argmax()] if (distance > _CONTRAST).any() else colours[distance.argmax()]
    first = first if colour is None else colour
    second = first + rng.uniform(-65, 65, 3).astype(np.float32)
    slope = _slope(width, height, rng.uniform(0, 2 * np.pi))[..., None] + np.float32(0.5)
    return first + slope * (second - first) + _stripes(rng, width, height, rng.uniform(0.25, 0.7) * max(width, height), 90)


def _slope(width: int, height: int, angle: float) -> np.ndarray:
    """Float32 [height, width]: a plane through 0 in the middle that rises towards ``angle`` by 1 per width or height."""
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32) * np.float32(np.cos(angle))
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32) * np.float32(np.sin(angle))
    return y[:, None] + x[None, :]


def _stripes(rng: np.random.Generator, width: int, height: int, period: float, strength: float) -> np.ndarray:
    """Float32 [height, width, 3]: a wave of one colour in any direction, ``period`` pixels long, up to ``strength`` levels high."""
    angle, phase = rng.uniform(0, 2 * np.pi, 2)
    turn = 2 * np.pi / max(period, 3.0)
    x = np.arange(width, dtype=np.float32) * np.float32(turn * np.cos(angle)) + np.float32(phase)
    y = np.arange(height, dtype=np.float32) * np.float32(turn * np.sin(angle))
    wave = np.outer(np.sin(y), np.cos(x)) + np.outer(np.cos(y), np.sin(x))  # sin(x + y), without a sine per pixel
    return wave[..., None] * rng.uniform(-strength, strength, 3).astype(np.float32)


def _mask(corners: np.ndarray, box: np.ndarray, width: int, height: int) -> np.ndarray:
    """Float32 [height, width], 0..1: how much of each pixel the silhouette covers, with ``box`` xyxy in pixels of this small picture."""
    image = Image.new("L", (width * _FINE, height * _FINE))
    draw = ImageDraw.Draw(image)
    points = (box[:2] + corners * (box[2:] - box[:2])) * _FINE - 0.5
    draw.polygon(points.ravel().tolist(), fill=255)
    return np.asarray(image.reduce(_FINE), dtype=np.float32) / 255
