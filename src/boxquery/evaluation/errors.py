"""Error types: what is right or wrong about each detection of an image, and the IoU thresholds that decide it. NumPy only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from boxquery.data.dataset import Record
from boxquery.evaluation.coco_matching import IGNORED, RIGHT, DetectionTable, ImageDetections, iou

#: from this IoU a detection is at an object
IOU_RIGHT = 0.5
#: from this IoU a detection of the right class is misplaced; below, it has nothing to do with the object
IOU_MISPLACED = 0.1
#: above this IoU the lower-scored of two detections of a class counts in ``duplicate_rate``
IOU_DUPLICATE = 0.7

OUTCOMES = ("right", "wrong class", "misplaced", "duplicate", "false", "ignored")


class ImageErrors(NamedTuple):
    """The detections of one image, classified.

    Attributes:
        outcomes: one of ``OUTCOMES`` per detection. "wrong class" lies on an object (IoU >= 0.5) of another class that nothing else found,
            "misplaced" on one of its class with an IoU from 0.1 to 0.5 only, "duplicate" on one already found, "ignored" in a crowd;
            "false" is the rest (background).
        objects: place in ``record.boxes`` of the object that a detection is right about, of the wrong class for, or misplaced on; else -1.
        missed: places in ``record.boxes`` of the objects that no detection explains.
    """

    outcomes: list[str]
    objects: list[int]
    missed: list[int]


def classify_errors(record: Record, detections: ImageDetections, outcome: np.ndarray, found: np.ndarray) -> ImageErrors:
    """Classify the detections of an image.

    Args:
        outcome, found: of these detections, as ``coco_match`` gives them at ``IOU_RIGHT``.
    """
    boxes, scores, labels = detections
    overlap = iou(boxes, record.boxes.astype(np.float64))
    same = labels[:, None] == record.labels[None]
    free = ~record.ignore
    free[found[outcome == RIGHT]] = False
    objects = found.copy()
    words = ["right" if value == RIGHT else "ignored" if value == IGNORED else "false" for value in outcome]
    rest = [int(i) for i in np.argsort(-scores, kind="stable") if words[i] == "false"]
    for word, fits in (("wrong class", ~same & (overlap >= IOU_RIGHT)), ("misplaced", same & (overlap >= IOU_MISPLACED))):
        for i in rest:
            candidates = np.flatnonzero(fits[i] & free)
            twice = (same[i] & ~free & ~record.ignore & (overlap[i] >= IOU_RIGHT)).any()
            if words[i] == "false" and len(candidates) and not twice:
                words[i], objects[i] = word, candidates[np.argmax(overlap[i, candidates])]
                free[objects[i]] = False
    for i in rest:
        if words[i] == "false" and (same[i] & ~record.ignore & (overlap[i] >= IOU_RIGHT)).any():
            words[i] = "duplicate"
    return ImageErrors(words, objects.tolist(), [int(i) for i in np.flatnonzero(free)])


def find_duplicates(detections: DetectionTable, kept: np.ndarray) -> np.ndarray:
    """Which of the kept detections overlap a better one, kept, of the same image and class with IoU > 0.7: bool [D] from bool [D]."""
    result = np.zeros(len(kept), bool)
    index = np.flatnonzero(kept)
    for group in np.split(index, np.flatnonzero(np.diff(detections.image[index])) + 1):
        if len(group) < 2:
            continue
        result[group] = overlapped(detections.boxes[group], detections.labels[group])
    return result


def overlapped(boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which of an image's boxes [K, 4], best first, overlap a better one of their class with IoU > 0.7: bool [K]."""
    close = (iou(boxes, boxes) > IOU_DUPLICATE) & (labels[:, None] == labels[None])
    return np.tril(close, k=-1).any(axis=1)
