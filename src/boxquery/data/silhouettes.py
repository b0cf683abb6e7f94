"""The classes of the built-in scenes: outlines as polygons, so that their boxes are known without drawing."""

from __future__ import annotations

import numpy as np

_TURN = 2 * np.pi


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


def _moon() -> np.ndarray:
    outer = np.linspace(0.13, 0.87, 24)[:, None] * _TURN
    outer = np.concatenate((np.cos(outer), np.sin(outer)), 1)
    inner = np.linspace(0.79, 0.21, 20)[:, None] * _TURN
    inner = np.concatenate((0.48 + 0.78 * np.cos(inner), 0.78 * np.sin(inner)), 1)
    return np.concatenate((outer, inner))


_OUTLINES = {
    "circle": _round(40),
    "square": _round(4),
    "triangle": _round(3),
    "star": _star(),
    "cross": _cross(),
    "ring": _round(40),
    "moon": _moon(),
}
NAMES = tuple(_OUTLINES)
_HOLE = 0.56  # inner radius of the ring


def outline(label: int, angle: float) -> list[np.ndarray]:
    """A silhouette rotated by ``angle`` radians and stretched to fill the unit square.

    Returns polygons, float [n, 2] in 0..1: the outline, then the holes.
    """
    points = _OUTLINES[NAMES[label]]
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = points @ rotation
    low, high = points.min(0), points.max(0)
    points = (points - low) / (high - low)
    return [points] if NAMES[label] != "ring" else [points, 0.5 + (points - 0.5) * _HOLE]
