"""What a line of numbers means as a shape: box, polygon, rotated box, or box with key points."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from boxquery.data.raw import Box

_FEWEST = 5  # lines of one length from which key points without visibility are recognised


@dataclass(frozen=True, slots=True)
class Keypoints:
    """Key points behind the box: how many, how many numbers each (x, y, perhaps visibility), and whether the settings state it."""

    count: int
    size: int
    stated: bool

    @property
    def numbers(self) -> int:
        """Numbers in a line."""
        return 4 + self.count * self.size

    def __str__(self) -> str:
        return f"kpt_shape [{self.count}, {self.size}]"


def centred(values: list[float]) -> Box:
    """Centre and size as corners."""
    x, y, width, height = values[:4]
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def fits_image(values: list[float]) -> bool:
    """True if a box, as centre and size, has a size and is inside the image but for rounding."""
    x1, y1, x2, y2 = centred(values)
    return -0.01 <= x1 < x2 <= 1.01 and -0.01 <= y1 < y2 <= 1.01


def around(values: list[float]) -> Box:
    """The box around points."""
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def is_parallelogram(values: list[float]) -> bool:
    """True for four corners, in order, of a rectangle that was rotated and then scaled to 0..1 each way."""
    x1, y1, x2, y2, x3, y3, x4, y4 = values
    left, top, right, bottom = around(values)
    slack = 0.02 * max(right - left, bottom - top) + 1e-4
    return abs(x1 + x3 - x2 - x4) <= slack and abs(y1 + y3 - y2 - y4) <= slack


def guess_keypoints(lengths: Counter[int], lines: list[list[float]]) -> Keypoints | None:
    """Key points behind the box, where nothing states them, if all lines have equally many numbers and fit that better than polygons."""
    long = {length for length in lengths if length > 5}
    if len(long) != 1 or not lines:
        return None
    (length,) = long
    lines = [values for values in lines if len(values) == length]
    flagged = (length - 4) % 3 == 0 and all(value in (0, 1, 2) for values in lines for value in values[6::3])
    if lines and flagged and (length % 2 or any(2 in values[6::3] for values in lines) or _share(lines, 3) > 0.9):
        return Keypoints((length - 4) // 3, 3, stated=False)
    if len(lines) < _FEWEST or length % 2 or (length == 8 and sum(map(is_parallelogram, lines)) > 0.5 * len(lines)):
        return None
    unlike = sum(_is_no_polygon(values) for values in lines) / len(lines)
    return Keypoints((length - 4) // 2, 2, stated=False) if unlike >= 0.5 and _share(lines, 2) > 0.9 else None


def _share(lines: list[list[float]], size: int) -> float:
    """The share of lines whose key points, of so many numbers each, all lie in their box or at (0, 0), which means unknown."""
    count = 0
    for values in lines:
        x1, y1, x2, y2 = centred(values)
        dx, dy = 0.05 * (x2 - x1) + 0.005, 0.05 * (y2 - y1) + 0.005
        points = zip(values[4::size], values[5::size], strict=False)
        count += all((x, y) == (0, 0) or (x1 - dx <= x <= x2 + dx and y1 - dy <= y <= y2 + dy) for x, y in points)
    return count / len(lines)


def _is_no_polygon(values: list[float]) -> bool:
    """True if the second corner (a box's width and height) is far from the others, or edges cross."""
    corners = list(zip(values[::2], values[1::2], strict=True))
    others = [corners[0], *corners[2:]]
    extent = max(max(x for x, _ in others) - min(x for x, _ in others), max(y for _, y in others) - min(y for _, y in others))
    if min(math.dist(corners[1], corner) for corner in others) > 2 * extent:
        return True
    edges = list(zip(corners, [*corners[1:], corners[0]], strict=True))
    count = len(edges)
    return any(_cross(*edges[i], *edges[j]) for i in range(count) for j in range(i + 2, count) if (i, j) != (0, count - 1))


def _cross(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]) -> bool:
    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
