"""The classes of the built-in scenes: their sizes, the boxes that they are made of, and what is painted on these."""

from __future__ import annotations

import colorsys
from functools import lru_cache
from typing import NamedTuple

import numpy as np

SIZES = {"car": (2.2, 5.0, 2.2), "truck": (2.8, 8.5, 4.0), "bus": (3.0, 10.0, 3.5), "container": (3.2, 6.0, 3.2)}
"""Width, length and height in metres of each class; those of an object differ by up to ``SPREAD``."""
SPREAD = 0.08
NAMES = tuple(SIZES)
TEXELS = 32
"""A face's picture has this many by this many texels, of which each is an index into a palette."""
FRONT, REAR, LEFT, RIGHT, ABOVE = range(5)

_BODY, _SECOND, _GLASS, _FRONT_LIGHT, _REAR_LIGHT, _DARK, _WHITE = range(7)


class Part(NamedTuple):
    """A box of an object: ``low`` and ``high`` float [3], its corners as shares (-.5..+.5) of the object's length, width and height;
    ``faces`` uint8 [5, TEXELS, TEXELS] palette indices by face, from below and from the left of who looks along x or at a side."""

    low: np.ndarray
    high: np.ndarray
    faces: np.ndarray


def palette(rng: np.random.Generator, label: int) -> np.ndarray:
    """The colours of one object, float32 [7, 3] in 0..255."""
    hue, shade = rng.random(), rng.uniform(0.45, 0.95)
    name = NAMES[label]
    if name == "bus":
        body, second = _colour(0.08 + 0.1 * hue, 0.85, 0.6 + 0.4 * shade), _colour(rng.random(), 0.7, 0.5)
    elif name == "truck":
        body, second = _colour(hue, 0.1, 0.75 + 0.25 * shade), _colour(rng.random(), 0.85, shade)
    elif name == "container":
        body = _colour(rng.choice((0.02, 0.33, 0.58)) + 0.05 * hue, 0.75, 0.3 + 0.4 * shade)
        second = body * np.float32(0.45)
    else:
        body, second = _colour(hue, 0.9, shade), _colour(hue, 0.8, shade * 0.8)
    others = [(25, 35, 45), (255, 250, 190), (220, 20, 25), (22, 22, 24), (240, 240, 235)]
    return np.array([body, second, *others], np.float32)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, min(value, 1.0)), np.float32) * 255


@lru_cache(maxsize=1)
def parts() -> tuple[tuple[Part, ...], ...]:
    """The boxes that the objects of each class are made of."""
    return _car(), _truck(), _bus(), _container()


def _car() -> tuple[Part, ...]:
    body, cabin = _plain(_BODY), _plain(_GLASS)
    _lights(body, 18)
    _wheels(body, ((4, 10), (22, 28)), 12)
    body[ABOVE, 4:28, 24:30] = _SECOND
    cabin[LEFT : RIGHT + 1, :, 14:17] = cabin[LEFT : RIGHT + 1, 26:] = _BODY
    cabin[ABOVE] = _BODY
    return _part((-0.5, -0.5, -0.5), (0.5, 0.5, 0.05), body), _part((-0.36, -0.45, 0.05), (0.2, 0.45, 0.5), cabin)


def _truck() -> tuple[Part, ...]:
    cargo, cab, base = _plain(_BODY), _plain(_SECOND), _plain(_DARK)
    cargo[:4, 10:16, :] = _SECOND
    cargo[REAR, :, 15:17] = _DARK
    cargo[REAR, :4, :6] = cargo[REAR, :4, -6:] = _REAR_LIGHT
    cab[FRONT, 14:28, 3:29] = cab[LEFT : RIGHT + 1, 16:28, 14:28] = _GLASS
    _lights(cab, 4)
    return (
        _part((-0.5, -0.5, -0.32), (0.18, 0.5, 0.5), cargo),
        _part((0.22, -0.48, -0.4), (0.5, 0.48, 0.25), cab),
        _part((-0.48, -0.42, -0.5), (0.48, 0.42, -0.32), base),
    )


def _bus() -> tuple[Part, ...]:
    body = _plain(_BODY)
    body[LEFT : RIGHT + 1, 16:27, 2:30] = _GLASS
    body[LEFT : RIGHT + 1, 16:27, 6::6] = _BODY
    body[:4, 11:13] = _SECOND
    body[FRONT, 12:29, 3:29] = body[REAR, 18:27, 6:26] = _GLASS
    body[ABOVE, 12:20, 6:12] = body[ABOVE, 12:20, 20:26] = _WHITE
    _lights(body, 3)
    _wheels(body, ((4, 8), (23, 27)), 7)
    return (_part((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5), body),)


def _container() -> tuple[Part, ...]:
    body = _plain(_BODY)
    body[LEFT : RIGHT + 1, 2:30, 1::4] = body[LEFT : RIGHT + 1, 2:30, 2::4] = body[ABOVE, :, ::4] = _SECOND
    body[FRONT, 6:26, 6:26] = _WHITE
    body[FRONT, 11:21, 11:21] = _BODY
    body[REAR, :, ::8] = body[REAR, 10:12] = _DARK
    return (_part((-0.5, -0.5, -0.5), (0.5, 0.5, 0.5), body),)


def _plain(index: int) -> np.ndarray:
    return np.full((5, TEXELS, TEXELS), index, np.uint8)


def _lights(faces: np.ndarray, row: int) -> None:
    faces[FRONT, row : row + 6, 2:8] = faces[FRONT, row : row + 6, -8:-2] = _FRONT_LIGHT
    faces[REAR, row : row + 6, 1:7] = faces[REAR, row : row + 6, -7:-1] = _REAR_LIGHT


def _wheels(faces: np.ndarray, places: tuple[tuple[int, int], ...], height: int) -> None:
    for first, last in places:
        faces[LEFT : RIGHT + 1, :height, first:last] = _DARK


def _part(low: tuple[float, ...], high: tuple[float, ...], faces: np.ndarray) -> Part:
    faces.setflags(write=False)
    return Part(np.array(low, np.float32), np.array(high, np.float32), faces)
