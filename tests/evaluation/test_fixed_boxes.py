"""Boxes that ignore images: worth nothing on the built-in scenes, where places are uniform, and much where places repeat."""

from dataclasses import replace

import numpy as np
import pytest

from boxquery.data.surround import surround_data
from boxquery.evaluation.fixed_boxes import evaluate_fixed_boxes, fixed_boxes


def test_they_reach_nothing_on_the_built_in_scenes():
    data = surround_data(train=150, val=40)
    found = fixed_boxes(data.split("train"), data.protocol)
    assert 200 < len(found.scores) <= 500
    assert set(found.labels.tolist()) == {0, 1, 2, 3}
    assert evaluate_fixed_boxes(found, data.split("val"), data.protocol)["mAP"] < 0.05


def test_they_find_what_is_always_at_one_place():
    data, rng = surround_data(train=60, val=30), np.random.default_rng(0)
    places = np.array([[12.0, 3, 0.2], [-20, -8, 1.5], [4, 30, -2], [-15, 22, 3]])

    def records(split):
        for record in data.split(split):
            boxes = np.tile(record.boxes[0], (4, 1))
            boxes[:, [0, 1, 6]] = places + rng.normal(0, 0.3, (4, 3))
            none = {"ignore": np.zeros(4, bool), "attributes": np.full(4, "")}
            yield replace(record, boxes=boxes, labels=np.arange(4), **none)

    found = fixed_boxes(list(records("train")), data.protocol)
    for label in range(4):
        best = np.flatnonzero(found.labels == label)[found.scores[found.labels == label].argmax()]
        assert np.hypot(*(found.boxes[best, :2] - places[label, :2])) < 1.5
        assert found.boxes[best, 6] == pytest.approx(places[label, 2], abs=0.2)
    assert evaluate_fixed_boxes(found, list(records("val")), data.protocol)["mAP"] > 0.5


def test_without_scenes_or_objects_there_are_none():
    data = surround_data(train=1)
    record = data.split("train")[0]
    empty = replace(record, ignore=np.ones(len(record.boxes), bool))
    for train in ([], [empty]):
        found = fixed_boxes(train, data.protocol)
        assert found.boxes.shape == (0, 9)
        assert evaluate_fixed_boxes(found, [record], data.protocol)["mAP"] == 0
