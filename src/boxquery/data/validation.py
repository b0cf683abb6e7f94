"""Validation that every format shares: from what a reader found to records that can be trained on.

An invalid box or image is skipped and named, or fatal with ``strict``; too many are always fatal. What many faults share is said once.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from boxquery.data.dataset import Data, Record, Split
from boxquery.data.folder import is_hidden
from boxquery.data.images import IMAGE_SUFFIXES, Header, read_header, read_image, turn_boxes
from boxquery.data.raw import NO_FILE, Box, Fault, RawDataset, RawImage, RawObject
from boxquery.data.shapes import shapes_data, shapes_options
from boxquery.data.splits import make_splits
from boxquery.errors import UserError, count, printable, some

LIMIT = 0.10
"""A larger share of invalid boxes or images is fatal."""
_SLACK = 0.05  # pixels beyond the image that are rounding errors, not worth a note
_FITS = 1.5  # pixels beyond an image in which a box still fits it
THREADS = 8
"""That read headers."""
_LONGEST = 1000  # characters of a line
_QUOTED = 3  # kinds of faults that a refusal names, files that a note does
_REMEDIES = {
    NO_FILE: "put the images where the annotations name them, or name their folder with --images",
    "has no file name": "give each image its file name",
    "stated size is not the file's": "write the files' own sizes, and scale the boxes if the images were resized after labelling",
    "box has no size": "check that the four numbers are in the order of this format",
    "box lies outside its image": "check that annotations and images belong together, and that the images were not resized after labelling",
    "unknown category": "add what is missing to the list of classes",
}
_TEXTS = frozenset(
    {"", ".txt", ".json", ".xml", ".csv", ".yaml", ".yml", ".names", ".data", ".md", ".cache", ".html", ".pbtxt", ".py", ".ipynb"}
)
_REMEDY = "correct these annotations"


@dataclass(frozen=True, slots=True)
class Problem:
    """A fault that was met.

    Attributes:
        where, fault: what cannot be used as it is, and why.
        line: both in one line, and what became of it.
        boxes: number of boxes that were skipped for it.
        images: 1 if an image was skipped or is not of its stated size, else 0.
    """

    where: str
    fault: Fault
    line: str
    boxes: int
    images: int


@dataclass(slots=True)
class ImportReport:
    """Counts of boxes and images, what was wrong, and files by how they were read (``Header.remarks``).

    In the end ``boxes_kept + boxes_skipped == boxes_total``.
    """

    problems: list[Problem] = field(default_factory=list)
    boxes_total: int = 0
    boxes_kept: int = 0
    images_total: int = 0
    clipped: int = 0
    rotated: int = 0
    exchanged: int = 0
    remarks: dict[str, list[str]] = field(default_factory=dict)

    @property
    def boxes_skipped(self) -> int:
        return sum(problem.boxes for problem in self.problems)

    @property
    def images_invalid(self) -> int:
        return sum(problem.images for problem in self.problems)

    @property
    def lines(self) -> list[str]:
        """One line per problem."""
        return [problem.line for problem in self.problems]

    @property
    def kinds(self) -> list[str]:
        """The kind of each problem."""
        return [problem.fault.kind for problem in self.problems]

    def add(self, where: str, fault: Fault, outcome: str = "skipped", *, boxes: int = 0, images: int = 0) -> None:
        text = " ".join(f"{where}: {fault}; {outcome}".split())
        line = printable(text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}")
        self.problems.append(Problem(where, fault, line, boxes, images))

    def boxes(self) -> str:
        """What became of the boxes."""
        noun = "box" if self.boxes_total == 1 else "boxes"
        return f"{self.boxes_kept} of {self.boxes_total} {noun} kept, {self.boxes_skipped} skipped"  # as programs read it

    def notes(self) -> list[str]:
        images = f"{self.images_invalid:,} of {count(self.images_total, 'image')} cannot be used or are not of the stated size"
        clipped = f"{count(self.clipped, 'box', 'boxes')} reached beyond the image and were clipped to it"
        rotated = f"{count(self.rotated, 'image')} annotated before EXIF rotation: the boxes were rotated with the image"
        exchanged = (
            f"{count(self.exchanged, 'image')} with width and height stated in each other's place, as the boxes show: the files' are used"
        )
        notes = (
            (self.exchanged, exchanged),
            (self.boxes_skipped, self.boxes()),
            (self.images_invalid, images),
            (self.clipped, clipped),
            (self.rotated, rotated),
        )
        remarks = [f"{count(len(names), 'image')} {remark}: {printable(some(names, _QUOTED))}" for remark, names in self.remarks.items()]
        return [note for number, note in notes if number] + remarks


def validate(raw: RawDataset, *, strict: bool = False, seed: int = 0) -> tuple[Data, ImportReport]:
    """The data set that can be trained on, and the report of what was kept and skipped.

    Args:
        strict: invalid boxes and images are fatal instead of skipped and named in ``Data.skipped``.
        seed: selects the images held out as "val" where the data has none, and the built-in scenes.

    Raises:
        UserError: a duplicate image id; no images or no boxes in any split; with ``strict`` any problem; more than ``LIMIT`` of boxes or
            images invalid.
    """
    report = ImportReport()
    if raw.format == "shapes":
        options = shapes_options(raw.source)
        scenes = shapes_data(**{"seed": seed, **options})
        return replace(scenes, source=raw.source) if options else scenes, report
    notes = list(raw.notes)
    names = _unique_names(raw, notes)
    splits, absent = make_splits(raw, seed, notes)
    report.boxes_total += len(raw.orphans)
    for where, fault in raw.orphans:
        report.add(where, fault, boxes=1)
    records = {name: _valid_records(images, report, raw.source, strict) for name, images in splits.items()}
    _fail_if_useless(report, records, raw, strict)
    notes += report.notes()
    unusable = {name: f"none of its {count(len(splits[name]), 'image')} can be used" for name, kept in records.items() if not kept}
    absent |= unusable
    if unusable:
        notes.append(f"no image of {' and '.join(unusable)} can be used: left out")
    records = {name: kept for name, kept in records.items() if kept}
    notes += _notes_on_empty(records) if raw.labelled else []
    if passed := _passed_over(record.path for kept in records.values() for record in kept):
        notes.append(
            f"{count(passed.total(), 'file')} beside the images passed over: {', '.join(f'{e} {n}' for e, n in passed.most_common())}"
        )
    result = {name: Split(name, kept, read_record) for name, kept in records.items()}
    return Data(raw.source, raw.format, names, raw.ids, result, notes, report.lines, report.kinds, absent), report


def read_record(record: Record) -> Image.Image:
    """The pixels of a record with a file. Raises ``UserError``, naming the file, if it cannot be read."""
    if record.path is None:
        raise UserError(f"image {record.id} has no file")
    return read_image(record.path)


def check_box(box: Box, width: int, height: int) -> tuple[Box, Fault | None]:
    """A box, xyxy in pixels, clipped to its image, and why it is invalid, or None."""
    x1, y1, x2, y2 = box
    if not all(map(math.isfinite, box)):
        return box, Fault("box is not finite")
    if x2 <= x1 or y2 <= y1:
        return box, Fault("box has no size")
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return box, Fault("box lies outside its image", f"{width} x {height}")
    clipped = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    left, top, right, bottom = np.array(clipped, np.float32)  # what differs in float64 may be equal here
    return clipped, None if right > left and bottom > top else Fault("box has no size")


def fail_if_too_many(invalid: int, total: int, what: str, where: str = "", why: str = "copy these files again") -> None:
    """Raises ``UserError`` for a larger share than ``LIMIT``. ``why`` may go on with what to do."""
    if invalid > LIMIT * total:
        raise UserError(f"{where}{invalid:,} of {total:,} {what}, more than {LIMIT:.0%}: {why}")


def _unique_names(raw: RawDataset, notes: list[str]) -> list[str]:
    """The class names, with their ids where several are equal: a checkpoint finds its classes by name."""
    names = [printable(name) for name in raw.names]
    times = Counter(names)
    if len(times) == len(names):
        return names
    notes.append("several categories have the same name; their ids were added to tell them apart")
    return [name if times[name] == 1 else f"{name} ({i})" for name, i in zip(names, raw.ids, strict=True)]


def _valid_records(images: list[RawImage], report: ImportReport, source: str, strict: bool) -> list[Record]:
    with ThreadPoolExecutor(THREADS) as pool:
        headers = list(pool.map(_header, images))
    exchanged = not strict and _sizes_are_exchanged(images, headers)
    records = []
    for image, header in zip(images, headers, strict=True):
        report.images_total += 1
        report.boxes_total += len(image.objects)
        if isinstance(header, Fault):
            with_boxes = f" with its {count(len(image.objects), 'box', 'boxes')}" if image.objects else ""
            report.add(image.where, named(header, image.path, source), f"skipped{with_boxes}", boxes=len(image.objects), images=1)
            continue
        for remark in header.remarks:
            report.remarks.setdefault(remark, []).append(image.where if image.path is None else image.path.name)
        boxes = [raw.box for raw in image.objects]
        actual = (header.width, header.height)
        if image.size is not None and image.size != actual:
            if header.orientation >= 5 and image.size == actual[::-1]:
                report.rotated += 1
                boxes = [box and _rotated(box, header) for box in boxes]
            elif exchanged and image.size == actual[::-1]:
                report.exchanged += 1
            else:
                stated = f"stated {image.size[0]:g} x {image.size[1]:g}, the file is {actual[0]} x {actual[1]}"
                report.add(image.where, Fault("stated size is not the file's", stated), "the file's size is used", images=1)
        records.append(_record(image, boxes, header, report))
    return records


def _sizes_are_exchanged(images: list[RawImage], headers: list[Header | Fault]) -> bool:
    """Whether the data states height and width in the place of each other: boxes reach beyond the stated sizes, none beyond the files'."""
    beyond = False
    for image, header in zip(images, headers, strict=True):
        if (
            isinstance(header, Header)
            and header.orientation < 5
            and header.width != header.height
            and image.size == (header.height, header.width)
        ):
            for x, y in ((raw.box[2], raw.box[3]) for raw in image.objects if raw.box is not None):
                if x > header.width + _FITS or y > header.height + _FITS:
                    return False
                beyond = beyond or x > header.height + _FITS or y > header.width + _FITS
    return beyond


