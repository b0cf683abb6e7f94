"""Whether boxes lie on something: what is inside them, compared with what is around them, in their own image and in others. NumPy only.

A box that belongs to its image holds something of another colour than the frame around it, more often than the same box laid on another
image does. That is a test of the whole data set (never of one box), and it is sharp: moved by 2 % of the image, the boxes of the built-in
scenes already fit visibly worse. Where boxes fit no better than on other images, or better once they are moved, they are named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from boxquery.check.findings import Finding
from boxquery.data.dataset import Split
from boxquery.errors import UserError

SAMPLE = 64  # images looked at in a split
PIXELS = 60_000_000  # and at most so many pixels decoded
SIDE = 256  # long side in which they are looked at
OTHERS = 3  # other images that every image's boxes are tried on
FEWEST = 8  # images below which nothing is said
SURE = 32  # and from which what is said stops a run
FIRST, TRIED = 24, 3  # images on which all moves are tried, and moves that are then tried on all images
#: standard errors: below NOTHING boxes fit their own images no better than others; a move must be better by BETTER to be named. Of the
#: built-in scenes 64 images give 9 to 31 as they are, 12 give 4 to 15, and images that do not belong at most 0
#: (benchmarks/mistakes.py --thresholds)
NOTHING, BETTER = 2.5, 4.0
#: and by so much of the contrast itself, so that a hair's breadth in a huge sample is no alarm
GAIN = 1.15
_BORDER = 0.25  # of a box's sides: how far around it one looks
_LEAST = 3.0  # smallest side in pixels, at SIDE, of a box that is looked at


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """One sampled image: ``sums`` [h + 1, w + 1, 3], the running sums of its pixels in 0..1; boxes [N, 4] xyxy in 0..1; labels [N]."""

    sums: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.sums.shape[0] - 1, self.sums.shape[1] - 1

    def colour(self) -> np.ndarray:
        """The mean colour [3] of the image, 0..1."""
        return self.sums[-1, -1] / np.prod(self.size)

    def sum(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of whole-pixel boxes: sums of colours [N, 3] and numbers of pixels [N]."""
        x1, y1, x2, y2 = boxes.T
        sums = self.sums
        return sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1], (x2 - x1) * (y2 - y1)


