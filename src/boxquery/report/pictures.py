"""Typical and worst images of a split: ground truth beside predictions, with the error types. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from boxquery.data.dataset import Record, Split
from boxquery.errors import printable
from boxquery.evaluation.coco_matching import IGNORED, RIGHT, ImageDetections, coco_match, flatten_detections, iou
from boxquery.evaluation.errors import IOU_RIGHT, ImageErrors, classify_errors
from boxquery.files import atomic_write, write_json
from boxquery.limits import DEFAULT_THRESHOLD
from boxquery.pages.drawing import draw
from boxquery.pages.images import encode_within, resize_to

LONG_SIDE = 640  # pixels of a stored picture
BYTES = 1_300_000  # of all stored pictures together: a third more as text in the report


class Picked(NamedTuple):
    """An image for the report, and its detections at or above the threshold.

    Attributes:
        kind: "typical" or "worst".
        position: its index in the split.
        f1: of this image, in [0, 1]; 1 without objects and detections.
        detections: those shown.
        errors: their error types.
    """

    kind: str
    position: int
    f1: float
    detections: ImageDetections
    errors: ImageErrors


def pick_pictures(
    split: Sequence[Record],
    predictions: Mapping[int, ImageDetections],
    num_classes: int,
    *,
    typical: int,
    worst: int,
    threshold: float | None,
) -> list[Picked]:
    """Choose images by how well the detections with score >= threshold fit.

    The quality of an image is its F1 in which a right box counts with its IoU. Worst: the most mistakes (missed objects and wrong
    detections), times 1 - quality, so that neither an image with one missed object nor a crowd with a few wins; at most half of the
    split, and only images with a mistake. Typical: of the others those around the median quality, preferably with objects. On ties the
    order of the split decides.

    Args:
        split: a ``Split`` or records.
        predictions: position -> detections, as for ``evaluate``.
        threshold: usually ``best_threshold`` of ``evaluate``; None: the default.
    """
    least = DEFAULT_THRESHOLD if threshold is None else threshold
    shown = {}
    for position, (boxes, scores, labels) in predictions.items():
        kept = np.asarray(scores) >= least
        shown[position] = np.asarray(boxes)[kept], np.asarray(scores)[kept], np.asarray(labels)[kept]
    table = flatten_detections(split, shown, num_classes, 1000, one_label=True)
    outcome, found = coco_match(split, table, IOU_RIGHT)
    bounds = np.searchsorted(table.image, np.arange(len(split) + 1))
    parts = [slice(*bounds[i : i + 2]) for i in range(len(split))]

    quality, mistakes, f1, objects = (np.zeros(len(split)) for _ in range(4))
    for i, (record, part) in enumerate(zip(split, parts, strict=True)):
        right = outcome[part] == RIGHT
        objects[i] = np.sum(~record.ignore)
        total = objects[i] + np.sum(outcome[part] != IGNORED)
        overlaps = iou(table.boxes[part][right], record.boxes[found[part][right]].astype(np.float64))
        quality[i] = 2 * np.trace(overlaps) / total if total else 1
        f1[i] = 2 * right.sum() / total if total else 1
        mistakes[i] = total - 2 * right.sum()

    order = np.argsort(-mistakes * (1 - quality), kind="stable")
    low = [int(i) for i in order if mistakes[i] > 0][: min(worst, len(split) // 2)]
    rest = [int(i) for i in order if i not in low]
    rest = [i for i in rest if objects[i]] or rest
    median = np.median(quality[rest]) if rest else 0.0
    middle = sorted(sorted(rest, key=lambda i: abs(quality[i] - median))[:typical], key=lambda i: -quality[i])

    result = []
    for kind, i in [*(("typical", i) for i in middle), *(("worst", i) for i in low)]:
        part = parts[i]
        detections = table.boxes[part], table.scores[part], table.labels[part]
        errors = classify_errors(split[i], detections, outcome[part], found[part])
        result.append(Picked(kind, i, float(f1[i]), detections, errors))
    return result


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
    """Pick, draw and write ``<run>/pictures/KIND-N-{truth,prediction}.jpg`` and ``<run>/pictures.json``, which is returned.

    The JSON is ``{"split", "threshold", "pictures": [...]}`` with, per picture, ``kind``, ``image`` (the data set's id), ``title``,
    ``width`` and ``height`` in which to show it, ``truth_file`` and ``prediction_file`` (relative to the run), ``f1``,
    ``truth``: [{``name``, ``box`` (xyxy pixels of the original), ``ignore``, ``missed``}] and
    ``predictions``: [{``name``, ``box``, ``score``, ``outcome``, ``object`` (index in ``truth``, or -1)}].
    Missed objects are dashed in the prediction, ignored ones in the truth. Pictures of an earlier call are removed.
    """
    picked = pick_pictures(split, predictions, len(names), typical=typical, worst=worst, threshold=threshold)
    limit = BYTES // max(1, 2 * len(picked))
    entries: list[dict[str, Any]] = []
    written: set[str] = set()
    for item in picked:
        record, (outcomes, objects, missed) = split[item.position], item.errors
        boxes, scores, labels = item.detections
        image, scale = resize_to(split.read(item.position), LONG_SIDE)
        truth, hidden, lost = record.boxes * scale, record.ignore, np.array(missed, np.int64)
        images = {
            "truth": draw(image, truth[~hidden], record.labels[~hidden], names, dashed=(truth[hidden], record.labels[hidden])),
            "prediction": draw(image, boxes * scale, labels, names, scores=scores, dashed=(truth[lost], record.labels[lost])),
        }
        number = sum(entry["kind"] == item.kind for entry in entries) + 1
        files = {side: f"pictures/{item.kind}-{number}-{side}.jpg" for side in images}
        for side, file in files.items():
            atomic_write(run / file, encode_within(images[side], limit))
        written.update(files.values())
        title = printable(record.path.name) if record.path else f"image {record.id}"
        entry = {"kind": item.kind, "image": record.id, "title": title, "width": image.width, "height": image.height, "f1": item.f1}
        entry |= {f"{side}_file": file for side, file in files.items()}
        entry["truth"] = [
            {"name": names[label], "box": box, "ignore": bool(ignore), "missed": i in missed}
            for i, (label, box, ignore) in enumerate(zip(record.labels, record.boxes.tolist(), record.ignore, strict=True))
        ]
        entry["predictions"] = [
            {"name": names[label], "box": box, "score": score, "outcome": outcome, "object": index}
            for label, box, score, outcome, index in zip(labels, boxes.tolist(), scores.tolist(), outcomes, objects, strict=True)
        ]
        entries.append(entry)
    for old in (run / "pictures").glob("*.jpg"):
        if f"pictures/{old.name}" not in written:
            old.unlink()
    return write_json(run / "pictures.json", {"split": split.name, "threshold": threshold, "pictures": entries})
