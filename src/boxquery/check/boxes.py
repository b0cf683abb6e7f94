"""Boxes that repeat: listed twice, the same in many images, or all in a corner. From annotations alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from boxquery.check.findings import Finding, ImageRef
from boxquery.data.dataset import Data, Split

#: share of the boxes that have an equal one in their image from which that is a warning; below it is a note
TWICE = 0.2
#: share of the boxes that end in one corner of their image, and of the images that have the very same box, from which it is reported
CORNER, SAME = 0.25, 0.3
FEWEST = 20  # boxes or images below which nothing is reported
_WHOLE = 0.8  # a box longer than this share of either side of its image is in no corner, and may be the same everywhere
_CLOSE = 0.004  # share of the image's side, or a pixel if that is more, within which a box ends at the border
_SHOWN = 4


def check_boxes(data: Data) -> Iterator[Finding]:
    """What repeats, by split."""
    for name, split in data.splits.items():
        yield from _check_twice(name, split)
        yield from _check_corner(name, split)
        yield from _check_same(name, split)


def _refs(name: str, indices: list[int]) -> tuple[ImageRef, ...]:
    return tuple((name, i) for i in indices[:_SHOWN])


def _check_twice(name: str, split: Split) -> Iterator[Finding]:
    total, again, indices = 0, 0, []
    for i, record in enumerate(split):
        total += len(record.boxes)
        rows = np.column_stack([record.boxes.round(1), record.labels])
        if repeated := len(rows) - len(np.unique(rows, axis=0)):
            again += repeated
            indices.append(i)
    if again:
        share = again / total
        example = split[indices[0]].id
        yield Finding(
            "boxes-listed-twice", "warning" if share >= TWICE else "note",
            f"{again} of {total} boxes of {name} are listed again in their image, equal in class and place (first: {example}): "
            f"{'each object counts twice' if 0.4 < share < 0.6 else 'such objects count more than once'}, and AP cannot reach 1.",
            "List each once." if share >= TWICE else "",
        )  # fmt: skip


def _check_corner(name: str, split: Split) -> Iterator[Finding]:
    """Boxes that touch two adjacent sides of their image: the origin of many coordinates that were lost."""
    found: dict[str, list[int]] = {}
    total = 0
    for i, record in enumerate(split):
        total += len(record.boxes)
        size = np.array([record.width, record.height])
        close = np.maximum(_CLOSE * size, 1)
        small = ((record.boxes[:, 2:] - record.boxes[:, :2]) < _WHOLE * size).all(1)
        low, high = record.boxes[:, :2] <= close, record.boxes[:, 2:] >= size - close
        for corner, x, y in (
            ("top left", low[:, 0], low[:, 1]), ("top right", high[:, 0], low[:, 1]),
            ("bottom left", low[:, 0], high[:, 1]), ("bottom right", high[:, 0], high[:, 1]),
        ):  # fmt: skip
            found.setdefault(corner, []).extend([i] * int((x & y & small).sum()))
    corner = max(found, key=lambda corner: len(found[corner]), default="")
    if total >= FEWEST and len(found[corner]) >= CORNER * total:
        count, images = len(found[corner]), list(dict.fromkeys(found[corner]))
        yield Finding(
            "boxes-in-a-corner", "warning",
            f"{count} of {total} boxes of {name} ({count / total:.0%}) stand in the {corner} corner of their image: their position may "
            "be lost.",
            "If nothing is there, export the annotations again.",
            "strong" if count >= 2 * CORNER * total else "weak", _refs(name, images),
        )  # fmt: skip


def _check_same(name: str, split: Split) -> Iterator[Finding]:
    """The very same box in many images."""
    filled = [i for i, record in enumerate(split) if len(record.boxes)]
    places: Counter[tuple[float, ...]] = Counter()
    for i in filled:
        record = split[i]
        size = np.array([record.width, record.height] * 2)
        small = ((record.boxes[:, 2:] - record.boxes[:, :2]) < _WHOLE * size[:2]).any(1)
        places.update({tuple(row) for row in (record.boxes[small] / size).round(3).tolist()})
    if len(filled) < FEWEST or not places:
        return
    (place, count), *_ = places.most_common(1)
    if count >= SAME * len(filled):
        shares = ((i, split[i].boxes / np.array([split[i].width, split[i].height] * 2)) for i in filled)
        holds = [i for i, own in shares if (np.abs(own - place) < 1e-3).all(1).any()]
        corners = ", ".join(f"{value:.1%}" for value in place)
        yield Finding(
            "same-box-everywhere", "warning",
            f"{count} of {len(filled)} {name} images with boxes have the very same one (x1, y1, x2, y2 at {corners} of the image).",
            "If cameras and objects do not stand still, annotations were copied from image to image.",
            "weak", _refs(name, holds),
        )  # fmt: skip
