"""What a model reaches that does not look: the training images' median box of each class, predicted in every image. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boxquery.data.dataset import Record
from boxquery.evaluation.coco_matching import ImageDetections
from boxquery.evaluation.metrics import evaluate


def median_boxes(train: Sequence[Record], classes: int) -> ImageDetections:
    """The median box of each class that the training images hold, and as its score the share of the images that hold the class.

    The median is that of each side's place, as a share of the image's width or height; ignored objects do not count.

    Returns:
        boxes [K, 4] xyxy in 0..1, scores [K], labels [K], by rising label.
    """
    boxes, labels, images = [np.zeros((0, 4))], [np.zeros(0, np.int64)], np.zeros(classes, np.int64)
    for record in train:
        kept = ~record.ignore
        boxes.append(record.boxes[kept] / np.array([record.width, record.height] * 2, np.float64))
        labels.append(record.labels[kept])
        images[np.unique(record.labels[kept])] += 1
    every_box, every_label, known = np.concatenate(boxes), np.concatenate(labels), np.flatnonzero(images)
    medians = [np.median(every_box[every_label == label], axis=0) for label in known]
    return np.array(medians).reshape(-1, 4), images[known] / max(len(train), 1), known


def evaluate_median_boxes(
    medians: ImageDetections, records: Sequence[Record], names: Sequence[str], ids: Sequence[int]
) -> dict[str, float | None]:
    """``AP`` and ``AP50`` of what ``median_boxes`` gives, predicted in every image; None where there is no object to find."""
    boxes, scores, labels = medians
    found = {place: (boxes * np.array([record.width, record.height] * 2), scores, labels) for place, record in enumerate(records)}
    metrics = evaluate(records, found, names, ids)
    return {name: metrics[name] for name in ("AP", "AP50")}


def median_box_note(metrics: Mapping[str, Any]) -> list[str]:
    """Whether a model's AP is below that of the median boxes, ``metrics["median_box"]``, where these are known."""
    own, fixed = metrics["AP"], (metrics["median_box"] or {}).get("AP")
    if own is None or fixed is None or round(own, 3) >= round(fixed, 3):
        return []
    return [
        f"AP {own:.3f} is below the {fixed:.3f} of one fixed box per class, the training images' median: the model has not learned to "
        "look; train longer, and see whether boxquery check DATA --overfit succeeds"
    ]
