"""What the numbers in the files themselves show, before a loader has clipped or refused any: ids off by one, other formats."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from boxquery.check.findings import Finding
from boxquery.data.dataset import Data
from boxquery.data.open import read
from boxquery.data.raw import RawDataset, RawImage, RawObject
from boxquery.data.validation import validate
from boxquery.errors import UserError

#: share of boxes that do not fit their image from which another format is tried, and by how much better it has to fit
UNFIT, BETTER, FEWEST = 0.02, 4, 20
#: boxes within so many pixels (or this share) of the corner of their image are no boxes; so many must be
_CORNER, _SHARE, _MOST = 2.0, 1 / 32, 0.95
_SLACK = 1.5  # pixels beyond the image that are rounding, or counting from 1
_BACKGROUND = re.compile(r"^_*(background|back ground|bg|no object|none|n/?a)_*$", re.IGNORECASE)
_FORMATS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x1, y1, x2, y2": lambda n: n,
    "x, y, width, height": lambda n: np.concatenate((n[:, :2], n[:, :2] + n[:, 2:]), 1),
    "centre x, centre y, width, height": lambda n: np.concatenate((n[:, :2] - n[:, 2:] / 2, n[:, :2] + n[:, 2:] / 2), 1),
    "y1, x1, y2, x2": lambda n: n[:, [1, 0, 3, 2]],
}
_READ = {"coco": "x, y, width, height", "voc": "x1, y1, x2, y2", "yolo": "centre x, centre y, width, height"}


def open_with_evidence(source: str | Path, *, strict: bool = False) -> tuple[Data, list[Finding]]:
    """A data set, and what its raw numbers show.

    Raises:
        UserError: as ``read`` and ``validate``; where the numbers show why, the message says so.
    """
    raw = read(source)
    findings = evidence(raw)
    try:
        data, _ = validate(raw, strict=strict)
    except UserError as error:
        if not findings:
            raise
        raise UserError(f"{error}. Likely cause: {' '.join(f'{f.text} {f.remedy}' for f in findings)}") from error
    return data, findings + _named_background(data)


def evidence(listing: RawDataset) -> list[Finding]:
    """Faults of the whole data set rather than of a box."""
    found = [_ids(listing)]
    numbers, sizes = _numbers(listing)
    if len(numbers) >= FEWEST:
        found.append(_scale(listing, numbers, sizes) or _format(listing, numbers, sizes))
    return [finding for finding in found if finding is not None]


def _objects(listing: RawDataset) -> Iterator[tuple[RawImage, RawObject]]:
    for images in listing.splits.values():
        for image in images:
            for given in image.objects:
                yield image, given


def _ids(listing: RawDataset) -> Finding | None:
    """Unknown category ids that would be known if all were moved by one."""
    if listing.format == "voc":
        return None
    used = Counter(number for _, given in _objects(listing) if (number := _category(given)) is not None)
    unknown, known = sorted(set(used) - set(listing.ids)), listing.ids
    if not unknown:
        return None
    for move, words in ((1, "from 0, the list of categories from 1"), (-1, "from 1, the list of categories from 0")):
        edge, free = (min(known) - 1, max(known)) if move == 1 else (max(known) + 1, min(known))
        if unknown == [edge] and not used[free] and sum(used.values()) >= FEWEST:
            example = next(given.where for _, given in _objects(listing) if _category(given) == edge)
            return Finding(
                "ids-off-by-one",
                "doomed",
                f"Category ids are off by one: annotations count {words}. {used[edge]} boxes have the unknown id {edge} "
                f"(first: {example}), and id {free} ({listing.names[listing.ids.index(free)]!r}) has none; every other box has its "
                "neighbour's class.",
                f"{'Add 1 to' if move == 1 else 'Take 1 from'} every category id of the annotations.",
            )
    return None


def _category(given: RawObject) -> int | None:
    value = given.raw[0] if isinstance(given.raw, tuple) else (given.raw.split() or [""])[0]
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value)
    return int(text) if re.fullmatch(r"\d{1,9}", text) else None


def _numbers(listing: RawDataset) -> tuple[np.ndarray, np.ndarray]:
    """The four numbers of every box as its file has them [N, 4], and its image's stated width and height [N, 2] (1, 1 where in shares)."""
    numbers, sizes = [], []
    for image, given in _objects(listing):
        size = (1.0, 1.0) if image.relative else image.size
        if given.box is None or size is None or not np.isfinite(given.box).all():
            continue
        x1, y1, x2, y2 = given.box
        match listing.format:
            case "coco":
                numbers.append((x1, y1, x2 - x1, y2 - y1))
            case "yolo":
                numbers.append(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))
            case _:
                numbers.append((x1, y1, x2, y2))
        sizes.append(size)
    return np.array(numbers, np.float64).reshape(-1, 4), np.array(sizes, np.float64).reshape(-1, 2)


