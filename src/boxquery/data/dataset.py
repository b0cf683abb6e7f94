"""What every data format becomes: splits of records with upright sizes, pixel boxes and contiguous labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One image and its objects, after every check.

    Attributes:
        id: the data set's own image id (COCO: the number; VOC and YOLO: the path below the image folder without its ending).
        path: the file, or None for an image that is drawn (built-in scenes).
        width, height: pixels, upright (after EXIF rotation).
        boxes: float32 [N, 4], xyxy in pixels of the upright image, x1 > x0, y1 > y0, inside the image.
        labels: int64 [N], 0..C-1 into ``Data.names``.
        ignore: bool [N], True for crowds and "difficult" objects: never trained on, neither right nor wrong in evaluation.
        areas: float32 [N], the annotation's own area where the format has one (COCO), else width x height of the box.
    """

    id: int | str
    path: Path | None
    width: int
    height: int
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray


@dataclass(frozen=True, eq=False)
class Split(Sequence[Record]):
    """A named list of records, and how to get the pixels of one.

    ``split[i]`` is a ``Record``; ``split.read(i)`` is its upright RGB ``PIL.Image``, read from disk or drawn.
    """

    name: str
    records: Sequence[Record]
    reader: Callable[[Record], Image.Image]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def read(self, index: int) -> Image.Image:
        return self.reader(self.records[index])


@dataclass(frozen=True, eq=False)
class Data:
    """A whole data set.

    Attributes:
        source: what the user named.
        format: "coco", "voc", "yolo" or "shapes".
        names: class names; the position is the label.
        ids: the data set's own category ids, parallel to ``names`` (VOC has none: the position).
        splits: "train", "val" and, where there is one, "test".
        notes: what was decided and must be said aloud (a seeded split, ...), one line each.
        skipped: what was left out, one line each: what, where, why.
    """

    source: str
    format: str
    names: list[str]
    ids: list[int]
    splits: dict[str, Split]
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
