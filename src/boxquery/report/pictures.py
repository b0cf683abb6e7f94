"""Typical and worst images of a split, the truth beside what the model said, with what went wrong. Does not import torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxquery.data.dataset import Record, Split
from boxquery.errors import printable
from boxquery.evaluation.coco_matching import IGNORED, RIGHT, ImageDetections, coco_match, flatten_detections, iou
from boxquery.files import atomic_write, write_json
from boxquery.pages.drawing import draw

IOU_RIGHT = 0.5
IOU_MISPLACED = 0.1
LONG_SIDE = 640  # pixels of a stored picture
BYTES = 1_300_000  # of all stored pictures together: a third more as text in the report

OUTCOMES = ("right", "wrong class", "misplaced", "duplicate", "false", "ignored")


@dataclass(frozen=True, slots=True, eq=False)
class Picked:
    """An image worth looking at, and every detection at or above the threshold explained.

    Attributes:
        kind: "typical" or "worst".
        position: in the split.
        f1: of this image, in [0, 1]; an image with neither objects nor detections has 1.
        boxes, scores, labels: the detections shown, [K, 4], [K], [K].
        outcomes: one of ``OUTCOMES`` per detection: "wrong class" lies on an object (IoU >= 0.5) of another class that nothing else found,
            "misplaced" on one of its class with an IoU between 0.1 and 0.5 only, "duplicate" on one already found, "ignored" in a
            crowd; "false" is the rest.
        objects: place in ``record.boxes`` of the object that a detection is right about, of the wrong class for, or misplaced on; else -1.
        missed: places in ``record.boxes`` of the objects that no detection explains.
    """

    kind: str
    position: int
    f1: float
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    outcomes: list[str]
    objects: list[int]
    missed: list[int]


def pick_pictures(
    split: Sequence[Record],
    predictions: Mapping[int, ImageDetections],
    names: Sequence[str],
    *,
    typical: int = 6,
    worst: int = 6,
    threshold: float | None,
) -> list[Picked]:
    """Choose images by how well the detections with score >= threshold fit.

    The quality of an image is its F1 in which a right box counts with its IoU. Worst: the most mistakes (objects not found and wrong
    detections), weighed with 1 - quality, so that neither an image with one missed object nor a crowd with a few wins; at most half
    of the split, and only images with a mistake. Typical: of the others those around the median quality, preferably with objects.
    Ties go by the order of the split. No randomness.

    Args:
        split: a ``Split`` or records.
        predictions: position -> (boxes xyxy pixels, scores, labels), as for ``evaluate``.
        threshold: usually ``best_threshold`` of ``evaluate``; None: 0.5.
    """
    least = 0.5 if threshold is None else threshold
    shown = {}
    for position, (boxes, scores, labels) in predictions.items():
        keep = np.asarray(scores) >= least
        shown[position] = np.asarray(boxes)[keep], np.asarray(scores)[keep], np.asarray(labels)[keep]
    detections = flatten_detections(split, shown, len(names), 1000)
    outcome, found = coco_match(split, detections, IOU_RIGHT)
    bounds = np.searchsorted(detections.image, np.arange(len(split) + 1))

    quality, mistakes, f1, objects = (np.zeros(len(split)) for _ in range(4))
    for position, record in enumerate(split):
        part = slice(bounds[position], bounds[position + 1])
        right = outcome[part] == RIGHT
        objects[position] = np.sum(~record.ignore)
        total = objects[position] + np.sum(outcome[part] != IGNORED)
        pairs = iou(detections.boxes[part][right], record.boxes[found[part][right]].astype(np.float64))
        quality[position] = 2 * np.trace(pairs) / total if total else 1
        f1[position] = 2 * right.sum() / total if total else 1
        mistakes[position] = total - 2 * right.sum()

    order = np.argsort(-mistakes * (1 - quality), kind="stable")
    low = [int(i) for i in order if mistakes[i] > 0][: min(worst, len(split) // 2)]
    rest = [int(i) for i in order if i not in low]
    rest = [i for i in rest if objects[i]] or rest
    median = np.median(quality[rest]) if rest else 0.0
    middle = sorted(sorted(rest, key=lambda i: abs(quality[i] - median))[:typical], key=lambda i: -quality[i])

    result = []
    for kind, positions in (("typical", middle), ("worst", low)):
        for position in positions:
            part = slice(bounds[position], bounds[position + 1])
            boxes, scores, labels = detections.boxes[part], detections.scores[part], detections.labels[part]
            reasons = _explain(split[position], boxes, scores, labels, outcome[part], found[part])
            result.append(Picked(kind, position, float(f1[position]), boxes, scores, labels, *reasons))
    return result


def _explain(
    record: Record, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, outcome: np.ndarray, found: np.ndarray
) -> tuple[list[str], list[int], list[int]]:
    """A word for every detection, the object it is about, and the objects that none of them explains."""
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
    return words, objects.tolist(), [int(i) for i in np.flatnonzero(free)]


def write_pictures(
    run: Path,
    split: Split,
    predictions: Mapping[int, ImageDetections],
    names: Sequence[str],
    *,
    typical: int = 6,
    worst: int = 6,
    threshold: float | None,
) -> Path:
    """Pick, draw and store: ``<run>/pictures/KIND-N-{truth,prediction}.jpg`` and ``<run>/pictures.json``, which is returned.

    The JSON is ``{"split", "threshold", "pictures": [...]}`` with, per picture, ``kind``, ``image`` (the data set's id), ``title``,
    ``width`` and ``height`` in which to show it, ``truth_file`` and ``prediction_file`` (relative to the run), ``f1``,
    ``truth``: [{``name``, ``box`` (xyxy pixels of the original), ``ignore``, ``missed``}] and
    ``predictions``: [{``name``, ``box``, ``score``, ``outcome``, ``object`` (place in ``truth``, or -1)}].
    In the prediction's picture missed objects are dashed, in the truth's ignored ones. Pictures of an earlier call are removed.
    """
    chosen = pick_pictures(split, predictions, names, typical=typical, worst=worst, threshold=threshold)
    budget = BYTES // max(1, 2 * len(chosen))
    entries: list[dict[str, Any]] = []
    written: set[str] = set()
    for item in chosen:
        record = split[item.position]
        image, scale = resized(split.read(item.position))
        truth, hidden = record.boxes * scale, record.ignore
        left = draw(image, truth[~hidden], record.labels[~hidden], names, dashed=(truth[hidden], record.labels[hidden]))
        missed = np.array(item.missed, np.int64)
        right = draw(image, item.boxes * scale, item.labels, names, scores=item.scores, dashed=(truth[missed], record.labels[missed]))
        number = sum(entry["kind"] == item.kind for entry in entries) + 1
        files = [f"pictures/{item.kind}-{number}-{side}.jpg" for side in ("truth", "prediction")]
        for file, picture in zip(files, (left, right), strict=True):
            atomic_write(run / file, jpeg(picture, budget))
        written.update(files)
        entries.append(
            {
                "kind": item.kind,
                "image": record.id,
                "title": printable(record.path.name) if record.path else f"image {record.id}",
                "width": image.width,
                "height": image.height,
                "truth_file": files[0],
                "prediction_file": files[1],
                "f1": item.f1,
                "truth": [
                    {"name": names[label], "box": box, "ignore": bool(ignore), "missed": place in item.missed}
                    for place, (label, box, ignore) in enumerate(zip(record.labels, record.boxes.tolist(), record.ignore, strict=True))
                ],
                "predictions": [
                    {"name": names[label], "box": box, "score": score, "outcome": word, "object": place}
                    for label, box, score, word, place in zip(
                        item.labels, item.boxes.tolist(), item.scores.tolist(), item.outcomes, item.objects, strict=True
                    )
                ],
            }
        )
    for old in (run / "pictures").glob("*.jpg"):
        if f"pictures/{old.name}" not in written:
            old.unlink()
    return write_json(run / "pictures.json", {"split": split.name, "threshold": threshold, "pictures": entries})


def resized(image: Image.Image, side: int = LONG_SIDE) -> tuple[Image.Image, float]:
    """The image with its long side at ``side`` pixels (small ones grow, so that letters fit), and new size / old size."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS), scale


def jpeg(image: Image.Image, budget: int) -> bytes:
    """JPEG of at most ``budget`` bytes: of lower quality where it must be, then smaller, down to 64 pixels."""
    while True:
        for quality in (88, 80, 70, 60, 48):
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=quality, optimize=True)
            if stream.tell() <= budget:
                return stream.getvalue()
        if max(image.size) <= 64:
            return stream.getvalue()
        image = image.resize((max(1, image.width * 3 // 4), max(1, image.height * 3 // 4)), Image.Resampling.LANCZOS)
