"""Where a detector errs: classes taken for others, precision by recall, what AP50 would be without each kind of error. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boxquery.data.dataset import Record
from boxquery.evaluation.coco_matching import ImageDetections, coco_match, flatten_detections
from boxquery.evaluation.errors import IOU_MISPLACED, IOU_RIGHT, classify_errors
from boxquery.evaluation.metrics import coco_eval

#: TIDE's error types (Bolya et al., ECCV 2020) in our words
_TIDE = {
    "Cls": "wrong class",
    "Loc": "misplaced",
    "Both": "wrong class and misplaced",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}


def analyse(
    records: Sequence[Record],
    predictions: Mapping[int, ImageDetections],
    names: Sequence[str],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """Errors of predictions, for JSON.

    Args:
        records, predictions, names: as ``evaluate`` was given.
        metrics: what it returned. Detections at its ``threshold`` are in the confusion matrix; none where that is None.

    Returns:
        - ``threshold``: that of the metrics.
        - ``confusion``: ``names`` of the classes that have objects or detections, and ``matrix`` [C + 1, C + 1] at IoU 0.5: row: the class
          of an object, last: background; column: the class that was predicted, last: not found. Ignored objects are in neither. What is in
          the diagonal is what precision and recall call right.
        - ``curves``: [{``name``, ``AP50``, ``precision`` [101] at recall 0, 0.01, ... 1}] of classes with objects, at IoU 0.5, interpolated
          as in COCO.
        - ``tide``: [{``type``, ``AP50_gain``, ``count``}]: what AP50 would gain were all errors of a type corrected, all else equal, over
          all scores.
        Without objects the last two are empty.
    """
    threshold, max_detections = metrics["threshold"], metrics["max_detections"]
    least = np.inf if threshold is None else threshold
    objects = np.bincount(np.concatenate([np.zeros(0, np.int64), *(r.labels[~r.ignore] for r in records)]), minlength=len(names))
    result: dict[str, Any] = {
        "threshold": threshold,
        "confusion": _confusion(records, predictions, names, objects, max_detections, least),
        "curves": [],
        "tide": [],
    }
    if not objects.any():
        return result
    run = coco_eval(records, flatten_detections(records, predictions, len(names), max_detections), len(names), [max_detections])
    tables = run.eval
    assert tables is not None
    precision = np.asarray(tables["precision"])[0, :, :, 0, -1]
    result["curves"] = [
        {"name": names[label], "AP50": float(precision[:, label].mean()), "precision": precision[:, label].round(4).tolist()}
        for label in np.flatnonzero(objects).tolist()
    ]
    found = run.tide_errors(pos_thr=IOU_RIGHT, bg_thr=IOU_MISPLACED)
    result["tide"] = [
        {"type": word, "AP50_gain": float(found["delta_ap"][key]), "count": int(found["counts"][key])} for key, word in _TIDE.items()
    ]
    return result


def _confusion(
    records: Sequence[Record],
    predictions: Mapping[int, ImageDetections],
    names: Sequence[str],
    objects: np.ndarray,
    max_detections: int,
    least: float,
) -> dict[str, Any]:
    kept = {}
    for position, (boxes, scores, labels) in predictions.items():
        high = np.asarray(scores) >= least
        kept[position] = np.asarray(boxes)[high], np.asarray(scores)[high], np.asarray(labels)[high]
    table = flatten_detections(records, kept, len(names), max_detections, one_label=True)
    outcome, found = coco_match(records, table, IOU_RIGHT)
    bounds = np.searchsorted(table.image, np.arange(len(records) + 1))
    other = len(names)
    matrix = np.zeros((other + 1, other + 1), np.int64)
    matrix[:other, other] = objects
    for position, record in enumerate(records):
        part = slice(*bounds[position : position + 2])
        detections = table.boxes[part], table.scores[part], table.labels[part]
        errors = classify_errors(record, detections, outcome[part], found[part])
        for word, index, label in zip(errors.outcomes, errors.objects, table.labels[part].tolist(), strict=True):
            if word in ("right", "wrong class"):
                truth = record.labels[index]
                matrix[truth, label] += 1
                matrix[truth, other] -= 1
            elif word != "ignored":
                matrix[other, label] += 1
    shown = [*np.flatnonzero(matrix[:other].sum(1) + matrix[:, :other].sum(0)).tolist(), other]
    return {"names": [names[label] for label in shown[:-1]], "matrix": matrix[np.ix_(shown, shown)].tolist()}