def _header(image: RawImage) -> Header | Fault:
    """The header, or why there is none."""
    if image.fault is not None:
        return image.fault
    return Fault("has no file name") if image.path is None else read_header(image.path)


def named(fault: Fault, path: Path | None, source: str) -> Fault:
    """The fault of an image with the name of its file, if it has none: as seen from the data, or absolute where it is elsewhere."""
    if path is None:
        return fault
    root = os.path.abspath(source)
    name = os.path.relpath(path, root) if Path(path).is_relative_to(root) else str(path)
    return fault if printable(path.name) in fault.detail else Fault(fault.kind, ": ".join(filter(None, (name, fault.detail))), fault.remedy)


def _rotated(box: Box, header: Header) -> Box:
    x1, y1, x2, y2 = turn_boxes(np.array([box]), header.orientation, header.width, header.height)[0].tolist()
    return x1, y1, x2, y2


def _record(image: RawImage, boxes: Sequence[Box | None], header: Header, report: ImportReport) -> Record:
    """The image with its valid objects."""
    assert image.path is not None
    width, height = header.width, header.height
    kept: list[tuple[Box, RawObject]] = []
    for raw, box in zip(image.objects, boxes, strict=True):
        fault = raw.fault
        if box is not None and fault is None:
            if image.relative:
                box = (box[0] * width, box[1] * height, box[2] * width, box[3] * height)
            inside, fault = check_box(box, width, height)
            if fault is None and raw.label is not None:
                report.clipped += max(abs(a - b) for a, b in zip(inside, box, strict=True)) > _SLACK
                kept.append((inside, raw))
                continue
        fault = fault or Fault("box is not four numbers" if box is None else "unknown category")
        detail = "; ".join(filter(None, (fault.detail, _short(raw))))
        report.add(raw.where, Fault(fault.kind, detail, fault.remedy), boxes=1)
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


