"""COCO's greedy matching of detections to objects, and the IoU it needs. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from boxquery.data.dataset import Record
from boxquery.errors import UserError

RIGHT, WRONG, IGNORED = 1, 0, -1

ImageDetections = tuple[np.ndarray, np.ndarray, np.ndarray]
"""One image: boxes [K, 4] xyxy pixels (unclipped), scores [K], labels [K] in 0..C-1."""


def intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Shared area of every box of a [N, 4] with every box of b [M, 4], xyxy: [N, M]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.clip(high - low, 0, None), axis=2)


def area(boxes: np.ndarray) -> np.ndarray:
    """Area of xyxy boxes [N, 4]: [N]; 0 for an inverted box."""
    return np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of a [N, 4] with b [M, 4], xyxy: [N, M] in [0, 1]; 0 where both are empty."""
    shared = intersection(a, b)
    union = area(a)[:, None] + area(b)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def inside(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of each a [N, 4] that lies in each b [M, 4], xyxy: [N, M] in [0, 1]."""
    shared, size = intersection(a, b), area(a)[:, None]
    return np.divide(shared, size, out=np.zeros_like(shared), where=size > 0)


@dataclass(frozen=True, slots=True, eq=False)
class DetectionTable:
    """The detections of many images in one table, sorted by image, then label, then falling score (ties in the order given).

    Attributes:
        image: int64 [D], position of the image in its split.
        boxes: float64 [D, 4], xyxy pixels, unclipped.
        scores: float64 [D].
        labels: int64 [D].
        rank: int64 [D], 0 for the best of its image and label.
        truncated: number left out because their rank reached ``max_detections``.
    """

    image: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    rank: np.ndarray
    truncated: int


def flatten_detections(
    records: Sequence[Record], predictions: Mapping[int, ImageDetections], classes: int, max_detections: int, *, one_label: bool = False
) -> DetectionTable:
    """One table of all detections; an image without an entry has none.

    Args:
        one_label: of the classes that a query gives with one and the same box only the best, as ``predict`` does.

    Raises:
        UserError: a box or score is not finite.
        ValueError: a position outside the split, arrays of unequal length, a label outside 0..classes-1.
    """
    image, boxes, scores, labels = [], [], [], []
    for position in sorted(predictions):
        if not 0 <= position < len(records):
            raise ValueError(f"prediction for image position {position}, but the split has {len(records)} images")
        b, s, c = predictions[position]
        b, s, c = np.asarray(b, np.float64).reshape(-1, 4), np.asarray(s, np.float64).reshape(-1), np.asarray(c, np.int64).reshape(-1)
        if not len(b) == len(s) == len(c):
            raise ValueError(f"image position {position}: {len(b)} boxes, {len(s)} scores, {len(c)} labels")
        image.append(np.full(len(s), position))
        boxes.append(b)
        scores.append(s)
        labels.append(c)
    if not image:
        image, boxes, scores, labels = [np.zeros(0, np.int64)], [np.zeros((0, 4))], [np.zeros(0)], [np.zeros(0, np.int64)]
    where, box, score, label = (np.concatenate(part) for part in (image, boxes, scores, labels))
    _check(records, where, box, score, label, classes)
    if one_label:
        order = np.lexsort((-score, *box.T, where))
        best = np.ones(len(order), bool)
        best[1:] = (np.diff(where[order]) != 0) | (np.diff(box[order], axis=0) != 0).any(axis=1)
        kept = np.sort(order[label[order] == label[order[best]][np.cumsum(best) - 1]])
        where, box, score, label = where[kept], box[kept], score[kept], label[kept]

    order = np.lexsort((-score, label, where))
    where, box, score, label = where[order], box[order], score[order], label[order]
    first = np.ones(len(where), bool)
    first[1:] = (where[1:] != where[:-1]) | (label[1:] != label[:-1])
    start = np.maximum.accumulate(np.where(first, np.arange(len(where)), 0))
    rank = np.arange(len(where)) - start
    kept = rank < max_detections
    return DetectionTable(where[kept], box[kept], score[kept], label[kept], rank[kept], int(np.sum(~kept)))


def _check(records: Sequence[Record], image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, classes: int) -> None:
    broken = ~(np.isfinite(boxes).all(axis=1) & np.isfinite(scores))
    if broken.any():
        name = records[image[broken][0]].id
        count = int(broken.sum())
        raise UserError(f"image {name}: a predicted box or score is NaN or inf ({count} in all); the weights are damaged")
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        raise ValueError(f"image {records[image[wrong][0]].id}: label {labels[wrong][0]} is outside 0..{classes - 1}")


def coco_match(records: Sequence[Record], detections: DetectionTable, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """COCO's matching: by falling score, each detection takes the free object of its class that it overlaps most (IoU >= ``threshold``).

    A detection that finds no object but of whose area at least ``threshold`` lies in an ignored region of its class (crowd, "difficult") is
    neither right nor wrong; any number may lie in one region.

    Returns:
        outcome int64 [D]: RIGHT, WRONG or IGNORED; object int64 [D]: its index in ``record.boxes``, -1 where not RIGHT.
    """
    count = len(detections.scores)
    outcome, found = np.full(count, WRONG), np.full(count, -1)
    offsets = np.concatenate([[0], np.cumsum([len(record.boxes) for record in records])]).astype(np.int64)
    bounds = np.searchsorted(detections.image, np.arange(len(records) + 1))

    pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for position, record in enumerate(records):
        begin, end = bounds[position], bounds[position + 1]
        if begin == end or len(record.boxes) == 0:
            continue
        boxes, truth, ignore = detections.boxes[begin:end], record.boxes.astype(np.float64), record.ignore
        same = detections.labels[begin:end, None] == record.labels[None]
        overlap = iou(boxes, truth)
        which, target = np.nonzero(same & ~ignore & (overlap >= threshold))
        pairs.append((which + begin, target + offsets[position], overlap[which, target]))
        if ignore.any():
            near = (same[:, ignore] & (inside(boxes, truth[ignore]) >= threshold)).any(axis=1)
            outcome[begin:end][near] = IGNORED

    if pairs:
        which, target, overlap = (np.concatenate(part) for part in zip(*pairs, strict=True))
        order = np.lexsort((-target, -overlap, which, detections.rank[which]))
        which, target = which[order], target[order]
        taken = np.zeros(offsets[-1], bool)
        # Detections of equal rank never compete: they differ in image or in class. So one step serves all images at once.
        for chunk in np.split(np.arange(len(which)), np.flatnonzero(np.diff(detections.rank[which])) + 1):
            free = chunk[~taken[target[chunk]]]
            winner, first = np.unique(which[free], return_index=True)
            prize = target[free][first]
            taken[prize] = True
            outcome[winner] = RIGHT
            found[winner] = prize - offsets[detections.image[winner]]
    return outcome, found
