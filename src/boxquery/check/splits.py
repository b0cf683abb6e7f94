"""The splits against each other: classes or boxes that are missing, labels or colours that were swapped in one of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from boxquery.check.box_contrast import SampledImage
from boxquery.check.findings import Finding

#: training boxes of a class below which it cannot be expected to be learned; a convention, not a measurement
FEW_BOXES = 10
#: boxes per image of one split against another: reported below this ratio and beyond so many standard errors (two seeds of the built-in
#: scenes with 200 images differ by up to 6 % and 1.6 standard errors)
THINNER, SURE = 0.7, 5.0
#: images without boxes: reported above this share, where the others have at least so many on average
EMPTY, FILLED = 0.3, 3.0
#: labels: how much better a permutation has to explain a split's labels than they themselves, and how well (shares of classes, 0..1); the
#: difference has to be beyond ``SURE`` standard errors as well
PERMUTED, EXPLAINED = 0.3, 0.6
#: colours: red minus blue, in standard errors of the images' means: two splits must differ by more, and agree within less once swapped
SWAPPED, AGREE = 8.0, 3.0
_PER_CLASS, _IMAGES = 8, 16  # boxes of a class, and images, below which nothing is reported
_NAMES = 8  # classes named in one sentence


def check_counts(facts: dict[str, Any], per_image: dict[str, np.ndarray]) -> Iterator[Finding]:
    """Classes and numbers of boxes. ``facts``: ``data_facts``; ``per_image``: boxes of each image, by split."""
    names = np.array(facts["names"])
    per_class = {split: np.array(counts["per_class"]) for split, counts in facts["splits"].items()}
    train = per_class["train"]
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
    for split, number in per_image.items():
        yield from _check_empty(split, number)
        yield from _check_thinner(split, number.astype(float), per_image["train"].astype(float))


def _list(names: Sequence[str] | np.ndarray) -> str:
    return ", ".join(map(str, names[:_NAMES])) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")


def _check_empty(split: str, number: np.ndarray) -> Iterator[Finding]:
    filled = number[number > 0]
    if len(filled) and len(number) >= _IMAGES and (number == 0).mean() > EMPTY and filled.mean() >= FILLED:
        yield Finding(
            "many-empty-images", "warning",
            f"{(number == 0).sum()} of {len(number)} {split} images have no boxes, the others have {filled.mean():.1f} on average. "
            "If there are objects in them, their labels are missing, and the model learns to overlook objects.",
            "Look at some of them; if they are meant to be empty, nothing is wrong.",
        )  # fmt: skip


def _check_thinner(split: str, number: np.ndarray, train: np.ndarray) -> Iterator[Finding]:
    """Fewer boxes per image in one split than in train, or the reverse."""
    if split == "train" or min(len(number), len(train)) < _IMAGES or min(number.mean(), train.mean()) == 0:
        return
    error = (number.var(ddof=1) / len(number) + train.var(ddof=1) / len(train)) ** 0.5
    (low, thin), (high, other) = sorted(((train.mean(), "train"), (number.mean(), split)))
    if low < THINNER * high and high - low > SURE * error:
        yield Finding(
            "labels-missing", "warning",
            f"{thin} has {low:.1f} boxes per image, {other} {high:.1f} ({(high - low) / max(error, 1e-9):.0f} standard errors): "
            f"about {1 - low / high:.0%} of the labels of {thin} may be missing.",
            "Look at its images in check.png; objects without labels teach the model to overlook objects.",
        )  # fmt: skip


def check_labels(train: Sequence[SampledImage], other: Sequence[SampledImage], split: str, names: Sequence[str]) -> Finding | None:
    """Whether a permutation of its labels explains a split better, judged by the labels of train.

    Boxes are told apart by size and mean colour alone (one Gaussian per class, with common variances, from train). Where these do not
    separate the classes, as in the built-in scenes, nothing is reported.
    """
    (x, a), (y, b) = _features(train), _features(other)
    known = [label for label in range(len(names)) if min((a == label).sum(), (b == label).sum()) >= _PER_CLASS]
    if len(known) < 2:
        return None
    x, a = x[np.isin(a, known)], a[np.isin(a, known)]
    y, b = y[np.isin(b, known)], b[np.isin(b, known)]
    centres = np.stack([x[a == label].mean(0) for label in known])
    spread = np.sqrt(np.mean([x[a == label].var(0) for label in known], axis=0)) + 1e-6
    predicted = (((y[:, None] - centres) / spread) ** 2).sum(-1).argmin(1)
    table = np.array([[(predicted[b == label] == i).mean() for i in range(len(known))] for label in known])
    rows, columns = linear_sum_assignment(-table)
    as_is, permuted = np.trace(table) / len(known), table[rows, columns].mean()
    # each box counts for one of the two, for the other, or for neither: a difference of few boxes is chance
    error = sum(1 / (b == label).sum() for label in known) ** 0.5 / len(known)
    if permuted < EXPLAINED or permuted - as_is < max(PERMUTED, SURE * error):
        return None
    moved = [(names[known[i]], names[known[j]]) for i, j in zip(rows, columns, strict=True) if i != j]
    swaps = ", ".join(f"labelled {own} look like train's {other}" for own, other in moved)
    return Finding(
        "labels-shifted", "error",
        f"Labels of train and {split} do not mean the same: by size and colour, objects of {split} {swaps} "
        f"({permuted:.0%} agree so, {as_is:.0%} as labelled).",
        "Compare the class lists that the two were exported with.",
    )  # fmt: skip


def _features(images: Sequence[SampledImage]) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of width and height, and mean colour, of every box [N, 5]; labels [N]."""
    rows, labels = [], []
    for image in images:
        boxes = image.whole_pixels(image.boxes)
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
        total, pixels = image.sum(boxes[seen])
        sides = np.log(np.maximum(image.boxes[seen, 2:] - image.boxes[seen, :2], 1e-4))
        rows.append(np.concatenate((sides, total / pixels[:, None]), 1))
        labels.append(image.labels[seen])
    return np.concatenate(rows), np.concatenate(labels)


def check_colours(train: Sequence[SampledImage], other: Sequence[SampledImage], split: str) -> Finding | None:
    """Whether red and blue are swapped in one of two splits."""
    if min(len(train), len(other)) < _IMAGES:
        return None
    a, b = (np.array([image.mean_colour() @ [1, 0, -1] for image in images]) for images in (train, other))
    error = (a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)) ** 0.5 + 1e-6
    if abs(a.mean() - b.mean()) < SWAPPED * error or abs(a.mean() + b.mean()) > AGREE * error:
        return None
    return Finding(
        "colours-swapped", "warning",
        f"Red minus blue is {a.mean():+.3f} in train and {b.mean():+.3f} in {split}: the images of one of them are BGR instead of RGB.",
        "Write them again in RGB (OpenCV reads and writes BGR); check.png shows which.",
    )  # fmt: skip
