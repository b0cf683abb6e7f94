"""Equal images: the same bytes under several names, within a split and across splits. Reads only files of equal size."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.check.findings import Finding, ImageRef
from boxquery.data.dataset import Data, Record
from boxquery.errors import some

#: copies are of the same photograph if their boxes overlap so well, in the median; those of two photographs (of one
#: object in the middle, say) seldom do, those of one photograph annotated twice do by .86
ALIKE = 0.7
#: share of a split that may be copies before it is a warning
COPIED = 0.05
_SHOWN = 3
_THREADS = 8


def equal_images(
    paths: Mapping[str, Iterable[Path | None]], progress: Callable[[int, int], None] | None = None
) -> list[list[ImageRef]]:  # fmt: skip
    """Groups of two or more images with the same content.

    Args:
        paths: of every split's images; None for one that is rendered, or missing.
        progress: gets the numbers of files hashed and to hash.
    """
    by_size: dict[int, dict[Path, list[ImageRef]]] = defaultdict(lambda: defaultdict(list))
    for name, own in paths.items():
        for index, path in enumerate(own):
            with suppress(OSError):  # the reader names it when it is needed
                if path is not None:
                    by_size[path.stat().st_size][path].append((name, index))
    groups = [refs for files in by_size.values() if len(files) == 1 for refs in files.values()]
    alike = [(path, refs) for files in by_size.values() if len(files) > 1 for path, refs in files.items()]
    by_content: dict[bytes, list[ImageRef]] = defaultdict(list)
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, ((_, refs), digest) in enumerate(zip(alike, pool.map(lambda pair: _digest(pair[0]), alike), strict=True), 1):
            if digest is not None:
                by_content[digest] += refs
            if progress is not None and done % 64 == 0:
                progress(done, len(alike))
    return [refs for refs in [*groups, *by_content.values()] if len(refs) > 1]


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return None


def check_duplicates(data: Data, groups: list[list[ImageRef]]) -> tuple[dict[str, Any], list[Finding]]:
    """Counts, ``{"duplicates": {split: n}, "shared": {"train & val": n}, "shared_with_other_boxes": {...}}``, and what they mean.

    ``shared`` counts images of the second split.
    """
    duplicates, shared, differing, findings = {}, {}, {}, []
    for first, second in combinations(data.splits, 2):
        pairs = {}
        for refs in groups:
            if originals := [ref for ref in refs if ref[0] == first]:
                pairs |= {ref: originals for ref in refs if ref[0] == second}
        if pairs:
            other = [ref for ref, originals in pairs.items() if not _same_boxes(data, ref, originals)]
            shared[f"{first} & {second}"], differing[f"{first} & {second}"] = len(pairs), len(other)
            findings.append(_leak(data, first, second, list(pairs), other))
    for name, split in data.splits.items():
        own = [[ref for ref in refs if ref[0] == name] for refs in groups]
        duplicates[name] = count = sum(max(len(refs) - 1, 0) for refs in own)
        if count:
            example = " and ".join(title(data, ref) for ref in next(refs for refs in own if len(refs) > 1)[:2])
            text = f"{count} of {len(split)} {name} images {'is a copy of another' if count == 1 else 'are copies of others'} "
            text += f"({example}{', ...' * (count > 1)})."
            many = count > COPIED * len(split)
            remedy = "Remove them: each copy counts again." if many else ""
            findings.append(Finding("duplicate-images", "warning" if many else "note", text, remedy))
    return {"duplicates": duplicates, "shared": shared, "shared_with_other_boxes": differing}, findings


def _leak(data: Data, first: str, second: str, common: list[ImageRef], other: list[ImageRef]) -> Finding:
    total = len(data.splits[second])
    shown = some((title(data, ref) for ref in common), _SHOWN)
    where = f"{len(common)} of {total} {second} images are also in {first}, by content ({shown})"
    if len(other) > len(common) / 2:
        text = f"{where}, and {len(other)} of them have other boxes there: images of {first} and {second} were mixed up."
        remedy = "Put back the images that the annotations were made for."
        return Finding("images-of-another-split", "warning", text, remedy, "strong", tuple(other[:_SHOWN]))
    if first == "train" and len(common) == total and total >= len(data.splits[first]):
        text = f"{second} is {first}: all {total} images are the same; evaluation would only measure memorisation."
        return Finding("val-is-train", "warning", text, f"Hold out images for {second}, or leave the split out and have one made.")
    text = f"{where}: evaluation on {second} does not measure performance on new images."
    return Finding("leakage", "warning", text, "Keep each image in one split.")


def _same_boxes(data: Data, ref: ImageRef, originals: list[ImageRef]) -> bool:
    """Whether the boxes of an image agree with those of one of its copies, up to what two annotators would differ by."""
    boxes = _relative_boxes(data.splits[ref[0]][ref[1]])
    return any(_agreement(boxes, _relative_boxes(data.splits[split][index])) >= ALIKE for split, index in originals)


def _relative_boxes(record: Record) -> np.ndarray:
    return record.boxes / np.array([record.width, record.height] * 2, np.float32)


def _agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The median over the boxes of two images of the best IoU in the other; 1 where neither has any, 0 where one has none."""
    if not len(a) or not len(b):
        return float(len(a) == len(b))
    shared = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    overlap = shared.clip(0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    iou = overlap / (areas[0][:, None] + areas[1][None] - overlap)
    return float(np.median(np.concatenate((iou.max(1), iou.max(0)))))


def title(data: Data, ref: ImageRef) -> str:
    """The file's name, or the id of a rendered image."""
    record = data.splits[ref[0]][ref[1]]
    return record.path.name if record.path else str(record.id)
