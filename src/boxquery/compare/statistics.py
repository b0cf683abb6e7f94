"""How far a difference in AP can be chance: images and seeds drawn again. NumPy only, no torch.

Two levels: which images are in the validation split, and which seed a run had. Images are drawn with replacement, the same draws for all
runs, so that a difference between two models is taken on the same images. Seeds are few, and drawing them with replacement would understate
their spread: each draw first leaves one out and then draws from the others (the bootknife; Hesterberg 2004), which gives the spread of a
mean without bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from boxquery.data.dataset import Record
from boxquery.evaluation.coco_matching import IGNORED, RIGHT, ImageDetections, flatten_detections, match

RESAMPLES = 1000
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
#: resamples computed at once, to keep tables in the processor's cache
_AT_ONCE = 50

Interval = tuple[float, float]


def drawn_images(images: int, resamples: int = RESAMPLES) -> np.ndarray:
    """How often each image is in each resample, int64 [resamples, images]; the same for the same number of images."""
    rng = np.random.default_rng(images)
    return np.stack([np.bincount(rng.integers(0, images, images), minlength=images) for _ in range(resamples)])


def average_precisions(
    records: Sequence[Record], predictions: Mapping[int, ImageDetections], classes: int, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's AP and AP50 where every image counts as often as ``times`` [R, images] says: [R], [R]; NaN where there is no object.

    With ones it is what ``boxquery.evaluation.metrics.evaluate`` gives (100 detections of a class and image).
    """
    detections = flatten_detections(records, predictions, classes, 100)
    outcomes = np.stack([match(records, detections, threshold)[0] for threshold in IOUS])
    objects = np.zeros((len(records), classes), np.int64)
    for position, record in enumerate(records):
        np.add.at(objects[position], record.labels[~record.ignore], 1)
    table = np.full((len(times), classes, len(IOUS)), np.nan)
    for label in range(classes):
        chosen = np.flatnonzero(detections.labels == label)
        chosen = chosen[np.argsort(-detections.scores[chosen], kind="stable")]
        right, counted = outcomes[:, chosen] == RIGHT, outcomes[:, chosen] != IGNORED
        for start in range(0, len(times), _AT_ONCE):
            part = times[start : start + _AT_ONCE]
            total = part @ objects[:, label]
            here = table[start : start + _AT_ONCE, label]
            drawn = part[:, detections.image[chosen]]
            shown = np.cumsum(drawn, axis=1)
            for place in range(len(IOUS)):
                # precision is highest at right detections, and only they raise recall: no other place has to be looked at
                at = np.flatnonzero(right[place])
                seen = shown if counted[place].all() else np.cumsum(drawn * counted[place], axis=1)
                here[:, place] = _area(np.cumsum(drawn[:, at], axis=1), seen[:, at], total)
    defined = ~np.isnan(table[..., 0])
    count = np.maximum(defined.sum(axis=1), 1)
    ap, ap50 = (np.where(defined, values, 0).sum(axis=1) / count for values in (table.mean(axis=2), table[..., 0]))
    return np.where(defined.any(axis=1), ap, np.nan), np.where(defined.any(axis=1), ap50, np.nan)


def _area(found: np.ndarray, seen: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Mean precision at 101 recalls: [R]; NaN without objects.

    Args:
        found, seen: right detections, and all, down to the score of each right one: [R, P].
        total: objects [R].
    """
    rows, width = found.shape
    precision = np.divide(found, seen, out=np.zeros(found.shape), where=seen > 0)
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


def drawn_means(values: np.ndarray, seed: int) -> np.ndarray:
    """From a score of every seed on every resample [seeds, R], the mean over drawn seeds: [R]. One seed: its own scores."""
    seeds, resamples = values.shape
    if seeds == 1:
        return values[0]
    rng = np.random.default_rng(seed)
    left_out = rng.integers(0, seeds, resamples)
    draws = rng.integers(0, seeds - 1, (resamples, seeds))
    draws += draws >= left_out[:, None]
    return np.take_along_axis(values, draws.T, axis=0).mean(axis=0)


def interval(values: np.ndarray, level: float = 0.95) -> Interval | None:
    """The middle share of resampled values; None where there is none."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def against_best(means: Mapping[str, float], drawn: Mapping[str, np.ndarray]) -> tuple[str, dict[str, tuple[float, Interval]]]:
    """The highest mean's name, and how much lower each other is, with an interval.

    The intervals hold together with 95 %: each is widened for their number (Bonferroni).
    """
    best = max(means, key=lambda name: means[name])
    others = [name for name in means if name != best]
    level = 1 - 0.05 / max(len(others), 1)
    found = {}
    for name in others:
        bounds = interval(drawn[best] - drawn[name], level)
        if bounds is not None:
            found[name] = means[best] - means[name], bounds
    return best, found


def conclusion(
    means: Mapping[str, float], drawn: Mapping[str, np.ndarray], seeds: Mapping[str, int], budget: str, images: int
) -> list[str]:
    """Two sentences that the figures support; "no difference shown" is one of the things they may say.

    Args:
        means: AP by entry, mean over seeds; at least one.
        drawn: resampled means [R] of the same entries, on the same images.
        seeds: how many each entry has.
    """
    best, lower = against_best(means, drawn)
    own = interval(drawn[best])
    runs = f"{seeds[best]} seeds" if seeds[best] > 1 else "one seed"
    where = f"on {images:,} validation images"
    first = f"After {budget}, {best} has the highest AP {where}: {means[best]:.3f}"
    first += f" (95 % interval {own[0]:.3f} to {own[1]:.3f}, {runs})." if own else f" ({runs})."
    if means[best] == 0:
        return [
            f"After {budget}, AP is 0 {where} for {'all of them' if len(means) > 1 else best}.",
            "No difference is shown: they find nothing yet.",
        ]
    if len(means) == 1:
        return [
            f"After {budget}, {best} has AP {means[best]:.3f} {where}{first[first.index(' (') :]}",
            "There is nothing to compare it with.",
        ]
    shown = [name for name, (_, (low, _)) in lower.items() if low > 0]
    rest = [name for name in means if name != best and name not in shown]
    parts = []
    if shown:
        said = "; ".join(f"{name} by {lower[name][0]:.3f} ({_bounds(lower[name][1])})" for name in shown)
        parts.append(f"lower by more than chance explains: {said}")
    if rest:
        said = "; ".join(f"{name} ({lower[name][0]:+.3f}, {_bounds(lower[name][1])})" if name in lower else name for name in rest)
        parts.append(f"no difference from it is shown for {said}")
    second = ", and ".join(parts)
    return [first, second[0].upper() + second[1:] + "."]


def _bounds(bounds: Interval) -> str:
    return f"{bounds[0]:z.3f} to {bounds[1]:z.3f}"
