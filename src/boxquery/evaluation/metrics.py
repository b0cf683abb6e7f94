"""Detection metrics: AP as pycocotools defines it, best threshold, duplicate rate and false positives. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hotcoco import COCO, COCOeval

from boxquery.data.dataset import Record
from boxquery.evaluation.coco_matching import IGNORED, RIGHT, WRONG, DetectionTable, ImageDetections, coco_match, flatten_detections
from boxquery.evaluation.errors import IOU_RIGHT, find_duplicates
from boxquery.evaluation.threshold import best_threshold, rates
from boxquery.limits import MAX_DETECTIONS


def evaluate(
    records: Sequence[Record],
    predictions: Mapping[int, ImageDetections],
    names: Sequence[str],
    ids: Sequence[int],
    *,
    max_detections: int = MAX_DETECTIONS,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Compare predictions with the annotations.

    Args:
        records: the images of a split, with their objects.
        predictions: position in ``records`` -> (boxes [K, 4] xyxy pixels unclipped, scores [K], labels [K] in 0..C-1). A position
            without an entry is an image without detections. Entries may come from several processes merged in one dict: the position is
            the key, so an image that two of them have counts once.
        names, ids: class names and the data set's own category ids, by label.
        max_detections: as in COCO, the number of best detections *per class and image* that count; ``truncated`` is the number of others.
        threshold: score from which detections count in what is measured at one threshold; None: the best one.

    Returns:
        A dict for JSON; a number that is not defined (no objects of that size, no detections, ...) is None.

        - ``AP`` (mean over IoU 0.50:0.95), ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl`` (area < 32², < 96², larger; from
          ``Record.areas``), ``AR1``, ``AR10`` and ``AR100`` (named after ``max_detections``): as pycocotools.
        What follows counts one class per query, as ``predict`` gives it; AP counts several, as COCO defines it of sigmoid scores.

        - ``best_threshold``: the score threshold (keep score >= threshold) with the best F1 at IoU 0.5, over all classes together;
          the highest one on ties, None if no detection is right. ``threshold``: the given one, else that. ``precision``, ``recall``,
          ``f1`` there.
        - ``per_class``: [{``name``, ``id``, ``AP``, ``AP50``, ``precision``, ``recall``, ``objects``}] by label.
        - ``duplicate_rate``: share of the detections at ``threshold`` that overlap a better-scored one of their class and image with
          IoU > 0.7. Taken there and not at a fixed score, so that softmax and sigmoid scores can be compared. None without a threshold.
        - ``false_positives_per_empty_image``: wrong detections per image without any annotation, at ``threshold``.
        - ``images``, ``objects`` (without ignored ones), ``ignored``, ``empty_images``, ``detections``, ``truncated``,
          ``max_detections``: counts.

        Ignored objects (``Record.ignore``: crowds, "difficult") have COCO's ``iscrowd`` meaning, also for VOC: they need not be found;
        a detection that finds no other object and lies in one by at least the IoU threshold *of the detection's own area* is neither
        right nor wrong, and one ignored object can excuse many detections.

    Raises:
        UserError: a predicted box or score is not finite.
        ValueError: arrays that do not fit together, a label outside 0..C-1, a position outside the split.
    """
    if len(names) != len(ids):
        raise ValueError(f"{len(names)} class names, but {len(ids)} category ids")
    if max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}; it must be at least 1")
    detections = flatten_detections(records, predictions, len(names), max_detections)
    objects = np.zeros(len(names), np.int64)
    for record in records:
        np.add.at(objects, record.labels[~record.ignore], 1)
    result = _coco(records, detections, names, ids, objects, max_detections)
    shown = flatten_detections(records, predictions, len(names), max_detections, one_label=True)
    point, per_class = _operating_point(records, shown, objects, threshold)
    for row, own in zip(result["per_class"], per_class, strict=True):
        row |= own
    return (
        result
        | point
        | {
            "images": len(records),
            "objects": int(objects.sum()),
            "ignored": int(sum(record.ignore.sum() for record in records)),
            "empty_images": sum(len(record.boxes) == 0 for record in records),
            "detections": len(detections.scores),
            "truncated": detections.truncated,
            "max_detections": max_detections,
        }
    )


