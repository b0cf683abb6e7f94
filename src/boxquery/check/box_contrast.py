"""Whether boxes fit their images: the colour inside them against the colour around them, on their own image and on others. NumPy only.

A box that belongs to its image contrasts with the frame around it more often than the same box on another image. That tests the whole data
set (never one box), and it is sensitive: moved by 2 % of the image, the boxes of the built-in scenes already fit visibly worse. Where boxes
fit no better than on other images, or better once they are moved, that is found.
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

SAMPLE = 64  # most images per split
PIXELS = 60_000_000  # most pixels decoded per split
SIDE = 256  # long side to which images are resized
OTHERS = 3  # other images on which each image's boxes are tried
FEWEST = 8  # images below which nothing is reported
SURE = 32  # images from which a finding is an error
FIRST, TRIED = 24, 3  # images on which all moves are tried, and moves that are then tried on all images
#: standard errors: below NOTHING boxes fit their own images no better than others; a move is reported if it is better by BETTER. Of the
#: built-in scenes 64 images give 9 to 31 as they are, 12 give 4 to 15, and images that do not belong at most 0
#: (benchmarks/mistakes.py --thresholds)
NOTHING, BETTER = 2.5, 4.0
#: a move must also raise the contrast by this factor, so that a tiny gain in a large sample is not reported
GAIN = 1.15
_BORDER = 0.25  # width of the frame around a box, as a fraction of the box's sides
_LEAST = 3.0  # smallest side in pixels, at SIDE, of a box that is measured


@dataclass(frozen=True, slots=True, eq=False)
class SampledImage:
    """A small image and its boxes: ``sums`` [h + 1, w + 1, 3], the integral image of pixels in 0..1; boxes [N, 4] xyxy in 0..1; labels."""

    sums: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.sums.shape[0] - 1, self.sums.shape[1] - 1

    def mean_colour(self) -> np.ndarray:
        """[3], 0..1."""
        return self.sums[-1, -1] / np.prod(self.size)

    def whole_pixels(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes [N, 4] in 0..1, rounded to pixels and clipped to the image."""
        scale = np.tile(self.size[::-1], 2)
        return np.clip(np.rint(boxes * scale), 0, scale).astype(np.int64)

    def sum(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per box of ``whole_pixels``: sum of its colours [N, 3] and number of its pixels [N]."""
        x1, y1, x2, y2 = boxes.T
        sums = self.sums
        return sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1], (x2 - x1) * (y2 - y1)


def sample_images(split: Split, count: int = SAMPLE) -> list[SampledImage]:
    """Images with boxes, evenly over the split, the same ones in every call. An image that cannot be read is left out."""
    filled = [i for i in _evenly(len(split), 50 * SAMPLE) if len(split[i].boxes)]
    if not filled:
        return []
    pixels = np.mean([split[i].width * split[i].height for i in filled[:: max(len(filled) // 32, 1)]])
    chosen = [filled[i] for i in _evenly(len(filled), min(count, max(int(PIXELS / pixels), FEWEST)))]
    with ThreadPoolExecutor(4) as pool:
        return [image for image in pool.map(lambda i: _sampled(split, i), chosen) if image is not None]


def _evenly(total: int, count: int) -> list[int]:
    return list(range(total)) if count >= total else [round(i) for i in np.linspace(0, total - 1, count)]


def _sampled(split: Split, index: int) -> SampledImage | None:
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
    return SampledImage(sums, record.boxes / [record.width, record.height, record.width, record.height], record.labels)


def box_contrasts(image: SampledImage, boxes: np.ndarray) -> np.ndarray:
    """Distance of the mean colour in each box [N, 4], in 0..1 of the image, from that of the frame around it: [N], 0..1.7.

    NaN for a box that is too small, or that leaves no frame within the image.
    """
    sides = (boxes[:, 2:] - boxes[:, :2]) * _BORDER
    inner, outer = image.whole_pixels(boxes), image.whole_pixels(np.concatenate((boxes[:, :2] - sides, boxes[:, 2:] + sides), 1))
    (inside, pixels), (both, more) = image.sum(inner), image.sum(outer)
    seen = (inner[:, 2:] - inner[:, :2] >= _LEAST).all(1) & (more - pixels >= pixels / 4)
    contrasts = np.full(len(boxes), np.nan)
    inside, both, pixels, more = inside[seen], both[seen], pixels[seen, None], more[seen, None]
    contrasts[seen] = np.linalg.norm(inside / pixels - (both - inside) / (more - pixels), axis=1)
    return contrasts


def _mean_contrast(image: SampledImage, boxes: np.ndarray) -> float:
    contrasts = box_contrasts(image, boxes)
    return float(np.nanmean(contrasts)) if np.isfinite(contrasts).any() else np.nan


def _half(boxes: np.ndarray, sign: float) -> np.ndarray:
    return boxes + sign * np.tile((boxes[:, 2:] - boxes[:, :2]) / 2, 2)


#: what may have been done to boxes, and the function that undoes it
MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored left to right": lambda b: np.stack((1 - b[:, 2], b[:, 1], 1 - b[:, 0], b[:, 3]), 1),
    "mirrored top to bottom": lambda b: np.stack((b[:, 0], 1 - b[:, 3], b[:, 2], 1 - b[:, 1]), 1),
    "rotated by 180 degrees": lambda b: 1 - b[:, [2, 3, 0, 1]],
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
class BoxFit:
    """How well boxes fit their images.

    Attributes:
        images: how many were sampled.
        own, others: mean contrast on their own image and on others.
        z: own minus others, in standard errors.
        move: what was done to the boxes, if undoing it fits best; "" if no move fits better.
        moved, moved_z: contrast once it is undone; that minus own, in standard errors.
    """

    images: int
    own: float
    others: float
    z: float
    move: str
    moved: float
    moved_z: float


def measure_fit(images: Sequence[SampledImage]) -> BoxFit | None:
    """The boxes of the images against other images and against moves; None where the sample is too small."""
    own = np.array([_mean_contrast(image, image.boxes) for image in images])
    if np.isfinite(own).sum() < FEWEST:
        return None
    count = len(images)
    rest = np.full(count, np.nan)
    for i, image in enumerate(images):
        others = [_mean_contrast(images[(i + 1 + k * (count // OTHERS)) % count], image.boxes) for k in range(OTHERS)]
        rest[i] = np.nanmean(others) if np.isfinite(others).any() else np.nan
    few = _evenly(count, FIRST)
    first = {name: _z(np.array([_mean_contrast(images[i], undo(images[i].boxes)) for i in few]), own[few]) for name, undo in MOVES.items()}
    best, best_z, best_mean = "", 0.0, 0.0
    for name in sorted(first, key=lambda name: -first[name])[:TRIED]:
        moved = np.array([_mean_contrast(image, MOVES[name](image.boxes)) for image in images])
        if (z := _z(moved, own)) > best_z:
            best, best_z, best_mean = name, z, float(np.nanmean(moved))
    return BoxFit(int(np.isfinite(own).sum()), float(np.nanmean(own)), float(np.nanmean(rest)), _z(own, rest), best, best_mean, best_z)


def _z(a: np.ndarray, b: np.ndarray) -> float:
    """The mean of a - b in standard errors; 0 for fewer than ``FEWEST`` pairs."""
    difference = (a - b)[np.isfinite(a - b)]
    if len(difference) < FEWEST:
        return 0.0
    return float(difference.mean() / max(difference.std(ddof=1) / len(difference) ** 0.5, 1e-9))


def check_fit(split: str, fit: BoxFit) -> Finding | None:
    """What the fit of a split's boxes means."""
    level = "error" if fit.images >= SURE else "warning"
    figures = f"contrast {fit.own:.3f} on their own image, {fit.others:.3f} on others, {fit.images} images"
    if fit.moved_z > BETTER and fit.moved > GAIN * fit.own:
        return Finding(
            "boxes-moved", level,
            f"The boxes of {split} look as if they were {fit.move}: with that undone they fit the images better "
            f"({figures}, {fit.moved:.3f} undone).",
            "Look at check.png, and at how the annotations were exported.",
        )  # fmt: skip
    if fit.z < NOTHING:
        return Finding(
            "images-do-not-belong", level,
            f"The boxes of {split} fit their own images no better than others ({figures}): "
            "is it the wrong image folder, or are the annotations of other images?",
            "Look at check.png; check that annotations and images come from the same export.",
        )  # fmt: skip
    return None
