"""Faults that only the raw numbers show, before validation clips or skips any: ids off by one, boxes in another format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from boxquery.check.duplicates import equal_images
from boxquery.check.findings import Finding
from boxquery.data.dataset import Data
from boxquery.data.images import read_header
from boxquery.data.open import read
from boxquery.data.raw import Fault, RawDataset, RawImage, RawObject
from boxquery.data.validation import LIMIT, validate
from boxquery.errors import UserError

#: other formats are tried where more than this share of boxes does not fit; they have to fit this many times better; fewest boxes
UNFIT, BETTER, FEWEST = 0.02, 4, 20
#: boxes are normalised if this share of them lies within so many pixels, or so small a fraction, of the corner of their image
_CORNER, _FRACTION, _MOST = 2.0, 1 / 32, 0.95
_SLACK = 1.5  # pixels beyond the image that may be rounding, or counting from 1
_SHOWN = 4  # images of a finding in the picture
_RESIZED = 0.02  # by which the ratio of an image's sides differs from the stated one at most where it was only resized
_BACKGROUND = re.compile(r"^_*(background|back ground|bg|no object|none|n/?a)_*$", re.IGNORECASE)
_FORMATS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x1, y1, x2, y2": lambda n: n,
    "x, y, width, height": lambda n: np.concatenate((n[:, :2], n[:, :2] + n[:, 2:]), 1),
    "centre x, centre y, width, height": lambda n: np.concatenate((n[:, :2] - n[:, 2:] / 2, n[:, :2] + n[:, 2:] / 2), 1),
    "y1, x1, y2, x2": lambda n: n[:, [1, 0, 3, 2]],
}
_EXPECTED = {
    "x, y, width, height": ("coco", "via", "via-csv", "label-studio"),
    "centre x, centre y, width, height": ("yolo", "createml"),
}
_WITH_IDS = ("coco", "yolo")  # formats that have category ids; the others have names


def open_checked(
    source: str | Path, *, strict: bool = False, images: str | None = None, annotations: str | None = None
) -> tuple[Data, list[Finding]]:
    """``open_data``, and what the raw numbers show.

    Raises:
        UserError: as ``open_data``; where the raw numbers show why, the message says so.
    """
    raw = read(source, images=images, annotations=annotations)
    findings = check_annotation_format(raw)
    try:
        data, _ = validate(raw, strict=strict)
    except UserError as error:
        findings = findings or list(_images_of_others(raw))
        if not findings:
            raise
        raise UserError(f"{error}. Likely cause: {' '.join(f'{f.text} {f.remedy}' for f in findings)}") from error
    return data, [*findings, *_boxes_of_background(data)]


def check_annotation_format(raw: RawDataset) -> list[Finding]:
    """Faults of the whole data set rather than of single boxes."""
    if raw.format == "shapes":
        return []
    findings = [_ids_off_by_one(raw)]
    numbers, sizes = _raw_boxes(raw)
    if len(numbers) >= FEWEST:
        findings.append(_wrong_scale(raw, numbers, sizes) or _wrong_order(raw, numbers, sizes))
    return [finding for finding in findings if finding is not None]


def _objects(raw: RawDataset) -> Iterator[tuple[RawImage, RawObject]]:
    return ((image, obj) for images in raw.splits.values() for image in images for obj in image.objects)


def _ids_off_by_one(raw: RawDataset) -> Finding | None:
    """Unknown category ids that would be known if all were moved by one."""
    if raw.format not in _WITH_IDS:
        return None
    used = Counter(number for _, obj in _objects(raw) if (number := _category_id(obj)) is not None)
    low, high, unknown = min(raw.ids), max(raw.ids), set(used) - set(raw.ids)
    for edge, free, first, listed, remedy in ((low - 1, high, 0, 1, "Add 1 to"), (high + 1, low, 1, 0, "Subtract 1 from")):
        if unknown != {edge} or used[free]:
            continue
        remedy = f"{remedy} every category id of the annotations."
        if (total := sum(used.values())) < FEWEST and set(used) == {number + first - listed for number in raw.ids}:
            text = f"The {total} boxes have ids from {min(used)} to {max(used)}, the list of categories has {low} to {high}: "
            return Finding("ids-off-by-one", "warning", f"{text}ids are probably counted from {first}.", remedy, "weak")
        if total >= FEWEST:
            example = next(obj.where for _, obj in _objects(raw) if _category_id(obj) == edge)
            return Finding(
                "ids-off-by-one", "warning",
                f"Category ids are off by one: annotations count from {first}, the list of categories from {listed}. {used[edge]} boxes "
                f"have the unknown id {edge} (first: {example}), and id {free} ({raw.names[raw.ids.index(free)]!r}) has none; every other "
                "box has the class next to its own.",
                remedy,
                "strong",
            )  # fmt: skip
    return None


def _category_id(obj: RawObject) -> int | None:
    value = obj.raw[0] if isinstance(obj.raw, tuple) else (obj.raw.split() or [""])[0]
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    return int(value) if re.fullmatch(r"\d{1,9}", str(value)) else None


def _raw_boxes(raw: RawDataset) -> tuple[np.ndarray, np.ndarray]:
    """The four numbers of every box as its file has them [N, 4], and its image's stated width and height [N, 2] (1, 1 if relative)."""
    boxes, sizes = [], []
    for image, obj in _objects(raw):
        size = (1.0, 1.0) if image.relative else image.size
        if obj.box is not None and size is not None and np.isfinite(obj.box).all():
            boxes.append(obj.box)
            sizes.append(size)
    corners = np.array(boxes, np.float64).reshape(-1, 4)
    first, second = corners[:, :2], corners[:, 2:]
    numbers = {
        "x, y, width, height": (first, second - first),
        "centre x, centre y, width, height": ((first + second) / 2, second - first),
        "x1, y1, x2, y2": (first, second),
    }[_expected(raw)]
    return np.concatenate(numbers, 1), np.array(sizes, np.float64).reshape(-1, 2)


