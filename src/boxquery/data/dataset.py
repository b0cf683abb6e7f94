"""A data set as training and evaluation see it: splits of records with upright sizes, pixel boxes and contiguous labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
from PIL import Image

from boxquery.errors import UserError

SHOWN = 10
"""Lines that a command prints of each kind of fault; the rest is counted."""


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One image and its objects, validated.

    Attributes:
        id: the data set's own image id (COCO: the number; VOC and YOLO: the path below the image folder without its ending).
        path: the file, or None for a rendered image (built-in scenes).
        width, height: pixels, upright (after EXIF rotation).
        boxes: float32 [N, 4], xyxy in pixels of the upright image, x1 > x0, y1 > y0, inside the image.
        labels: int64 [N], 0..C-1 into ``Data.names``.
        ignore: bool [N], True for crowds and "difficult" objects: not trained on, and neither true nor false positives in evaluation.
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


class WithObjects(Protocol):
    """What every record has: an id, and its objects' boxes, labels and whether they are to be ignored."""

    @property
    def id(self) -> int | str: ...
    @property
    def boxes(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def ignore(self) -> np.ndarray: ...


R = TypeVar("R", bound=WithObjects)
P = TypeVar("P")


@dataclass(frozen=True, eq=False)
class AnySplit(Sequence[R], Generic[R, P]):
    """A named list of records of one kind, and a reader of their pixels: ``split[i]`` is a record, ``split.read(i)`` its pixels."""

    name: str
    records: Sequence[R]
    reader: Callable[[R], P]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]

    def read(self, index: int) -> P:
        return self.reader(self.records[index])


@dataclass(frozen=True, eq=False)
class Split(AnySplit[Record, Image.Image]):
    """A named list of records, and a reader of their pixels.

    ``split[i]`` is a ``Record``; ``split.read(i)`` is its upright RGB ``PIL.Image``, read from disk or rendered.
    """


S = TypeVar("S", bound=AnySplit)


@dataclass(frozen=True, eq=False)
class AnyData(Generic[S]):
    """A whole data set, of images or of scenes.

    Attributes:
        source: the path or word that the user gave.
        format: "coco", "voc", "yolo", "shapes", "nuscenes" or "surround".
        names: class names; the position is the label.
        ids: the data set's own category ids, parallel to ``names`` (VOC has none: the position).
        splits: "train", "val" and, where there is one, "test".
        notes: decisions that the user should know of (a seeded split, ...), one line each.
        skipped: one line per skipped box or image: where, why, what became of it.
        kinds: per line of ``skipped``, the reason that it shares with others.
        absent: why "train", "val" or "test" is not among the splits although the data speaks of it.
    """

    source: str
    format: str
    names: list[str]
    ids: list[int]
    splits: dict[str, S]
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def split(self, name: str) -> S:
        """The split of that name. Raises ``UserError`` where the data has none, or one without images."""
        if name not in self.splits:
            why = f" ({self.absent[name]})" if name in self.absent else ""
            raise UserError(f"{self.source}: no split {name!r}{why}; it has {', '.join(self.splits)}")
        if not len(self.splits[name]):
            raise UserError(f"{self.source}: no images in split {name!r}")
        return self.splits[name]

    def training_split(self) -> S:
        """The split "train". Raises ``UserError`` where there is nothing to learn from: no split, no boxes, only boxes to be ignored."""
        train = self.split("train")
        if not any(len(record.boxes) for record in train):
            raise UserError(f"{self.source}: no boxes to train on; check that the annotations belong to these images")
        if all(record.ignore.all() for record in train):
            raise UserError(f"{self.source}: no boxes to train on: all are to be ignored (iscrowd, difficult); mark those that are objects")
        return train

    def messages(self) -> list[str]:
        """What a command prints of how the data was read: every note, and of the skipped boxes and images some of each kind."""
        by_kind: dict[str, list[str]] = {}
        for line, kind in zip_longest(self.skipped, self.kinds, fillvalue=""):
            by_kind.setdefault(kind, []).append(line)
        lines = [f"note: {note}" for note in self.notes]
        for kind, skipped in by_kind.items():
            lines += [f"skipped: {line}" for line in skipped[:SHOWN]]
            if len(skipped) > SHOWN:
                more = f"and {len(skipped) - SHOWN:,} more" + (f": {kind}" if kind else "")
                lines.append(f"skipped: {more}; boxquery check with --out lists all in check.json")
        return lines


@dataclass(frozen=True, eq=False)
class Data(AnyData[Split]):
    """A data set of images."""
