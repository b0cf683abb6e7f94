"""Validation that every format shares: from what a reader found to records that can be trained on.

An invalid box or image is skipped and named, or fatal with ``strict``; too many are always fatal.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from boxquery.data.dataset import Data, Record, Split
from boxquery.data.images import Header, read_header, read_image, turn_boxes
from boxquery.data.raw import RawDataset, RawImage, RawObject
from boxquery.data.shapes import shapes_data
from boxquery.errors import UserError, printable

LIMIT = 0.10
"""A larger share of invalid boxes or images is fatal."""
HELD_OUT = 0.20
"""Share of the training images that becomes "val" where the data has none."""
_SLACK = 0.05  # pixels beyond the image that are rounding errors, not worth a note
_THREADS = 8
_QUOTED = 3  # problems quoted when there are too many

Box = tuple[float, float, float, float]


@dataclass(slots=True)
class ImportReport:
    """Counts of boxes and images, and one line per problem. In the end ``boxes_kept + boxes_skipped == boxes_total``."""

    strict: bool = False
    lines: list[str] = field(default_factory=list)
    boxes_total: int = 0
    boxes_kept: int = 0
    boxes_skipped: int = 0
    images_total: int = 0
    images_invalid: int = 0
    clipped: int = 0
    rotated: int = 0

    def problem(self, line: str, outcome: str = "skipped") -> None:
        """Add a line. Raises ``UserError`` instead where ``strict``."""
        line = printable(" ".join(line.split()))
        if self.strict:
            raise UserError(f"{line}; repair it, or go without --strict to have such cases skipped")
        self.lines.append(f"{line}; {outcome}")

    def skip_box(self, line: str) -> None:
        self.boxes_skipped += 1
        self.problem(line)

    def notes(self) -> list[str]:
        notes = (
            (self.boxes_skipped, f"{self.boxes_kept} of {self.boxes_total} boxes kept, {self.boxes_skipped} skipped"),
            (self.images_invalid, f"{self.images_invalid} of {self.images_total} images unreadable or not of the stated size"),
            (self.clipped, f"{self.clipped} box(es) reached beyond their image and were clipped to it"),
            (self.rotated, f"{self.rotated} image(s) were annotated before EXIF rotation; their boxes were rotated with the image"),
        )
        return [note for count, note in notes if count]


def validate(raw: RawDataset, *, strict: bool = False, seed: int = 0) -> tuple[Data, ImportReport]:
    """The data set that can be trained on, and the report of what was kept and skipped.

    Args:
        strict: invalid boxes and images are fatal instead of skipped and named in ``Data.skipped``.
        seed: selects the images held out as "val" where the data has none, and the built-in scenes.

    Raises:
        UserError: a duplicate image id; an empty split; with ``strict`` any problem; more than ``LIMIT`` of boxes or images invalid; no
            box to train on.
    """
    report = ImportReport(strict)
    if raw.format == "shapes":
        return shapes_data(seed=seed), report
    notes = list(raw.notes)
    names = _unique_names(raw, notes)
    splits = _make_splits(raw, seed, notes)
    report.boxes_total += len(raw.orphans)
    for line in raw.orphans:
        report.skip_box(line)
    records = {name: _valid_records(images, report) for name, images in splits.items()}
    _fail_if_useless(report, records, raw.source)
    notes += report.notes()
    for name, kept in records.items():
        empty = sum(not len(record.boxes) for record in kept)
        if empty == len(kept):
            notes.append(f"split {name!r} has no boxes at all: it cannot be evaluated")
        elif empty:
            notes.append(f"{empty} of {len(kept)} images in {name} have no objects; they are kept")
    result = {name: Split(name, kept, read_record) for name, kept in records.items()}
    return Data(raw.source, raw.format, names, raw.ids, result, notes, report.lines), report


def read_record(record: Record) -> Image.Image:
    """The pixels of a record with a file. Raises ``UserError``, naming the file, if it cannot be read."""
    if record.path is None:
        raise UserError(f"image {record.id} has no file")
    return read_image(record.path)


def check_box(box: Box, width: int, height: int) -> tuple[Box, str | None]:
    """A box, xyxy in pixels, clipped to its image, and why it is invalid, or None."""
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        return box, "box is not finite"
    if x2 <= x1 or y2 <= y1:
        return box, "box has no size"
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return box, f"box lies outside its {width} x {height} image"
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    left, top, right, bottom = np.array(clipped, np.float32)  # what differs in float64 may be equal here
    return clipped, None if right > left and bottom > top else "box has no size"


def fail_if_too_many(invalid: int, total: int, what: str, where: str = "", examples: str = "") -> None:
    """Raises ``UserError`` for a larger share than ``LIMIT``."""
    if invalid > LIMIT * total:
        raise UserError(f"{where}{invalid} of {total} {what}, more than {LIMIT:.0%}{examples}; repair the data")


def _unique_names(raw: RawDataset, notes: list[str]) -> list[str]:
    """The class names, with their ids where several are equal: a checkpoint finds its classes by name."""
    names = [printable(name) for name in raw.names]
    count = Counter(names)
    if len(count) == len(names):
        return names
    notes.append("several categories have the same name; their ids were added to tell them apart")
    return [name if count[name] == 1 else f"{name} ({i})" for name, i in zip(names, raw.ids, strict=True)]


def _make_splits(raw: RawDataset, seed: int, notes: list[str]) -> dict[str, list[RawImage]]:
    """The splits in the order train, val, test; "val" is held out of the training images where there is none."""
    splits = {name: raw.splits[name] for name in ("train", "val", "test") if name in raw.splits}
    if "" in raw.splits:
        splits["train"] = raw.splits[""]
    for name, images in splits.items():
        if not images:
            raise UserError(f"{raw.source}: split {name!r} has no images; add some or remove the split")
    if not splits:
        raise UserError(f"{raw.source}: no images; check that this is the data folder")
    if "train" in splits and "val" not in splits:
        images = splits.pop("train")
        if len(images) < 2:
            raise UserError(f"{raw.source}: one image cannot be split into train and val; add images or a val split")
        count = max(1, round(HELD_OUT * len(images)))
        held_out = set(sorted(range(len(images)), key=lambda i: _random_key(seed, images[i].id))[:count])
        train, val = ([image for i, image in enumerate(images) if (i in held_out) == held] for held in (False, True))
        splits = {"train": train, "val": val, **splits}
        which = "no splits" if "" in raw.splits else "no val split"
        notes.append(f"the data has {which}: {count} of its {len(images)} training images are held out as val (seed {seed})")
    uses = Counter(path for images in splits.values() for path in {image.path for image in images})
    if shared := sum(count > 1 for path, count in uses.items() if path is not None):
        notes.append(f"{shared} image file(s) are in more than one split: evaluation does not measure performance on new images")
    for name, images in splits.items():
        seen: dict[int | str, str] = {}
        for image in images:
            if image.id in seen:
                raise UserError(f"{image.where}: image id {image.id!r} is already taken in {name} by {seen[image.id]}; make ids unique")
            seen[image.id] = image.where
    return splits


def _random_key(seed: int, image_id: int | str) -> bytes:
    """Depends on seed and image alone, so that adding images moves few others between splits."""
    return hashlib.blake2b(f"{seed}/{image_id!r}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _valid_records(images: list[RawImage], report: ImportReport) -> list[Record]:
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(_header, images))
    records = []
    for image, header in zip(images, headers, strict=True):
        report.images_total += 1
        report.boxes_total += len(image.objects)
        if isinstance(header, str):
            report.images_invalid += 1
            report.boxes_skipped += len(image.objects)
            report.problem(f"{image.where}: image {header}", f"skipped with its {len(image.objects)} box(es)")
            continue
        boxes = [raw.box for raw in image.objects]
        actual = (header.width, header.height)
        if image.size is not None and image.size != actual:
            if header.orientation >= 5 and image.size == actual[::-1]:
                report.rotated += 1
                boxes = [box and _rotated(box, header) for box in boxes]
            else:
                report.images_invalid += 1
                stated = f"{image.size[0]:g} x {image.size[1]:g}"
                report.problem(f"{image.where}: stated size {stated}, but the file is {actual[0]} x {actual[1]}", "the file's size is used")
        records.append(_record(image, boxes, header, report))
    return records


def _header(image: RawImage) -> Header | str:
    """The header, or why there is none."""
    if image.fault is not None:
        return image.fault
    if image.path is None:
        return "has no file name"
    try:
        return read_header(image.path)
    except UserError as error:
        return f"{image.path.name}: {error}"


def _rotated(box: Box, header: Header) -> Box:
    x1, y1, x2, y2 = turn_boxes(np.array([box]), header.orientation, header.width, header.height)[0].tolist()
    return x1, y1, x2, y2


def _record(image: RawImage, boxes: Sequence[Box | None], header: Header, report: ImportReport) -> Record:
    """The image with its valid objects."""
    assert image.path is not None
    width, height = header.width, header.height
    kept: list[tuple[Box, RawObject]] = []
    for raw, box in zip(image.objects, boxes, strict=True):
        if box is None:
            report.skip_box(f"{raw.where}: box is not four numbers ({_short(raw)})")
            continue
        if image.relative:
            box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
        inside, problem = check_box(box, width, height)
        if problem is None and raw.label is None:
            problem = "unknown category"
        if problem is not None:
            report.skip_box(f"{raw.where}: {problem} ({_short(raw)})")
            continue
        report.clipped += max(abs(a - b) for a, b in zip(inside, box, strict=True)) > _SLACK
        kept.append((inside, raw))
    report.boxes_kept += len(kept)
    array = np.array([box for box, _ in kept], dtype=np.float32).reshape(-1, 4)
    sizes = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
    areas = [raw.area if raw.area is not None and 0 < raw.area < math.inf else size for (_, raw), size in zip(kept, sizes, strict=True)]
    return Record(
        id=printable(image.id) if isinstance(image.id, str) else image.id,
        path=image.path,
        width=width,
        height=height,
        boxes=array,
        labels=np.array([raw.label for _, raw in kept], dtype=np.int64),
        ignore=np.array([raw.ignore for _, raw in kept], dtype=bool),
        areas=np.array(areas, dtype=np.float32),
    )


def _short(raw: RawObject) -> str:
    text = raw.raw if isinstance(raw.raw, str) else f"category {raw.raw[0]!r}, box {raw.raw[1]!r}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def _fail_if_useless(report: ImportReport, records: dict[str, list[Record]], source: str) -> None:
    examples = ": " + "; ".join(line.rpartition("; ")[0] for line in report.lines[:_QUOTED])
    fail_if_too_many(report.images_invalid, report.images_total, "images are invalid", f"{source}: ", examples)
    fail_if_too_many(report.boxes_skipped, report.boxes_total, "boxes are invalid", f"{source}: ", examples)
    for name, kept in records.items():
        if not kept:
            raise UserError(f"{source}: no image of split {name!r} can be read{examples}; repair the data")
    trained = records.get("train", [record for kept in records.values() for record in kept])
    if not any(len(record.boxes) for record in trained):
        raise UserError(f"{source}: no boxes to train on; check that the annotations belong to these images")
    if all(record.ignore.all() for record in trained):
        raise UserError(f"{source}: no boxes to train on: all are to be ignored (iscrowd, difficult); mark those that are objects")
