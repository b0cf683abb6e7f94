"""The classes of the built-in scenes: outlines as polygons, so that their boxes are known without drawing.

The first five have names. Further ones are drawn from their number: a random outline with up to three parts on it, and colours of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_TURN = 2 * np.pi
_CORNERS = 40  # of a curved outline
_MOST_PARTS = 3
_WAVES = 7  # a random outline has up to so many bulges


def _round(corners: int) -> np.ndarray:
    angle = np.arange(corners) * (_TURN / corners)
    return np.stack((np.cos(angle), np.sin(angle)), 1)


def _star() -> np.ndarray:
    points = _round(10)
    points[1::2] *= 0.42
    return points


def _cross() -> np.ndarray:
    arm = np.array([[1, -0.32], [1, 0.32], [0.32, 0.32]])
    quarter = np.array([[0, 1], [-1, 0]])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter, k) for k in range(4)])


_OUTLINES = {
    "circle": _round(_CORNERS),
    "square": np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]),
    "triangle": _round(3),
    "star": _star(),
    "cross": _cross(),
}
NAMES = tuple(_OUTLINES)


@dataclass(frozen=True, slots=True, eq=False)
class Silhouette:
    """What a class looks like.

    Attributes:
        outlines: polygons float [n, 2], the body and then its parts, which lie on it.
        colours: of each, float32 [3] in RGB levels, that half of the objects have; None: colours say nothing of the class.
    """

    outlines: tuple[np.ndarray, ...]
    colours: np.ndarray | None = None

    def turned(self, angle: float) -> list[np.ndarray]:
        """The outlines rotated by ``angle`` radians and stretched so that the body fills the unit square."""
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        body, *parts = [points @ rotation for points in self.outlines]
        low, high = body.min(0), body.max(0)
        return [(points - low) / (high - low) for points in (body, *parts)]


def names(classes: int) -> list[str]:
    """Of the first classes."""
    return [*NAMES[:classes], *(f"silhouette {number}" for number in range(len(NAMES) + 1, classes + 1))]


@lru_cache(maxsize=1024)
def silhouette(label: int) -> Silhouette:
    """The class of a label."""
    if label < len(NAMES):
        return Silhouette((_OUTLINES[NAMES[label]],))
    rng = np.random.default_rng([label, len(NAMES)])
    parts = [_random(rng) * rng.uniform(0.15, 0.4) + rng.uniform(-0.45, 0.45, 2) for _ in range(rng.integers(0, _MOST_PARTS + 1))]
    outlines = (_random(rng), *parts)
    return Silhouette(outlines, rng.uniform(10, 245, (len(outlines), 3)).astype(np.float32))


def _random(rng: np.random.Generator) -> np.ndarray:
    """An outline around 0, about 1 in radius: curved, or with a few corners."""
    if rng.random() < 0.35:
        corners = int(rng.integers(3, 10))
        return _round(corners) * rng.uniform(0.3, 1, (corners, 1))
    number = np.arange(2, _WAVES + 1)
    waves = rng.normal(0, 0.4, number.shape) / number**0.7
    angle = np.arange(_CORNERS) * (_TURN / _CORNERS)
    radius = 1 + np.cos(angle[:, None] * number + rng.uniform(0, _TURN, number.shape)) @ waves
    return _round(_CORNERS) * np.clip(radius, 0.25, None)[:, None]
