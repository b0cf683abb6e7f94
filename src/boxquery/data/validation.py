"""The checks that every format shares: what a reader lists goes in, records that can be trained on come out.

A box or an image with a fault is skipped and named, or fatal with ``strict``; too many of them are fatal in any case. Of the boxes,
kept + skipped = given, always.
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
from boxquery.errors import UserError, plain

LIMIT = 0.10
"""More than this share of boxes or of images at fault is fatal."""
HELD_OUT = 0.20
"""Share of images that becomes "val" where the data has none."""
_SLACK = 0.05  # pixels outside the image that are rounding and not worth a word
_THREADS = 8
_SHOWN = 3  # faults quoted when there are too many


@dataclass(slots=True)
class ImportReport:
    """What was given, kept and skipped. Boxes: ``kept + skipped == given`` once all are entered."""

    strict: bool
    lines: list[str] = field(default_factory=list)
    boxes_given: int = 0
    boxes_kept: int = 0
    boxes_skipped: int = 0
    images_given: int = 0
    images_at_fault: int = 0
    clipped: int = 0
    turned: int = 0

    def fault(self, line: str, outcome: str = "skipped") -> None:
        """Enters a fault by name. Raises UserError if the user asked for strictness."""
        line = plain(" ".join(line.split()))
        if self.strict:
            raise UserError(f"{line}; repair it, or go without --strict to have such cases skipped")
        self.lines.append(f"{line}; {outcome}")

    def skip_box(self, line: str) -> None:
        """Enters a box that is left out."""
        self.boxes_skipped += 1
        self.fault(line)


def checked(listing: RawDataset, source: str, *, strict: bool = False, seed: int = 0) -> tuple[Data, ImportReport]:
    """Everything that makes a listing trainable, and the account of it.

    Raises:
        UserError: a duplicate image id; an empty split; with ``strict`` any fault; more than ``LIMIT`` of boxes or images at fault;
            no box left, or none that is not to be ignored.
    """
    notes = list(listing.notes)
    names = _unique(listing.names, listing.ids, notes)
    splits = _split(listing.splits, seed, source, notes)
    for name, images in splits.items():
        _no_duplicates(images, name)
    ledger = ImportReport(strict)
    for line in listing.orphans:
        ledger.boxes_given += 1
        ledger.skip_box(line)
    records = {name: _records(images, ledger) for name, images in splits.items()}
    _not_too_many(ledger, records, source)
    notes += _accounts(ledger, records)
    result = {name: Split(name, kept, read_record) for name, kept in records.items()}
    return Data(source, listing.format, names, listing.ids, result, notes, ledger.lines), ledger


def read_record(record: Record) -> Image.Image:
    """The pixels of a record that has a file. Raises UserError, naming it, if it can no longer be read."""
    if record.path is None:
        raise UserError(f"image {record.id} has no file")
    return read_image(record.path)


def check_box(box: tuple[float, float, float, float], width: int, height: int) -> tuple[tuple[float, float, float, float], str | None]:
    """A box, xyxy in pixels, clipped to its image, and what is wrong with it if it cannot be used."""
    x1, y1, x2, y2 = box
    if not (math.isfinite(x1) and math.isfinite(y1) and math.isfinite(x2) and math.isfinite(y2)):
        return box, "box is not finite"
    if x2 <= x1 or y2 <= y1:
        return box, "box has no size"
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return box, f"box lies outside its {width} x {height} image"
    return (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))), None


def _unique(names: list[str], ids: list[int], notes: list[str]) -> list[str]:
    """The names, with their ids where several are the same: a checkpoint finds its classes by name."""
    names = [plain(name) for name in names]
    count = Counter(names)
    if len(count) == len(names):
        return names
    notes.append("several categories have the same name; their ids were added to tell them apart")
    return [name if count[name] == 1 else f"{name} ({i})" for name, i in zip(names, ids, strict=True)]


def _split(given: dict[str, list[RawImage]], seed: int, source: str, notes: list[str]) -> dict[str, list[RawImage]]:
    """The splits in the order train, val, test; "val" is held out of the training images where there is none."""
    splits = {name: given[name] for name in ("train", "val", "test") if name in given}
    if "" in given:
        splits["train"] = given[""]
    for name, images in splits.items():
        if not images:
            raise UserError(f"{source}: split {name!r} has no images; add some or remove the split")
    if not splits:
        raise UserError(f"{source}: no images; check that this is the data folder")
    if "train" in splits and "val" not in splits:
        images = splits["train"]
        if len(images) < 2:
            raise UserError(f"{source}: one image cannot be split into train and val; add images or a val split")
        count = max(1, round(HELD_OUT * len(images)))
        held_out = set(sorted(range(len(images)), key=lambda i: _draw(seed, images[i].id))[:count])
        splits["val"] = [image for i, image in enumerate(images) if i in held_out]
        splits["train"] = [image for i, image in enumerate(images) if i not in held_out]
        whole = "the data has no splits" if "" in given else "the data has no val split"
        notes.append(f"{whole}: {count} of its {len(images)} training images are held out as val (seed {seed})")
        splits = {name: splits[name] for name in ("train", "val", "test") if name in splits}
    where = {}
    for name, images in splits.items():
        for image in images:
            where.setdefault(image.path, set()).add(name)
    shared = sum(len(names) > 1 for path, names in where.items() if path is not None)
    if shared:
        notes.append(f"{shared} image file(s) are in more than one split: their evaluation says nothing about new images")
    return splits


def _draw(seed: int, identity: int | str) -> bytes:
    """A number in disguise that depends on seed and image alone, so that adding images moves few others."""
    return hashlib.blake2b(f"{seed}/{identity!r}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _no_duplicates(images: list[RawImage], name: str) -> None:
    seen: dict[int | str, str] = {}
    for image in images:
        if image.id in seen:
            raise UserError(f"{image.where}: image id {image.id!r} is already taken in {name} by {seen[image.id]}; make ids unique")
        seen[image.id] = image.where


def _records(images: list[RawImage], ledger: ImportReport) -> list[Record]:
    with ThreadPoolExecutor(_THREADS) as pool:
        headers = list(pool.map(_header, images))
    records = []
    for image, header in zip(images, headers, strict=True):
        ledger.images_given += 1
        ledger.boxes_given += len(image.objects)
        if isinstance(header, str):
            ledger.images_at_fault += 1
            ledger.boxes_skipped += len(image.objects)
            ledger.fault(f"{image.where}: image {header}", f"skipped with its {len(image.objects)} box(es)")
            continue
        boxes = [given.box for given in image.objects]
        frame = (header.width, header.height)
        if image.size is not None and image.size != frame:
            if header.orientation >= 5 and image.size == frame[::-1]:
                ledger.turned += 1
                boxes = _turned(boxes, header)
            else:
                ledger.images_at_fault += 1
                stated = f"{image.size[0]:g} x {image.size[1]:g}"
                ledger.fault(f"{image.where}: stated size {stated}, but the file is {frame[0]} x {frame[1]}", "the file's size is used")
        records.append(_record(image, boxes, header, ledger))
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


def _turned(boxes: Sequence[tuple[float, float, float, float] | None], header: Header) -> list[tuple[float, float, float, float] | None]:
    def turn(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        x1, y1, x2, y2 = turn_boxes(np.array([box]), header.orientation, header.width, header.height)[0].tolist()
        return x1, y1, x2, y2

    return [None if box is None else turn(box) for box in boxes]


def _record(image: RawImage, boxes: Sequence[tuple[float, float, float, float] | None], header: Header, ledger: ImportReport) -> Record:
    """The image with those of its objects that pass."""
    assert image.path is not None
    width, height = header.width, header.height
    kept: list[tuple[float, float, float, float]] = []
    givens: list[RawObject] = []
    for given, box in zip(image.objects, boxes, strict=True):
        if box is None:
            ledger.skip_box(f"{given.where}: box is not four numbers ({_short(given.raw)})")
            continue
        if image.relative:
            box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
        inside, wrong = check_box(box, width, height)
        if wrong is None and not (np.float32(inside[2]) > np.float32(inside[0]) and np.float32(inside[3]) > np.float32(inside[1])):
            wrong = "box has no size"
        if wrong is None and given.label is None:
            wrong = "unknown category"
        if wrong is not None:
            ledger.skip_box(f"{given.where}: {wrong} ({_short(given.raw)})")
            continue
        ledger.clipped += max(abs(a - b) for a, b in zip(inside, box, strict=True)) > _SLACK
        kept.append(inside)
        givens.append(given)
    ledger.boxes_kept += len(kept)
    array = np.array(kept, dtype=np.float32).reshape(-1, 4)
    sizes = (array[:, 2] - array[:, 0]) * (array[:, 3] - array[:, 1])
    areas = [size if given.area is None or not 0 < given.area < math.inf else given.area for given, size in zip(givens, sizes, strict=True)]
    return Record(
        id=plain(image.id) if isinstance(image.id, str) else image.id,
        path=image.path,
        width=width,
        height=height,
        boxes=array,
        labels=np.array([given.label for given in givens], dtype=np.int64),
        ignore=np.array([given.ignore for given in givens], dtype=bool),
        areas=np.array(areas, dtype=np.float32),
    )


def _short(raw: str | tuple[object, object]) -> str:
    text = raw if isinstance(raw, str) else f"category {raw[0]!r}, box {raw[1]!r}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def _not_too_many(ledger: ImportReport, records: dict[str, list[Record]], source: str) -> None:
    examples = ": " + "; ".join(line.rpartition("; ")[0] for line in ledger.lines[:_SHOWN])
    for what, bad, total in (
        ("images", ledger.images_at_fault, ledger.images_given),
        ("boxes", ledger.boxes_skipped, ledger.boxes_given),
    ):
        fail_if_too_many(bad, total, f"{what} are at fault", f"{source}: ", examples)
    for name, kept in records.items():
        if not kept:
            raise UserError(f"{source}: no image of split {name!r} can be read{examples}; repair the data")
    taught = records.get("train", [record for kept in records.values() for record in kept])
    if not any(len(record.boxes) for record in taught):
        raise UserError(f"{source}: no boxes to train on; check that the annotations belong to these images")
    if all(record.ignore.all() for record in taught):
        raise UserError(f"{source}: no boxes to train on: all are to be ignored (iscrowd, difficult); mark those that are objects")


def fail_if_too_many(bad: int, total: int, what: str, where: str = "", examples: str = "") -> None:
    """Raises UserError for more than ``LIMIT``."""
    if bad > LIMIT * total:
        raise UserError(f"{where}{bad} of {total} {what}, more than {LIMIT:.0%}{examples}; repair the data")


def _accounts(ledger: ImportReport, records: dict[str, list[Record]]) -> list[str]:
    """Notes on what happened to images and boxes."""
    notes = []
    if ledger.boxes_skipped:
        notes.append(f"{ledger.boxes_kept} of {ledger.boxes_given} boxes kept, {ledger.boxes_skipped} skipped")
    if ledger.images_at_fault:
        notes.append(f"{ledger.images_at_fault} of {ledger.images_given} images unreadable or not of the stated size")
    if ledger.clipped:
        notes.append(f"{ledger.clipped} box(es) reached beyond their image and were clipped to it")
    if ledger.turned:
        notes.append(f"{ledger.turned} image(s) were annotated before EXIF rotation; their boxes were turned with the image")
    for name, kept in records.items():
        empty = sum(not len(record.boxes) for record in kept)
        if empty == len(kept):
            notes.append(f"split {name!r} has no boxes at all: it cannot be evaluated")
        elif empty:
            notes.append(f"{empty} of {len(kept)} images in {name} have no objects; they are kept")
    return notes
