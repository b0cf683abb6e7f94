"""What the splits say about each other: classes or boxes that are missing, labels or colours that were swapped in one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from boxquery.check.box_contrast import Look
from boxquery.check.findings import Finding

#: boxes of a class in train below which it cannot be expected to be learned; a convention, not a measurement
FEW_BOXES = 10
#: boxes an image in one split against another: named below this ratio and beyond so many standard errors (two seeds of the built-in scenes
#: with 200 images differ by up to 6 % and 1.6 standard errors)
THINNER, SURE = 0.7, 5.0
#: images without boxes: named from this share, where the others have so many on average
EMPTY, FILLED = 0.3, 3.0
#: labels: how much better a permutation has to explain a split's labels than they themselves, and how well (shares of classes, 0..1); the
#: difference has to be beyond ``SURE`` standard errors as well
PERMUTED, EXPLAINED = 0.3, 0.6
#: colours: red less blue in standard errors (of the images' means) that two splits must differ by, and within which they agree once swapped
SWAPPED, AGREE = 8.0, 3.0
_PER_CLASS, _IMAGES = 8, 16  # boxes of a class, and images, below which nothing is said
_NAMES = 8  # classes named in one sentence


def counts(facts: dict[str, Any], per_image: dict[str, np.ndarray]) -> list[Finding]:
    """Classes and numbers of boxes. ``facts``: ``data_facts``; ``per_image``: boxes of each image, by split."""
    names, splits = facts["names"], facts["splits"]
    train = np.array(splits["train"]["per_class"])
    found = []
    for split in splits:
        if split != "train":
            here = np.array(splits[split]["per_class"])
            if missing := [names[i] for i in np.flatnonzero((here > 0) & (train == 0))]:
                boxes = int(here[train == 0].sum())
                found.append(
                    Finding(
                        "class-missing-in-train", "warning",
                        f"{split} has {boxes} boxes of {_list(missing)}, train has none: the model cannot learn what it is tested on.",
                        "Move images of it to train, or take the class out.",
                    )
                )  # fmt: skip
    if few := [f"{names[i]} ({train[i]})" for i in np.flatnonzero((train > 0) & (train < FEW_BOXES))]:
        found.append(
            Finding("few-boxes", "warning", f"Fewer than {FEW_BOXES} training boxes: {_list(few)}.", "Label more, or expect little of it.")
        )
    every = sum(np.array(split["per_class"]) for split in splits.values())
    if unused := [names[i] for i in np.flatnonzero(every == 0)]:
        found.append(Finding("class-without-boxes", "note", f"No box anywhere: {_list(unused)}."))
    val = np.array(splits["val"]["per_class"]) if "val" in splits else train
    if untested := [names[i] for i in np.flatnonzero((val == 0) & (train > 0))]:
        found.append(Finding("class-missing-in-val", "note", f"In train but not in val, so without an AP: {_list(untested)}."))
    return found + _empty(per_image) + _thinner(per_image)


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(str, names[:_NAMES])) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")


def _empty(per_image: dict[str, np.ndarray]) -> list[Finding]:
    found = []
    for split, number in per_image.items():
        filled = number[number > 0]
        if len(filled) and len(number) >= _IMAGES and (number == 0).mean() > EMPTY and filled.mean() >= FILLED:
            found.append(
                Finding(
                    "many-empty-images", "warning",
                    f"{(number == 0).sum()} of {len(number)} {split} images have no boxes, the others have {filled.mean():.1f} on average: "
                    "if something is to be seen in them, their labels are missing, and the model is taught to be silent.",
                    "Look at some of them; if they are meant to be empty, nothing is wrong.",
                )
            )  # fmt: skip
    return found


def _thinner(per_image: dict[str, np.ndarray]) -> list[Finding]:
    """Fewer boxes an image in one split than in another."""
    train, found = per_image["train"].astype(float), []
    for split, number in per_image.items():
        if split == "train" or min(len(number), len(train)) < _IMAGES or min(number.mean(), train.mean()) == 0:
            continue
        error = (number.var(ddof=1) / len(number) + train.var(ddof=1) / len(train)) ** 0.5
        low, high = sorted((train.mean(), float(number.mean())))
        if low < THINNER * high and high - low > SURE * error:
            thin, other = ("train", split) if train.mean() < number.mean() else (split, "train")
            found.append(
                Finding(
                    "labels-missing", "warning",
                    f"{thin} has {low:.1f} boxes an image, {other} {high:.1f} ({(high - low) / max(error, 1e-9):.0f} standard errors): "
                    f"about {1 - low / high:.0%} of the labels of {thin} may be missing.",
                    "Look at its images in the picture grid; unlabelled objects teach the model to be silent.",
                )
            )  # fmt: skip
    return found


def labels_permuted(train: Sequence[Look], other: Sequence[Look], split: str, names: Sequence[str]) -> Finding | None:
    """Whether the labels of one split explain those of another better once they are permuted.

    Boxes are told apart by size and mean colour alone (a Gaussian a class with common variances, from train). Where these say nothing
    about the class, as in the built-in scenes, nothing is said here either.
    """
    (x, a), (y, b) = _features(train), _features(other)
    known = [label for label in range(len(names)) if min((a == label).sum(), (b == label).sum()) >= _PER_CLASS]
    if len(known) < 2:
        return None
    x, a = x[np.isin(a, known)], a[np.isin(a, known)]
    y, b = y[np.isin(b, known)], b[np.isin(b, known)]
    centres = np.stack([x[a == label].mean(0) for label in known])
    spread = np.sqrt(np.mean([x[a == label].var(0) for label in known], axis=0)) + 1e-6
    said = (((y[:, None] - centres) / spread) ** 2).sum(-1).argmin(1)
    table = np.array([[(said[b == label] == i).mean() for i in range(len(known))] for label in known])
    rows, columns = linear_sum_assignment(-table)
    as_is, permuted = np.trace(table) / len(known), table[rows, columns].mean()
    # each box speaks for one of the two, for the other, or for neither: a difference of few boxes is chance
    error = sum(1 / (b == label).sum() for label in known) ** 0.5 / len(known)
    if permuted < EXPLAINED or permuted - as_is < max(PERMUTED, SURE * error):
        return None
    swaps = ", ".join(f"{names[known[i]]} like train's {names[known[j]]}" for i, j in zip(rows, columns, strict=True) if i != j)
    return Finding(
        "labels-shifted", "doomed",
        f"Labels of train and {split} do not mean the same: by size and colour, objects of {split} that are labelled {swaps} "
        f"({permuted:.0%} agree so, {as_is:.0%} as labelled).",
        "Compare the class lists that the two were exported with.",
    )  # fmt: skip


def _features(looks: Sequence[Look]) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of width and height, and mean colour, of every box [N, 5]; labels [N]."""
    rows, labels = [], []
    for look in looks:
        height, width = look.size
        scale = np.array([width, height, width, height])
        boxes = np.clip(np.rint(look.boxes * scale), 0, scale).astype(np.int64)
        seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
        total, pixels = look.sum(boxes[seen])
        sides = np.log(np.maximum(look.boxes[seen, 2:] - look.boxes[seen, :2], 1e-4))
        rows.append(np.concatenate((sides, total / pixels[:, None]), 1))
        labels.append(look.labels[seen])
    return np.concatenate(rows), np.concatenate(labels)


def colours_swapped(train: Sequence[Look], other: Sequence[Look], split: str) -> Finding | None:
    """Whether red and blue are swapped in one of two splits."""
    if min(len(train), len(other)) < _IMAGES:
        return None
    a, b = (np.array([look.colour() for look in looks]) for looks in (train, other))
    a, b = a[:, 0] - a[:, 2], b[:, 0] - b[:, 2]
    error = (a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b)) ** 0.5 + 1e-6
    if abs(a.mean() - b.mean()) < SWAPPED * error or abs(a.mean() + b.mean()) > AGREE * error:
        return None
    return Finding(
        "colours-swapped", "warning",
        f"Red less blue is {a.mean():+.3f} in train and {b.mean():+.3f} in {split}: the images of one of them are BGR instead of RGB.",
        "Write them again in RGB (OpenCV reads and writes BGR); look at the picture grid to see which.",
    )  # fmt: skip