def _mean(values: np.ndarray) -> float | None:
    """Mean of the defined values; COCO marks the others with -1."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _coco(
    records: Sequence[Record],
    detections: DetectionTable,
    names: Sequence[str],
    ids: Sequence[int],
    objects: np.ndarray,
    max_detections: int,
) -> dict[str, Any]:
    limits = [limit for limit in (1, 10) if limit < max_detections] + [max_detections]
    if not objects.any():
        precision, recall = -np.ones((10, 101, len(names), 4, len(limits))), -np.ones((10, len(names), 4, len(limits)))
    else:
        tables = coco_eval(records, detections, len(names), limits).eval
        assert tables is not None
        # [IoU, recall, class, area, limit] and [IoU, class, area, limit]
        precision, recall = np.asarray(tables["precision"]), np.asarray(tables["recall"])
    result: dict[str, Any] = {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[0, :, :, 0, -1]),
        "AP75": _mean(precision[5, :, :, 0, -1]),
        "APs": _mean(precision[:, :, :, 1, -1]),
        "APm": _mean(precision[:, :, :, 2, -1]),
        "APl": _mean(precision[:, :, :, 3, -1]),
    }
    result |= {f"AR{limit}": _mean(recall[:, :, 0, place]) for place, limit in enumerate(limits)}
    result["per_class"] = [
        {
            "name": name,
            "id": id_,
            "AP": _mean(precision[:, :, label, 0, -1]),
            "AP50": _mean(precision[0, :, label, 0, -1]),
            "objects": int(objects[label]),
        }
        for label, (name, id_) in enumerate(zip(names, ids, strict=True))
    ]
    return result


def coco_eval(records: Sequence[Record], detections: DetectionTable, classes: int, limits: list[int]) -> COCOeval:
    """hotcoco's evaluation, run, with a truth that has objects.

    Args:
        limits: numbers of detections per class and image, rising.
    """
    truth = _truth(records, classes)
    table = np.column_stack([detections.image + 1, _xywh(detections.boxes), detections.scores, detections.labels + 1])
    run = COCOeval(truth, truth.load_res(table), "bbox")
    run.params.max_dets = limits
    run.evaluate()
    run.accumulate()
    return run


def _xywh(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _truth(records: Sequence[Record], classes: int) -> COCO:
    # A dictionary, since hotcoco before 1.2 takes nothing else (``COCO.from_arrays``), and other detectors pin 1.0.1.
    # Ids count from 1: a zero id means "not matched" inside COCO evaluation.
    columns = [
        np.repeat(np.arange(1, len(records) + 1), [len(record.boxes) for record in records]),
        np.concatenate([record.labels for record in records]) + 1,
        _xywh(np.concatenate([record.boxes.reshape(-1, 4) for record in records]).astype(np.float64)),
        np.concatenate([record.areas for record in records]).astype(np.float64),
        np.concatenate([record.ignore for record in records]).astype(np.int64),
    ]
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    objects = zip(*(column.tolist() for column in columns), strict=True)
    return COCO(
        {
            "images": [{"id": number, "width": record.width, "height": record.height} for number, record in enumerate(records, 1)],
            "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
            "annotations": [dict(zip(keys, (number, *values), strict=True)) for number, values in enumerate(objects, 1)],
        }
    )


def _operating_point(
    records: Sequence[Record], detections: DetectionTable, objects: np.ndarray, threshold: float | None
) -> tuple[dict[str, float | None], list[dict[str, float | None]]]:
    """What is measured at one score threshold, of all classes together and of each."""
    outcome, _ = coco_match(records, detections, IOU_RIGHT)
    counted = outcome != IGNORED
    best = best_threshold(detections.scores[counted], outcome[counted] == RIGHT, int(objects.sum()))
    threshold = best if threshold is None else threshold
    kept = detections.scores >= (np.inf if threshold is None else threshold)
    right, wrong = (np.bincount(detections.labels[kept & (outcome == kind)], minlength=len(objects)) for kind in (RIGHT, WRONG))
    point = {"best_threshold": best, "threshold": threshold, **rates(int(right.sum()), int(wrong.sum()), int(objects.sum()))}
    point |= dict.fromkeys(("duplicate_rate", "false_positives_per_empty_image"))
    if threshold is None and len(detections.scores):
        point["precision"] = 0.0  # at any threshold
    if kept.any():
        point["duplicate_rate"] = float(find_duplicates(detections, kept)[kept].mean())
    empty = np.array([len(record.boxes) == 0 for record in records])
    if threshold is not None and empty.any():
        point["false_positives_per_empty_image"] = float(empty[detections.image[kept & (outcome == WRONG)]].sum() / empty.sum())
    per_class = [rates(*counts) for counts in zip(right.tolist(), wrong.tolist(), objects.tolist(), strict=True)]
    return point, [{name: own[name] for name in ("precision", "recall")} for own in per_class]


def limits_note(records: Sequence[Record], max_detections: int, queries: int) -> list[str]:
    """Whether recall cannot reach 1, since an image has more objects of a class than detections count, or than the model has queries."""
    per_image = [np.bincount(record.labels[~record.ignore]) for record in records]
    objects = sum(int(each.sum()) for each in per_image)
    most, least = max((int(each.max(initial=0)) for each in per_image), default=0), min(max_detections, queries)
    if most <= least:
        return []
    bound = sum(int(np.minimum(each, least).sum()) for each in per_image) / objects
    limits, remedies = [], []
    if queries == least:
        limits.append(f"the model has {queries:,} queries")
        remedies.append(f"train with --option num_queries={-(-most * 6 // 50) * 10} or more")
    if max_detections == least:
        coco = " as COCO defines AP" if max_detections == MAX_DETECTIONS else ""
        limits.append(f"{max_detections:,} detections of a class count per image{coco}")
        remedies.append(f"--max-detections {-(-2 * most // 100) * 100} counts more")
    digits = 2 if bound < 0.995 else 4
    said = f"recall can be at most {bound:.{digits}f}: an image has up to {most:,} objects of one class, but {' and '.join(limits)}"
    return [f"{said}; {', and '.join(remedies)}"]
