"""A data set as its files have it, before validation: what every format reader returns."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

NO_FILE = "no such file"
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an object or an image cannot be used, in parts, so that what many share is said once.

    Attributes:
        kind: what others may share, a few words: "no such file", "box has no size", "image_id is text".
        detail: what is this one's own: its name and the places that were tried, or its values.
        remedy: what to do about all of this kind, as an imperative; "" leaves it to validation.
    """

    kind: str
    detail: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


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
        fault: why the reader rejects it, or None; boxes and labels are looked at by validation.
    """

    where: str
    label: int | None
    box: Box | None
    raw: str | tuple[object, object]
    ignore: bool = False
    area: float | None = None
    fault: Fault | None = None


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
        fault: why the reader rejects it, or None. A missing file is seen by validation, but only the reader knows where it was looked for:
            ``Fault(NO_FILE, "images/1/a0.png, looked for in images and train")``.
    """

    id: int | str
    path: Path | None
    where: str
    size: tuple[float, float] | None = None
    objects: list[RawObject] = field(default_factory=list)
    relative: bool = False
    fault: Fault | None = None


@dataclass(slots=True)
class RawDataset:
    """A data set as a format reader found it.

    Attributes:
        format, names, ids: as in ``Data``.
        splits: images of "train", "val", "test"; under "" where the data has no splits.
        notes: as in ``Data``.
        orphans: boxes that belong to no image: where each is, and why.
        absent: as in ``Data``.
        source: as in ``Data``; set by ``data.read``.
        labelled: whether the images have annotations, without which they are of no use.
        most_held_out: images that are held out as val at most, where the data has no split.
    """

    format: str
    names: list[str]
    ids: list[int]
    splits: dict[str, list[RawImage]]
    notes: list[str] = field(default_factory=list)
    orphans: list[tuple[str, Fault]] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    source: str = ""
    labelled: bool = True
    most_held_out: float = math.inf


def as_number(value: object) -> float:
    """A JSON number or the text of one as a float; NaN for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def around(xs: Iterable[object], ys: Iterable[object]) -> Box | None:
    """The upright box around points, or None where there are fewer than two or one is not two finite numbers."""
    x, y = [as_number(value) for value in xs], [as_number(value) for value in ys]
    if len(x) < 2 or len(x) != len(y) or not all(map(math.isfinite, x + y)):
        return None
    return min(x), min(y), max(x), max(y)


def stated_size(width: object, height: object) -> tuple[float, float] | None:
    """Width and height as annotations state them, or None where they are not two numbers above zero."""
    size = as_number(width), as_number(height)
    return size if size[0] > 0 and size[1] > 0 else None
