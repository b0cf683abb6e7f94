"""Whether boxes belong to their images, and whether they were moved: what distinguishes an object from its surroundings, on its own image
and, with the boxes of other images, on the same image.

Seven contrasts per box (``contrasts``). Own boxes are compared with the boxes of other images laid on the same image, so that neither the
image nor where objects usually stand tells them apart. That tests a split as a whole, never one box. A camouflaged animal has the colour of
the ground, but a texture and an outline of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from boxquery.check.findings import Finding
from boxquery.check.samples import ALONG_X, ALONG_Y, GREEN, LIGHT, RED_BLUE, TEXTURE, SampledImage, evenly

OTHERS = 8  # other images whose boxes are laid on each image
FEWEST = 24  # images below which nothing is reported
#: standard errors: below ``BELONG`` boxes fit their own images no better than others, if they differ by less than ``LITTLE`` spreads too
#: (of few images, camouflaged objects are not significant, but they differ); a move is reported from ``BETTER`` on
BELONG, LITTLE, BETTER = 2.5, 0.3, 4.0
#: standard errors below and beyond which that is strong evidence
STRANGE, FAR_BETTER = 1.0, 8.0
SHOWN = 4  # images of a finding in the picture
FIRST, TRIED = 24, 4  # images on which all moves are tried, and moves that are then tried on all images
_MOVED_BOXES = 6  # boxes per image that are moved
_BORDER = 0.25  # width of the frame around a box, of the core's margin, as a fraction of the box's sides
_EDGE = 0.08  # half the width of the strip along a side, likewise
_LEAST = 3.0  # smallest side, in pixels of the small image, of a box that is measured
_CLIP = 4.0


def contrasts(image: SampledImage, boxes: np.ndarray) -> np.ndarray:
    """Seven contrasts of each box [..., 4], in 0..1 of the image: [..., 7]; NaN where it is too small or leaves no frame in the image.

    Colour inside against a frame around the box (distance, and its two chroma parts); logarithm of the gradient inside, less that in the
    frame and less that of the image; colour of the core against the rest of the inside; gradient across the four sides less the frame's.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    margin = (high - low) * _BORDER
    inside, pixels = image.sum(boxes)
    both, more = image.sum(np.concatenate((low - margin, high + margin), -1))
    colours = slice(LIGHT, GREEN + 1)
    core, few = image.sum(np.concatenate((low + margin, high - margin), -1), colours)
    around = more - pixels
    visible = np.clip(high, 0, 1) - np.clip(low, 0, 1)
    whole = ((high - low) * image.size).prod(-1, keepdims=True)
    usable = (visible * image.size >= _LEAST).all(-1) & (around >= pixels / 4)[..., 0] & (pixels > 0.6 * whole)[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, frame = inside / pixels, (both - inside) / around
        difference = np.abs(mean - frame)
        within = np.linalg.norm(core / few - (inside[..., colours] - core) / (pixels - few), axis=-1)
        sides = _across_sides(image, low, high) - np.log(frame[..., ALONG_X] + frame[..., ALONG_Y] + 1e-3)
        result = np.stack([
            np.linalg.norm(difference[..., colours], axis=-1), difference[..., RED_BLUE], difference[..., GREEN],
            mean[..., TEXTURE] - frame[..., TEXTURE], mean[..., TEXTURE] - image.sums[-1, -1, TEXTURE] / image.size.prod(), within, sides,
        ], -1)  # fmt: skip
    return np.where(usable[..., None], result, np.nan)


def _across_sides(image: SampledImage, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Logarithm of the mean gradient across the four sides [...]: along x in strips on the left and right, along y above and below."""
    x1, y1, x2, y2 = low[..., 0], low[..., 1], high[..., 0], high[..., 1]
    across = np.maximum((high - low) * _EDGE, 1 / image.size)
    w, h = across[..., 0], across[..., 1]
    strips = np.stack([
        np.stack((x1 - w, y1, x1 + w, y2), -1), np.stack((x2 - w, y1, x2 + w, y2), -1),
        np.stack((x1, y1 - h, x2, y1 + h), -1), np.stack((x1, y2 - h, x2, y2 + h), -1),
    ], -2)  # fmt: skip
    sums, pixels = image.sum(strips, slice(ALONG_X, ALONG_Y + 1))
    means = np.concatenate((sums[..., :2, 0] / pixels[..., :2, 0], sums[..., 2:, 1] / pixels[..., 2:, 0]), -1)
    return np.log(np.where(np.isfinite(means), means, 0).sum(-1) / 2 + 1e-3)


def _half(boxes: np.ndarray, sign: float) -> np.ndarray:
    return boxes + sign * np.tile((boxes[..., 2:] - boxes[..., :2]) / 2, 2)


#: what may have been done to boxes, and the function of boxes [..., 4] in 0..1 that undoes it
MOVES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored left to right": lambda b: np.stack((1 - b[..., 2], b[..., 1], 1 - b[..., 0], b[..., 3]), -1),
    "mirrored top to bottom": lambda b: np.stack((b[..., 0], 1 - b[..., 3], b[..., 2], 1 - b[..., 1]), -1),
    "rotated by 180 degrees": lambda b: 1 - b[..., [2, 3, 0, 1]],
    "written with x and y swapped": lambda b: b[..., [1, 0, 3, 2]],
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
        images: how many were measured.
        fit: by how many spreads own boxes differ from those of other images on the same image, mean over images and contrasts.
        z: that in standard errors.
        move: what was done to the boxes, if undoing it fits best.
        move_z: how much more own boxes gain by undoing it than others do, in standard errors.
        undone_z: ``z`` once it is undone.
    """

    images: int
    fit: float
    z: float
    move: str
    move_z: float
    undone_z: float


def _scores(image: SampledImage, own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How own boxes [..., N, 4] stand out among others [..., M, 4] on the same image, in spreads of the others: [...]."""
    measured = contrasts(image, np.concatenate((own, others), -2))
    mine, theirs = measured[..., : own.shape[-2], :], measured[..., own.shape[-2] :, :]
    mean, spread = nan_mean(theirs, -2), nan_std(theirs, -2)
    with np.errstate(invalid="ignore", divide="ignore"):
        score = np.clip((mine - mean) / np.maximum(spread, 1e-6), -_CLIP, _CLIP)
    return nan_mean(score.mean(-1), -1)[..., 0]


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """The mean of the finite values, axes kept; NaN where there is none."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0).sum(axis, keepdims=True) / known.sum(axis, keepdims=True)


def nan_std(values: np.ndarray, axis: int) -> np.ndarray:
    return np.sqrt(nan_mean((values - nan_mean(values, axis)) ** 2, axis))


def measure_fit(images: Sequence[SampledImage]) -> BoxFit | None:
    """The boxes of the images against those of other images and against moves; None where the sample is too small."""
    count = len(images)
    if count < FEWEST:
        return None
    steps = [1 + round(k * (count - 2) / (OTHERS - 1)) for k in range(OTHERS)]
    others = [np.concatenate([images[(i + step) % count].boxes for step in steps]) for i in range(count)]
    own = np.array([_scores(image, image.boxes, other) for image, other in zip(images, others, strict=True)])
    if np.isfinite(own).sum() < FEWEST:
        return None

    def undone(names: Sequence[str], which: Sequence[int]) -> np.ndarray:
        """Scores without a move and with each of them undone, for own and others' boxes alike: [images, 1 + names]."""
        undo = [lambda b: b, *(MOVES[name] for name in names)]
        rows = []
        for i in which:
            mine, theirs = images[i].boxes[:_MOVED_BOXES], others[i][:: max(len(others[i]) // (2 * _MOVED_BOXES), 1)]
            rows.append(_scores(images[i], np.stack([move(mine) for move in undo]), np.stack([move(theirs) for move in undo])))
        return np.array(rows)

    names = list(MOVES)
    scores = undone(names, evenly(count, FIRST))
    gains = [z_score(gain) for gain in (scores[:, 1:] - scores[:, :1]).T]
    names = [names[k] for k in np.argsort(gains)[::-1][:TRIED]]
    scores = undone(names, range(count))
    gains = [z_score(gain) for gain in (scores[:, 1:] - scores[:, :1]).T]
    best = int(np.argmax(gains))
    fit = float(np.nanmean(own))
    return BoxFit(int(np.isfinite(own).sum()), fit, z_score(own), names[best], gains[best], z_score(scores[:, 1 + best]))


def z_score(values: np.ndarray) -> float:
    """The mean of the finite values in standard errors; 0 for fewer than two thirds of ``FEWEST``."""
    values = values[np.isfinite(values)]
    if len(values) < 2 * FEWEST / 3:
        return 0.0
    return float(values.mean() / max(values.std(ddof=1) / len(values) ** 0.5, 1e-9))


def check_fit(split: str, images: Sequence[SampledImage], fit: BoxFit) -> Finding | None:
    """What the fit of a split's boxes means."""
    shown = tuple((split, images[i].index) for i in evenly(len(images), SHOWN))
    if fit.move_z > BETTER and fit.undone_z > max(fit.z, BETTER):  # of 66 moves one helps wrong images a little, by chance
        return Finding(
            "boxes-moved", "warning",
            f"The boxes of {split} look as if they were {fit.move}: with that undone they stand out from their surroundings better, by "
            f"{fit.move_z:.1f} standard errors more than other images' boxes do ({fit.images} images).",
            "If the dashed boxes (undone) fit better than the solid ones, export the annotations again.",
            "strong" if fit.move_z > FAR_BETTER else "weak", shown, fit.move,
        )  # fmt: skip
    if fit.z < BELONG and fit.fit < LITTLE:
        return Finding(
            "images-do-not-belong", "warning",
            f"The boxes of {split} fit their own images no better than the boxes of other images do ({fit.z:.1f} standard errors, "
            f"{fit.images} images; {BELONG} and more are usual): is it the wrong image folder, or are the annotations of other images?",
            "If the boxes there are not on objects, pair images and annotations of the same export.",
            "strong" if fit.z < STRANGE else "weak", shown,
        )  # fmt: skip
    return None
