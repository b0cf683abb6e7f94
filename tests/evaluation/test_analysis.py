"""Confusion, curves and error types of predictions, by hand and in agreement with the metrics."""

import json

import numpy as np

from boxquery.evaluation.analysis import analyse
from boxquery.evaluation.metrics import evaluate

from .test_metrics import prediction, random_case, record

NAMES = ["a", "b", "never"]


def test_confusion_by_hand():
    records = [record([[0, 0, 100, 100], [200, 200, 300, 300], [400, 0, 450, 50]], [0, 1, 0], ignore=[False, False, True]), record()]
    predictions = {
        0: prediction(
            (0, 0, 100, 100, 0.9, 0),  # right
            (0, 0, 100, 90, 0.8, 0),  # a duplicate: background
            (200, 200, 300, 290, 0.7, 0),  # b taken for a
            (400, 0, 450, 50, 0.6, 0),  # ignored
            (200, 200, 300, 300, 0.1, 1),  # below the threshold
        ),
        1: prediction((0, 0, 50, 50, 0.65, 1)),
    }
    metrics = evaluate(records, predictions, NAMES, [1, 2, 3], threshold=0.5)
    found = analyse(records, predictions, NAMES, metrics)
    assert found["threshold"] == 0.5
    assert found["confusion"] == {"names": ["a", "b"], "matrix": [[1, 0, 0], [1, 0, 0], [1, 1, 0]]}
    assert [curve["name"] for curve in found["curves"]] == ["a", "b"]
    assert {row["type"] for row in found["tide"]} >= {"wrong class", "misplaced", "duplicate", "background", "missed"}
    json.dumps(found, allow_nan=False)


def test_the_diagonal_gives_precision_and_recall():
    records, predictions = random_case(np.random.default_rng(3), 20, 3, extra=20)
    metrics = evaluate(records, predictions, list("abc"), [1, 2, 3], threshold=0.4)
    found = analyse(records, predictions, list("abc"), metrics)
    matrix = np.array(found["confusion"]["matrix"])
    right = matrix.diagonal()[:3]
    assert found["confusion"]["names"] == list("abc")
    np.testing.assert_allclose(right / matrix[:3].sum(1), [row["recall"] for row in metrics["per_class"]])
    np.testing.assert_allclose(right / matrix[:, :3].sum(0), [row["precision"] for row in metrics["per_class"]])
    np.testing.assert_allclose(matrix[:3].sum(1), [row["objects"] for row in metrics["per_class"]])
    np.testing.assert_allclose([curve["AP50"] for curve in found["curves"]], [row["AP50"] for row in metrics["per_class"]], atol=1e-9)


def test_nothing_there():
    for records, predictions in (([], {}), ([record()], {0: prediction((0, 0, 9, 9, 0.5))}), ([record([[0, 0, 9, 9]])], {})):
        metrics = evaluate(records, predictions, ["a"], [1])
        json.dumps(analyse(records, predictions, ["a"], metrics), allow_nan=False)
