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


_OUTLINES = {
    "circle": _round(40),
    "square": np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]),
    "triangle": _round(3),
    "star": _star(),
    "cross": _cross(),
}
NAMES = tuple(_OUTLINES)


def outline(label: int, angle: float) -> np.ndarray:
    """A silhouette rotated by ``angle`` radians and stretched to fill the unit square: corners, float [n, 2] in 0..1."""
    points = _OUTLINES[NAMES[label]]
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = points @ rotation
    low, high = points.min(0), points.max(0)
    return (points - low) / (high - low)