def _notes_on_empty(records: dict[str, list[Record]]) -> list[str]:
    """Images without objects, in one note, and splits without any, in another."""
    empty = {name: sum(not len(record.boxes) for record in kept) for name, kept in records.items()}
    none = [name for name, kept in records.items() if empty[name] == len(kept)]
    some = [
        f"{empty[name]:,} of {count(len(kept), 'image')} in {name}" for name, kept in records.items() if empty[name] and name not in none
    ]
    return [
        *([f"no boxes at all in {' and '.join(none)}{': AP cannot be measured there' if none != ['train'] else ''}"] if none else ()),
        *([f"{', '.join(some)} without objects; they are kept"] if some else ()),
    ]


def _passed_over(used: Iterable[Path | None]) -> Counter[str]:
    """Files in the folders of the images that are neither images nor what annotations and their tools are written in, by ending."""
    paths = {str(path) for path in used if path is not None}
    passed: Counter[str] = Counter()
    for place in {os.path.dirname(path) for path in paths}:
        with os.scandir(place) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if suffix not in IMAGE_SUFFIXES | _TEXTS and not is_hidden(entry.name) and entry.path not in paths and entry.is_file():
                    passed[suffix or "without ending"] += 1
    return passed


def _fail_if_useless(report: ImportReport, records: dict[str, list[Record]], raw: RawDataset, strict: bool) -> None:
    """Raises ``UserError`` for too many problems, with ``strict`` for any, and where no image, or no box of labelled ones, is left."""
    source = raw.source
    images = _in_common(report.problems, lambda problem: problem.images, report.images_total, "image", "images")
    boxes = _in_common(report.problems, lambda problem: problem.boxes, report.boxes_total, "box", "boxes")
    boxes_kept = f"; {report.boxes()}" if raw.labelled else ""
    if strict and report.problems:
        both = "; ".join(filter(None, (images, boxes if any(not problem.images for problem in report.problems) else "")))
        raise UserError(f"{source}: {both}, or go without --strict to have such cases skipped{boxes_kept}")
    fail_if_too_many(report.images_invalid, report.images_total, "images are invalid", f"{source}: ", f"{images}{boxes_kept}")
    fail_if_too_many(report.boxes_skipped, report.boxes_total, "boxes are invalid", f"{source}: ", f"{boxes}; {report.boxes()}")
    if not any(records.values()):
        raise UserError(f"{source}: no image can be used: {images}")
    trained = [record for kept in records.values() for record in kept]
    if raw.labelled and not any(len(record.boxes) for record in trained):
        raise UserError(f"{source}: no boxes in any image; check that the annotations belong to these images")


def _in_common(problems: Sequence[Problem], amount: Callable[[Problem], int], total: int, one: str, many: str) -> str:
    """What most of the problems share, each kind with its first instance, and what to do about the most frequent."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        if amount(problem):
            kinds.setdefault(problem.fault.kind, []).append(problem)
    ordered = sorted(((sum(map(amount, group)), group) for group in kinds.values()), key=lambda pair: -pair[0])
    parts = []
    for number, group in ordered[:_QUOTED]:
        first = printable(" ".join(f"{group[0].where} ({group[0].fault.detail})".split())).replace(" ()", "")
        share = f"all {count(total, one, many)}" if number == total > 1 else f"{number:,} of {count(total, one, many)}"
        parts.append(f"{group[0].fault.kind}: {share}{'; the first is' if number > 1 else ','} {first}")
    if len(ordered) > _QUOTED:
        parts.append(f"and {count(len(ordered) - _QUOTED, 'other kind')}")
    fault = ordered[0][1][0].fault if ordered else Fault("")
    return "; ".join([*parts, fault.remedy or _REMEDIES.get(fault.kind, _REMEDY)] if parts else [])