def _scale(listing: RawDataset, numbers: np.ndarray, sizes: np.ndarray) -> Finding | None:
    """Shares where pixels belong, pixels where shares belong, shares of shares."""
    relative = bool((sizes == 1).all())
    if relative and (np.abs(numbers).max(1) > 2).mean() > 0.5:
        return Finding(
            "boxes-in-pixels",
            "doomed",
            f"{(np.abs(numbers).max(1) > 2).mean():.0%} of the boxes are in pixels, where YOLO has shares of the image (0 to 1).",
            "Divide x by the image's width and y by its height.",
        )
    boxes = _FORMATS[_READ[listing.format]](numbers)
    # shares of shares are below 1 / side: 1 / 32 for the smallest images
    corner = _SHARE if relative else _CORNER
    if (boxes.max(1) <= corner).mean() <= _MOST:
        return None
    small = f"{(boxes.max(1) <= corner).mean():.0%} of the boxes lie within the first {'3 %' if relative else '2 pixels'} of their image"
    if relative:
        return Finding(
            "boxes-normalised-twice", "doomed", f"{small}: they were normalised twice.", "Write each once, as shares of the image."
        )
    return Finding(
        "boxes-normalised",
        "doomed",
        f"{small}: they were normalised (0 to 1), where {listing.format.upper()} has pixels.",
        "Multiply x by the image's width and y by its height.",
    )


def _format(listing: RawDataset, numbers: np.ndarray, sizes: np.ndarray) -> Finding | None:
    """Another order of the four numbers in which nearly every box fits its image, where too many do not as they are read."""
    read = _READ[listing.format]
    unfit = {name: float(_unfit(corners(numbers), sizes).mean()) for name, corners in _FORMATS.items()}
    mine = unfit.pop(read)
    other = min(unfit, key=lambda name: unfit[name])
    if mine < UNFIT or unfit[other] * BETTER > mine:
        return None
    return Finding(
        "boxes-of-another-format",
        "doomed" if mine > 0.1 else "warning",
        f"Boxes look like {other}, where {listing.format.upper()} has {read}: as they are read {mine:.0%} of {len(numbers)} have "
        f"no size or reach beyond their image (what reaches beyond is clipped), read as {other} {unfit[other]:.0%} do.",
        f"Write them as {read}.",
    )


def _unfit(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which boxes [N, 4] have no size or reach beyond their image."""
    slack = np.where((sizes == 1).all(1), 0.005, _SLACK)[:, None]
    fit = (boxes[:, 2:] > boxes[:, :2]).all(1) & (boxes[:, :2] >= -slack).all(1) & (boxes[:, 2:] <= sizes + slack).all(1)
    return np.logical_not(fit)


def _named_background(data: Data) -> list[Finding]:
    """A class that is called background and has boxes: the sign of ids that were moved within a list with room."""
    found = []
    for label, name in enumerate(data.names):
        count = sum(int((record.labels == label).sum()) for split in data.splits.values() for record in split)
        if count and _BACKGROUND.match(name):
            found.append(
                Finding(
                    "background-has-boxes",
                    "warning",
                    f"{count} boxes are of class {name!r} (id {data.ids[label]}): ids may be off by one.",
                    "Background is not a class here; compare the names in the picture grid with what the boxes show.",
                )
            )
    return found
