"""Equal images: the same bytes under several names, within a split and across splits. Reads only files of equal size."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.check.findings import Finding
from boxquery.data.dataset import Data, Record

#: share of the val images that may be in train before evaluation is pointless
LEAKED = 0.5
#: share of a split that may be copies before it is a warning
COPIED = 0.05
_SHOWN = 3
_THREADS = 8

ImageRef = tuple[str, int]
"""Split and index."""


def equal_images(data: Data, progress: Callable[[int, int], None] | None = None) -> list[list[ImageRef]]:
    """Groups of two or more records with the same content; ``progress`` gets the numbers of files hashed and to hash."""
    by_size: dict[int, dict[Path, list[ImageRef]]] = defaultdict(lambda: defaultdict(list))
    for name, split in data.splits.items():
        for index, record in enumerate(split):
            if record.path is None:
                break  # rendered: no two are equal
            with suppress(OSError):  # the reader names it when it is needed
                by_size[record.path.stat().st_size][record.path].append((name, index))
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
    """Counts, ``{"duplicates": {split: n}, "shared": {"train & val": n}, "shared_with_other_boxes": {...}}``, and what they mean."""
    duplicates, shared, differing, findings = {}, {}, {}, []
    for first, second in combinations(data.splits, 2):
        if common := [refs for refs in groups if {first, second} <= {split for split, _ in refs}]:
            other = [refs for refs in common if not _same_boxes(data, refs, first, second)]
            shared[f"{first} & {second}"], differing[f"{first} & {second}"] = len(common), len(other)
            findings.append(_leak(data, first, second, common, other))
    for name, split in data.splits.items():
        own = [[ref for ref in refs if ref[0] == name] for refs in groups]
        duplicates[name] = count = sum(max(len(refs) - 1, 0) for refs in own)
        if count:
            example = " and ".join(_title(data, ref) for ref in next(refs for refs in own if len(refs) > 1)[:2])
            text = f"{count} of {len(split)} {name} images are copies of others ({example}, ...)."
            many = count > COPIED * len(split)
            remedy = "Remove them: each copy counts again." if many else ""
            findings.append(Finding("duplicate-images", "warning" if many else "note", text, remedy))
    return {"duplicates": duplicates, "shared": shared, "shared_with_other_boxes": differing}, findings


def _leak(data: Data, first: str, second: str, common: list[list[ImageRef]], other: list[list[ImageRef]]) -> Finding:
    total = len(data.splits[second])
    shown = ", ".join(_title(data, next(ref for ref in refs if ref[0] == second)) for refs in common[:_SHOWN])
    where = f"{len(common)} of {total} {second} images are also in {first}, by content ({shown}{', ...' if len(common) > _SHOWN else ''})"
    level = "error" if first == "train" and len(common) > LEAKED * total else "warning"
    if len(other) > len(common) / 2:
        text = f"{where}, and {len(other)} of them have other boxes there: images of {first} and {second} were mixed up."
        return Finding("images-of-another-split", level, text, "Put back the images that the annotations were made for.")
    if first == "train" and len(common) == total and total >= len(data.splits[first]):
        text = f"{second} is {first}: all {total} images are the same; evaluation would only measure memorisation."
        return Finding("val-is-train", "error", text, f"Hold out images for {second}, or leave the split out and have one made.")
    text = f"{where}: evaluation on {second} does not measure performance on new images."
    return Finding("leakage", level, text, "Keep each image in one split.")


def _same_boxes(data: Data, refs: list[ImageRef], first: str, second: str) -> bool:
    a, b = (next(data.splits[split][i] for split, i in refs if split == name) for name in (first, second))
    return _sorted_boxes(a) == _sorted_boxes(b)


def _sorted_boxes(record: Record) -> bytes:
    rows = np.column_stack([record.boxes.round(1), record.labels])
    return rows[np.lexsort(rows.T)].tobytes()


def _title(data: Data, ref: ImageRef) -> str:
    record = data.splits[ref[0]][ref[1]]
    return record.path.name if record.path else str(record.id)
