"""A data set as its files have it, before validation: what every format reader returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class RawObject:
    """One object of the annotations.

    Attributes:
        where: file and key or line.
        label: 0..C-1, or None for an unknown category.
        box: xyxy, pixels or (``RawImage.relative``) 0..1; None if it is not four numbers.
        raw: the annotation itself, for messages: a line of text, or category and box.
        ignore: a crowd or a difficult object.
        area: the annotation's own area in pixels, or None.
    """

    where: str
    label: int | None
    box: tuple[float, float, float, float] | None
    raw: str | tuple[object, object]
    ignore: bool = False
    area: float | None = None


@dataclass(slots=True)
class RawImage:
    """One image of the annotations.

    Attributes:
        id: as in ``Record``.
        path: the file, which may be missing; None if the annotations name none.
        where: names the image in messages.
        size: stated width and height, or None.
        objects: its boxes.
        relative: boxes are in 0..1 of the image.
        fault: why the reader rejects it, or None.
    """

    id: int | str
    path: Path | None
    where: str
    size: tuple[float, float] | None = None
    objects: list[RawObject] = field(default_factory=list)
    relative: bool = False
    fault: str | None = None


@dataclass(slots=True)
class RawDataset:
    """A data set as a format reader found it.

    Attributes:
        format, names, ids: as in ``Data``.
        splits: images of "train", "val", "test"; under "" where the data has no splits.
        notes: as in ``Data``.
        orphans: one line per box that belongs to no image.
        source: as in ``Data``; set by ``data.read``.
    """

    format: str
    names: list[str]
    ids: list[int]
    splits: dict[str, list[RawImage]]
    notes: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    source: str = ""


def as_number(value: object) -> float:
    """A JSON number or the text of one as a float; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