def _name(raw: RawDataset) -> str:
    return raw.format.upper() if raw.format in ("coco", "voc", "yolo") else f"the format {raw.format!r}"


def _expected(raw: RawDataset) -> str:
    """What the four numbers of a box are in the format of the data."""
    return next((order for order, formats in _EXPECTED.items() if raw.format in formats), "x1, y1, x2, y2")


def _wrong_scale(raw: RawDataset, numbers: np.ndarray, sizes: np.ndarray) -> Finding | None:
    """Fractions where pixels are expected, pixels where fractions are, fractions of fractions."""
    relative = bool((sizes == 1).all())
    if relative and (beyond := (np.abs(numbers).max(1) > 2).mean()) > 0.5:
        text = f"{beyond:.0%} of the boxes are in pixels, where {_name(raw)} expects fractions of the image (0 to 1)."
        return Finding("boxes-in-pixels", "warning", text, "Divide x by the image's width and y by its height.", "strong")
    # fractions of fractions are below 1 / side: 1 / 32 for the smallest images
    inside = (_FORMATS[_expected(raw)](numbers).max(1) <= (_FRACTION if relative else _CORNER)).mean()
    if inside <= _MOST:
        return None
    text = f"{inside:.0%} of the boxes lie within the first {'3 %' if relative else '2 pixels'} of their image: they were normalised "
    if relative:
        return Finding("boxes-normalised-twice", "warning", f"{text}twice.", "Write each once, as fractions of the image.", "strong")
    text += f"(0 to 1), where {_name(raw)} expects pixels."
    return Finding("boxes-normalised", "warning", text, "Multiply x by the image's width and y by its height.", "strong")


def _wrong_order(raw: RawDataset, numbers: np.ndarray, sizes: np.ndarray) -> Finding | None:
    """Another order of the four numbers in which nearly every box fits its image, where too many do not as they are read."""
    expected = _expected(raw)
    unfit = {name: float(_unfit(to_corners(numbers), sizes).mean()) for name, to_corners in _FORMATS.items()}
    as_read = unfit.pop(expected)
    other = min(unfit, key=lambda name: unfit[name])
    if as_read < UNFIT or unfit[other] * BETTER > as_read:
        return None
    return Finding(
        "boxes-of-another-format", "warning",
        f"Boxes look like {other}, where {_name(raw)} expects {expected}: as they are read, {as_read:.0%} of {len(numbers)} have "
        f"no size or reach beyond their image (what reaches beyond is clipped); read as {other}, {unfit[other]:.0%} do.",
        f"Write them as {expected}.",
        "strong" if as_read > 0.1 else "weak",
    )  # fmt: skip


def _unfit(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes [N, 4] have no size or reach beyond their image."""
    slack = np.where((sizes == 1).all(1), 0.005, _SLACK)[:, None]
    fit = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, :2] >= -slack).all(1) & (boxes[:, 2:] <= sizes + slack).all(1)
    return np.logical_not(fit)


def _images_of_others(raw: RawDataset) -> Iterator[Finding]:
    """Of data that was refused: whether images have other proportions than their annotations state, and are those of another split."""
    stated, other, resized = 0, 0, 0
    for image in (image for images in raw.splits.values() for image in images):
        if image.size is None or image.path is None or not min(image.size) > 0:
            continue
        header = read_header(image.path)
        if isinstance(header, Fault):
            continue
        actual, said, stated = (header.width, header.height), image.size, stated + 1
        if said not in (actual, actual[::-1]):
            turned = said if (said[0] > said[1]) == (actual[0] > actual[1]) else said[::-1]
            alike = abs(turned[0] * actual[1] / (turned[1] * actual[0]) - 1) < _RESIZED
            other, resized = other + (not alike), resized + alike
    if other <= LIMIT * stated or other <= resized:
        return
    text = f"{other} of {stated} images have other proportions than their annotations state: the images do not belong to them."
    groups = equal_images({name: [image.path for image in images] for name, images in raw.splits.items()})
    train = raw.splits.get("train", [])
    for name in raw.splits.keys() - {"train"}:
        shared = {ref for refs in groups if {"train", name} <= {split for split, _ in refs} for ref in refs if ref[0] == "train"}
        if len(shared) > len(train) / 2:
            text += f" {len(shared)} of {len(train)} train images are also in {name}, by content: images of train and {name} were mixed up."
            yield Finding("images-of-another-split", "warning", text, "Put back the images that the annotations were made for.", "strong")
            return
    yield Finding("images-do-not-belong", "warning", text, "Pair images and annotations of the same export.", "strong")


def _boxes_of_background(data: Data) -> Iterator[Finding]:
    """A class named background that has boxes: a sign of ids that were shifted within a list with room."""
    for label, name in enumerate(data.names):
        if not _BACKGROUND.match(name):
            continue
        shown = [(split, i) for split, own in data.splits.items() for i, record in enumerate(own) if (record.labels == label).any()]
        if count := sum(int((record.labels == label).sum()) for split in data.splits.values() for record in split):
            yield Finding(
                "background-has-boxes", "warning", f"{count} boxes are of class {name!r} (id {data.ids[label]}): ids may be off by one.",
                "Background is not a class here: if boxes show other things than their names say, correct the ids.",
                "weak", tuple(shown[:_SHOWN]),
            )  # fmt: skip
