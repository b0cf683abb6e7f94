"""Equal images: the same bytes under several names, within a split and across splits. Reads only files whose sizes are equal."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.check.findings import Finding
from boxquery.data.dataset import Data, Record

#: share of the val images that may be in train before evaluation says nothing
LEAKED = 0.5
_SHOWN = 3
_THREADS = 8

Place = tuple[str, int]  # split, position


def equal_images(data: Data, told: Callable[[int, int], None] | None = None) -> list[list[Place]]:
    """Groups of two or more records with the same content; ``told`` is called with files hashed and to hash."""
    by_size: dict[int, dict[Path, list[Place]]] = defaultdict(lambda: defaultdict(list))
    for name, split in data.splits.items():
        for index, record in enumerate(split):
            if record.path is None:
                break  # drawn: no two are equal
            if (size := _size(record.path)) is not None:
                by_size[size][record.path].append((name, index))
    groups = [places for files in by_size.values() if len(files) == 1 for places in files.values()]
    alike = [(path, places) for files in by_size.values() if len(files) > 1 for path, places in files.items()]
    by_content: dict[bytes, list[Place]] = defaultdict(list)
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, ((_, places), digest) in enumerate(zip(alike, pool.map(lambda pair: _digest(pair[0]), alike), strict=True), 1):
            if digest is not None:
                by_content[digest] += places
            if told is not None and done % 64 == 0:
                told(done, len(alike))
    return [places for places in [*groups, *by_content.values()] if len(places) > 1]


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:  # the reader names it when it is needed
        return None


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return None


def copies(data: Data, groups: list[list[Place]]) -> tuple[dict[str, Any], list[Finding]]:
    """Counts, ``{"duplicates": {split: n}, "shared": {"train & val": n}, "shared_with_other_boxes": {...}}``, and what they mean."""
    duplicates = {name: sum(max(sum(split == name for split, _ in places) - 1, 0) for places in groups) for name in data.splits}
    names, shared, differing = list(data.splits), {}, {}
    findings = []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            common = [places for places in groups if {first, second} <= {split for split, _ in places}]
            if not common:
                continue
            pair = f"{first} & {second}"
            other = [places for places in common if not _same_boxes(data, places, first, second)]
            shared[pair], differing[pair] = len(common), len(other)
            findings.append(_leak(data, first, second, common, other))
    for name, count in duplicates.items():
        if count:
            example = next(places for places in groups if sum(split == name for split, _ in places) > 1)
            shown = " and ".join(_title(data, place) for place in [p for p in example if p[0] == name][:2])
            findings.append(
                Finding(
                    "duplicate-images", "warning" if count > 0.05 * len(data.splits[name]) else "note",
                    f"{count} of {len(data.splits[name])} {name} images are copies of others ({shown}, ...).",
                    "Remove them, or an image counts several times." if count > 0.05 * len(data.splits[name]) else "",
                )
            )  # fmt: skip
    return {"duplicates": duplicates, "shared": shared, "shared_with_other_boxes": differing}, findings


def _leak(data: Data, first: str, second: str, common: list[list[Place]], other: list[list[Place]]) -> Finding:
    total = len(data.splits[second])
    shown = ", ".join(_title(data, next(p for p in places if p[0] == second)) for places in common[:_SHOWN])
    where = f"{len(common)} of {total} {second} images are also in {first}, by content ({shown}{', ...' if len(common) > _SHOWN else ''})"
    trained = first == "train"
    doomed = trained and len(common) > LEAKED * total
    if len(other) > len(common) / 2:
        return Finding(
            "images-of-another-split", "doomed" if doomed else "warning",
            f"{where}, and {len(other)} of them have other boxes there: images of {first} and {second} were mixed up.",
            "Put back the images that the annotations were made for.",
        )  # fmt: skip
    if trained and len(common) == total and total >= len(data.splits[first]):
        return Finding(
            "val-is-train", "doomed", f"{second} is {first}: all {total} images are the same; evaluation would measure memory.",
            f"Hold out images for {second}, or leave the split away and have one made.",
        )  # fmt: skip
    return Finding(
        "leakage", "doomed" if doomed else "warning",
        f"{where}: evaluation on {second} says nothing about new images.", "Keep each image in one split.",
    )  # fmt: skip


def _same_boxes(data: Data, places: list[Place], first: str, second: str) -> bool:
    a, b = (next(data.splits[split][i] for split, i in places if split == name) for name in (first, second))
    return _key(a) == _key(b)


def _key(record: Record) -> bytes:
    rows = np.column_stack([record.boxes.round(1), record.labels])
    return rows[np.lexsort(rows.T)].tobytes()


def _title(data: Data, place: Place) -> str:
    record = data.splits[place[0]][place[1]]
    return record.path.name if record.path else str(record.id)
