"""Every error type by a small example."""

import numpy as np

from boxquery.evaluation.coco_matching import coco_match, flatten_detections
from boxquery.evaluation.errors import IOU_RIGHT, classify_errors, find_duplicates

from .test_metrics import prediction, record


def test_every_error_type_by_hand():
    truth = record(
        [[0, 0, 100, 100], [200, 0, 300, 100], [400, 0, 500, 100], [0, 200, 100, 300], [200, 200, 400, 400]],
        labels=[0, 1, 0, 1, 2],
        ignore=[False, False, False, False, True],
    )
    expected = {
        (0, 0, 100, 100, 0.9, 0): ("right", 0),
        (0, 0, 100, 95, 0.8, 0): ("duplicate", -1),
        (200, 0, 300, 100, 0.7, 0): ("wrong class", 1),
        (400, 60, 500, 160, 0.65, 0): ("misplaced", 2),  # IoU 0.25
        (250, 250, 300, 300, 0.6, 2): ("ignored", -1),
        (550, 400, 600, 450, 0.55, 2): ("false", -1),
    }
    table = flatten_detections([truth], {0: prediction(*expected)}, 3, 100)
    found = classify_errors(truth, (table.boxes, table.scores, table.labels), *coco_match([truth], table, IOU_RIGHT))
    rows = np.column_stack([table.boxes, table.scores, table.labels]).tolist()
    assert dict(zip(map(tuple, rows), zip(found.outcomes, found.objects, strict=True), strict=True)) == expected
    assert found.missed == [3]


def test_duplicates_are_per_image_and_class_and_strictly_above():
    boxes = (0, 0, 10, 10)
    predictions = {0: prediction((*boxes, 0.9), (*boxes, 0.8), (*boxes, 0.8, 1), (0, 0, 10, 7, 0.7)), 1: prediction((*boxes, 0.6))}
    detections = flatten_detections([record(), record()], predictions, 2, 100)
    assert find_duplicates(detections, np.ones(5, bool)).tolist() == [False, True, False, False, False]  # IoU exactly 0.7 is not above it