def sample(split: Split, count: int = SAMPLE) -> list[Look]:
    """Images with boxes, evenly over the split, small; the same ones in every call. An image that can no longer be read is left out."""
    filled = [i for i in _evenly(len(split), 50 * SAMPLE) if len(split[i].boxes)]
    if not filled:
        return []
    each = np.mean([split[i].width * split[i].height for i in filled[:: max(len(filled) // 32, 1)]])
    chosen = [filled[i] for i in _evenly(len(filled), min(count, max(int(PIXELS / each), FEWEST)))]
    with ThreadPoolExecutor(4) as pool:
        return [look for look in pool.map(lambda i: _look(split, i), chosen) if look is not None]


def _evenly(total: int, count: int) -> list[int]:
    return list(range(total)) if count >= total else [round(i) for i in np.linspace(0, total - 1, count)]


def _look(split: Split, index: int) -> Look | None:
    record = split[index]
    try:
        image = split.read(index)
    except UserError:
        return None
    scale = SIDE / max(image.size)
    size = max(round(image.width * scale), 8), max(round(image.height * scale), 8)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0), dtype=np.float64) / 255
    sums = np.zeros((size[1] + 1, size[0] + 1, 3))
    sums[1:, 1:] = pixels.cumsum(0).cumsum(1)
    extent = np.array([record.width, record.height, record.width, record.height])
    return Look(sums, record.boxes / extent, record.labels)


def contrasts(look: Look, boxes: np.ndarray) -> np.ndarray:
    """How far the mean colour in each box [N, 4], in 0..1 of the image, is from that of the frame around it: [N], 0..1.7.

    NaN for a box that is too small to see, or that leaves no frame within the image.
    """
    height, width = look.size
    scale = np.array([width, height, width, height])
    sides = (boxes[:, 2:] - boxes[:, :2]) * _BORDER
    outer = np.concatenate((boxes[:, :2] - sides, boxes[:, 2:] + sides), 1)
    inner, outer = (np.clip(np.rint(b * scale), 0, scale).astype(np.int64) for b in (boxes, outer))
    (inside, pixels), (around, more) = look.sum(inner), look.sum(outer)
    seen = (inner[:, 2:] - inner[:, :2] >= _LEAST).all(1) & (more - pixels >= pixels / 4)
    result = np.full(len(boxes), np.nan)
    inside, around, pixels, more = inside[seen], around[seen], pixels[seen, None], more[seen, None]
    result[seen] = np.linalg.norm(inside / pixels - (around - inside) / (more - pixels), axis=1)
    return result


def _mean(look: Look, boxes: np.ndarray) -> float:
    values = contrasts(look, boxes)
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def _half(boxes: np.ndarray, sign: float) -> np.ndarray:
    return boxes + sign * np.tile((boxes[:, 2:] - boxes[:, :2]) / 2, 2)


#: what may have happened to boxes, in words, and how it is undone
MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored left to right": lambda b: np.stack((1 - b[:, 2], b[:, 1], 1 - b[:, 0], b[:, 3]), 1),
    "mirrored top to bottom": lambda b: np.stack((b[:, 0], 1 - b[:, 3], b[:, 2], 1 - b[:, 1]), 1),
    "turned by half": lambda b: 1 - b[:, [2, 3, 0, 1]],
    "written with x and y swapped": lambda b: b[:, [1, 0, 3, 2]],
    "written with their centre as their corner": lambda b: _half(b, -1),
    "written with their corner as their centre": lambda b: _half(b, 1),
    **{
        f"scaled by {1 / factor:.3g}": lambda b, factor=factor: b * factor
        for factor in (0.5, 0.625, 0.75, 0.8, 0.9, 1.1, 1.25, 4 / 3, 1.6, 2.0)
    },
    **{
        f"shifted by {100 * x:+.0f} % of the width and {100 * y:+.0f} % of the height": lambda b, x=x, y=y: b - [x, y, x, y]
        for x in (-0.1, -0.05, -0.03, 0, 0.03, 0.05, 0.1)
        for y in (-0.1, -0.05, -0.03, 0, 0.03, 0.05, 0.1)
        if x or y
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fit:
    """How well boxes fit their images.

    Attributes:
        images: how many were looked at.
        own, others: mean contrast on their own image and on others.
        z: own less others, in standard errors.
        move: what was done to the boxes so that undoing it fits best, "" if nothing does better; its contrast, and z against own.
    """

    images: int
    own: float
    others: float
    z: float
    move: str
    moved: float
    moved_z: float


def fit(looks: Sequence[Look]) -> Fit | None:
    """The boxes of the sampled images against other images and against moves; None where there is too little to see."""
    own = np.array([_mean(look, look.boxes) for look in looks])
    if np.isfinite(own).sum() < FEWEST:
        return None
    count = len(looks)
    others = np.array(
        [[_mean(looks[(i + 1 + k * (count // OTHERS)) % count], look.boxes) for k in range(OTHERS)] for i, look in enumerate(looks)]
    )
    rest = np.full(count, np.nan)
    some = np.isfinite(others).any(1)
    rest[some] = np.nanmean(others[some], 1)
    some = _evenly(count, FIRST)
    first = {name: _z(np.array([_mean(looks[i], undo(looks[i].boxes)) for i in some]), own[some]) for name, undo in MOVES.items()}
    best, best_z, best_mean = "", 0.0, 0.0
    for name in sorted(first, key=lambda name: -first[name])[:TRIED]:
        moved = np.array([_mean(look, MOVES[name](look.boxes)) for look in looks])
        score = _z(moved, own)
        if score > best_z:
            best, best_z, best_mean = name, score, float(np.nanmean(moved))
    return Fit(int(np.isfinite(own).sum()), float(np.nanmean(own)), float(np.nanmean(rest)), _z(own, rest), best, best_mean, best_z)


def _z(a: np.ndarray, b: np.ndarray) -> float:
    """The mean of a - b in standard errors; 0 where fewer than ``FEWEST`` pairs are there."""
    difference = (a - b)[np.isfinite(a - b)]
    if len(difference) < FEWEST:
        return 0.0
    return float(difference.mean() / max(difference.std(ddof=1) / len(difference) ** 0.5, 1e-9))


def fits(name: str, found: Fit) -> Finding | None:
    """What that means for a split."""
    level = "doomed" if found.images >= SURE else "warning"
    figures = f"contrast {found.own:.3f} on their own image, {found.others:.3f} on others, {found.images} images"
    if found.moved_z > BETTER and found.moved > GAIN * found.own:
        return Finding(
            "boxes-moved", level,
            f"The boxes of {name} look as if they were {found.move}: undone, they fit the pictures better "
            f"({figures}, {found.moved:.3f} undone).",
            "Look at the picture grid, and at how the annotations were exported.",
        )  # fmt: skip
    if found.z < NOTHING:
        return Finding(
            "images-do-not-belong", level,
            f"The boxes of {name} fit their images no better than those of others ({figures}): "
            "wrong image folder, or boxes of other images?",
            "Look at the picture grid; check that annotations and images come from the same export.",
        )  # fmt: skip
    return None
