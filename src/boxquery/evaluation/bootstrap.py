"""Bootstrap: how far a mean over images and seeds could be chance. NumPy only.

Two levels: which images are in the validation split, and which seed a run had. Images are resampled with replacement, the same resamples
for all runs, so that a difference between two models is taken on the same images. Seeds are few, and resampling them with replacement would
understate their spread: each resample first leaves one out and then draws from the others (the bootknife; Hesterberg 2004), which gives the
spread of a mean without bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from boxquery.data.dataset import Record
from boxquery.evaluation.coco_matching import IGNORED, RIGHT, ImageDetections, coco_match, flatten_detections
from boxquery.limits import MAX_DETECTIONS

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
#: resamples computed at once, to keep tables in the CPU's cache
_AT_ONCE = 50

Interval = tuple[float, float]


def resample(count: int, resamples: int, seed: int) -> np.ndarray:
    """Which of ``count`` items are in each resample, with repetition: int64 [resamples, count]."""
    return np.random.default_rng(seed).integers(count, size=(resamples, count))


def interval(values: np.ndarray, level: float = 0.95) -> Interval | None:
    """The middle share of resampled values; None where there is none. NaN is left out."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_over_images(images: Sequence[np.ndarray]) -> dict[str, float | None]:
    """Mean of the values of all images, with its 95 % interval over resampled images: ``{"mean", "low", "high"}``, None without values.

    Args:
        images: per image its values, [n] each; images without values count for nothing.
    """
    images = [values for values in images if len(values)]
    if not images:
        return {"mean": None, "low": None, "high": None}
    totals, counts = np.array([values.sum() for values in images]), np.array([len(values) for values in images])
    drawn = resample(len(images), 2000, 0)
    bounds = interval(totals[drawn].sum(1) / counts[drawn].sum(1))
    assert bounds is not None
    return {"mean": float(totals.sum() / counts.sum()), "low": bounds[0], "high": bounds[1]}


def resample_seeds(values: np.ndarray, seed: int) -> np.ndarray:
    """Mean over resampled seeds, [R], from each seed's score on every resample of the images, [seeds, R]; of one seed its own scores."""
    seeds, resamples = values.shape
    if seeds == 1:
        return values[0]
    rng = np.random.default_rng(seed)
    left_out = rng.integers(0, seeds, resamples)
    draws = rng.integers(0, seeds - 1, (resamples, seeds))
    draws += draws >= left_out[:, None]
    return np.take_along_axis(values, draws.T, axis=0).mean(axis=0)


def image_weights(images: int, resamples: int = 1000) -> np.ndarray:
    """How often each image is in each resample, int64 [resamples, images]; the same for the same number of images."""
    return np.stack([np.bincount(row, minlength=images) for row in resample(images, resamples, images)])


def resampled_ap(
    records: Sequence[Record],
    predictions: Mapping[int, ImageDetections],
    classes: int,
    weights: np.ndarray,
    max_detections: int = MAX_DETECTIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's AP and AP50 where every image counts as often as ``weights`` [R, images] says: [R], [R]; NaN where there is no object.

    With ones it is what ``boxquery.evaluation.metrics.evaluate`` gives.
    """
    detections = flatten_detections(records, predictions, classes, max_detections)
    outcomes = np.stack([coco_match(records, detections, threshold)[0] for threshold in IOUS])
    objects = np.zeros((len(records), classes), np.int64)
    for position, record in enumerate(records):
        np.add.at(objects[position], record.labels[~record.ignore], 1)
    table = np.full((len(weights), classes, len(IOUS)), np.nan)
    for label in range(classes):
        chosen = np.flatnonzero(detections.labels == label)
        chosen = chosen[np.argsort(-detections.scores[chosen], kind="stable")]
        right, counted = outcomes[:, chosen] == RIGHT, outcomes[:, chosen] != IGNORED
        for start in range(0, len(weights), _AT_ONCE):
            part = weights[start : start + _AT_ONCE]
            total = part @ objects[:, label]
            here = table[start : start + _AT_ONCE, label]
            times = part[:, detections.image[chosen]]
            all_shown = np.cumsum(times, axis=1)
            for place in range(len(IOUS)):
                # precision is highest at right detections, and only they raise recall: no other place has to be looked at
                at = np.flatnonzero(right[place])
                shown = all_shown if counted[place].all() else np.cumsum(times * counted[place], axis=1)
                here[:, place] = _average_precision(np.cumsum(times[:, at], axis=1), shown[:, at], total)
    defined = ~np.isnan(table[..., 0])
    count = np.maximum(defined.sum(axis=1), 1)
    ap, ap50 = (np.where(defined, values, 0).sum(axis=1) / count for values in (table.mean(axis=2), table[..., 0]))
    return np.where(defined.any(axis=1), ap, np.nan), np.where(defined.any(axis=1), ap50, np.nan)


def _average_precision(found: np.ndarray, shown: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Mean precision at 101 recalls: [R]; NaN without objects.

    Args:
        found, shown: right detections, and all, down to the score of each right one: [R, P].
        total: objects [R].
    """
    rows, width = found.shape
    precision = np.divide(found, shown, out=np.zeros(found.shape), where=shown > 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # the first detection at which found / total >= recall, as COCO compares them: in whole numbers, all rows in one search
    least = np.ceil(RECALLS * total[:, None]).astype(np.int64)
    safe = np.maximum(total, 1)[:, None]
    least = np.where((least - 1) / safe >= RECALLS, least - 1, np.where(least / safe >= RECALLS, least, least + 1))
    step = int(total.max(initial=0)) + 2
    offset = np.arange(rows)[:, None] * step
    place = np.searchsorted((found + offset).ravel(), (np.maximum(least, 0) + offset).ravel()).reshape(rows, -1)
    place -= np.arange(rows)[:, None] * width
    padded = np.concatenate([best, np.zeros((rows, 1))], axis=1)
    values = np.take_along_axis(padded, np.minimum(place, width), axis=1).mean(axis=1)
    return np.where(total > 0, values, np.nan)
