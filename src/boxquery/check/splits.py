"""Counts of the splits against each other: classes or boxes that are missing in one of them, empty images; and names of classes."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from boxquery.check.findings import Finding
from boxquery.check.samples import evenly
from boxquery.data.dataset import Data, Record

#: training boxes of a class below which it cannot be expected to be learned; a convention, not a measurement
FEW_BOXES = 10
#: boxes per image of one split against another: reported below this ratio and beyond so many standard errors (two seeds of the built-in
#: scenes with 200 images differ by up to 6 % and 1.6 standard errors)
THINNER, SURE = 0.7, 4.0
#: and only if boxes are alike in size, by the ratio of their median sides: smaller ones in greater number are mosaics or tiles
ALIKE = 0.8
#: images without boxes: reported above this share; weak evidence where the others have fewer than so many on average
EMPTY, FILLED = 0.3, 3.0
_IMAGES = 16  # images below which nothing is reported
_SHOWN = 4  # images of a finding in the picture
_NAMES = 8  # classes named in one sentence


def check_counts(data: Data, facts: dict[str, Any]) -> Iterator[Finding]:
    """Classes and numbers of boxes. ``facts``: ``data_facts``."""
    names = np.array(facts["names"])
    per_class = {split: np.array(counts["per_class"]) for split, counts in facts["splits"].items()}
    train = per_class["train"]
    if not train.any():
        yield Finding("no-boxes-in-train", "error", "train has no boxes: there is nothing to learn from.", "Look for its annotations.")
    for split, here in per_class.items():
        missing = (here > 0) & (train == 0)
        if missing.any():
            yield Finding(
                "class-missing-in-train", "warning",
                f"{split} has {here[missing].sum()} boxes of {_list(names[missing])}, train has none: the model cannot learn what it is "
                "tested on.",
                "Move some images of it to train, or remove the class.",
            )  # fmt: skip
    if few := [f"{names[i]} ({train[i]})" for i in np.flatnonzero((train > 0) & (train < FEW_BOXES))]:
        yield Finding("few-boxes", "warning", f"Fewer than {FEW_BOXES} training boxes: {_list(few)}.", "Label more, or expect a low AP.")
    unused = np.sum(list(per_class.values()), axis=0) == 0
    if unused.any():
        yield Finding("class-without-boxes", "note", f"No box in any split: {_list(names[unused])}.")
    if (untested := (per_class.get("val", train) == 0) & (train > 0)).any():
        yield Finding("class-missing-in-val", "note", f"In train but not in val, so without an AP: {_list(names[untested])}.")
    yield from _check_names(data)
    per_image = {name: np.array([int((~record.ignore).sum()) for record in split]) for name, split in data.splits.items()}
    for split, number in per_image.items():
        yield from _check_empty(split, number)
        if split != "train":
            yield from _check_thinner(data, {"train": per_image["train"].astype(float), split: number.astype(float)})


def _list(names: Sequence[str] | np.ndarray) -> str:
    return ", ".join(map(str, names[:_NAMES])) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")


def _check_names(data: Data) -> Iterator[Finding]:
    """Names that are the same word but for case, spaces, hyphens and underscores."""
    words: dict[str, list[str]] = defaultdict(list)
    for name in data.names:
        words[re.sub(r"[\s_-]+", "", unicodedata.normalize("NFKC", name)).casefold()].append(name)
    if alike := [" and ".join(map(repr, names)) for names in words.values() if len(names) > 1]:
        yield Finding(
            "classes-alike", "warning", f"Classes differ only in case, spaces, hyphens or underscores: {_list(alike)}.",
            "If they mean the same, give them one name; the model learns them as different classes.",
        )  # fmt: skip


def _check_empty(split: str, number: np.ndarray) -> Iterator[Finding]:
    filled = number[number > 0]
    if len(filled) and len(number) >= _IMAGES and (number == 0).mean() > EMPTY:
        empty = np.flatnonzero(number == 0)
        yield Finding(
            "many-empty-images", "warning",
            f"{len(empty)} of {len(number)} {split} images have no boxes, the others have {filled.mean():.1f} on average. "
            "If there are objects in them, their labels are missing, and the model learns to overlook objects.",
            "If they are meant to be empty, nothing is wrong.",
            "strong" if filled.mean() >= FILLED else "weak", tuple((split, int(empty[k])) for k in evenly(len(empty), _SHOWN)),
        )  # fmt: skip


def _check_thinner(data: Data, numbers: dict[str, np.ndarray]) -> Iterator[Finding]:
    """Fewer boxes per image in one of two splits, of the same sizes. ``numbers``: boxes of each image, of both."""
    thin, full = sorted(numbers, key=lambda name: numbers[name].mean())
    few, many = numbers[thin], numbers[full]
    if min(len(few), len(many)) < _IMAGES or few.mean() == 0 or few.mean() >= THINNER * many.mean():
        return
    error = max((few.var(ddof=1) / len(few) + many.var(ddof=1) / len(many)) ** 0.5, 1e-9)
    sides = {name: np.median(np.concatenate([_sides(record) for record in data.splits[name]])) for name in numbers}
    if many.mean() - few.mean() > SURE * error and sides[full] > ALIKE * sides[thin]:
        yield Finding(
            "labels-missing", "warning",
            f"{thin} has {few.mean():.1f} boxes per image, {full} {many.mean():.1f} ({(many.mean() - few.mean()) / error:.0f} standard "
            f"errors), of the same size: about {1 - few.mean() / many.mean():.0%} of the labels of {thin} may be missing.",
            "If objects there have no box, label them; without labels they teach the model to overlook objects.",
            "weak", tuple((thin, i) for i in evenly(len(few), _SHOWN)),
        )  # fmt: skip


def _sides(record: Record) -> np.ndarray:
    """Square roots of the boxes' areas, as shares of the image's [N]."""
    return np.sqrt((record.boxes[:, 2:] - record.boxes[:, :2]).prod(1) / (record.width * record.height))
