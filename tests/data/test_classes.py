"""Classes of data and models are matched by name."""

from dataclasses import replace

import numpy as np
import pytest

from boxquery import UserError
from boxquery.data.classes import map_labels, match_names
from boxquery.data.shapes import shapes_data


def test_an_exact_name_wins_and_case_and_spaces_do_not_matter():
    assert match_names(["Car", "CAR", "hot-dog", "hotdog", None], ["car", None, "Car", "hot dog"]) == [2, 0, 3, -1, -1]
    assert match_names(["traffic-light", " TRAFFIC   light"], ["bus", "Traffic_Light"]) == [1, 1]


def test_labels_become_those_of_the_detector():
    data = shapes_data(train=5, val=5, test=1, size=64)
    assert map_labels(data, "val", data.names) is data.splits["val"]
    assert map_labels(data, "val", [*data.names, "moon"]) is data.splits["val"]
    turned = map_labels(data, "val", [None, *reversed(data.names)])
    for record, before in zip(turned, data.splits["val"], strict=True):
        assert np.array_equal(record.labels, 5 - before.labels)


def test_names_in_another_case_are_the_detectors():
    data = shapes_data(train=5, val=5, test=1, size=64)
    known = [name.upper() for name in reversed(data.names)]
    turned = map_labels(data, "val", known)
    for record, before in zip(turned, data.splits["val"], strict=True):
        assert [known[i].lower() for i in record.labels] == [data.names[i] for i in before.labels]


def test_only_classes_with_objects_must_be_known():
    data = shapes_data(train=5, val=20, test=1, size=64)
    with pytest.raises(UserError, match="does not know circle; it knows square, triangle, star, cross"):
        map_labels(data, "val", data.names[1:])
    records = [replace(r, **{k: getattr(r, k)[r.labels > 0] for k in ("boxes", "labels", "ignore", "areas")}) for r in data.splits["val"]]
    data = replace(data, splits={"val": replace(data.splits["val"], records=records)})
    assert min(r.labels.min(initial=9) for r in map_labels(data, "val", data.names[1:])) == 0


def test_a_split_that_is_not_there():
    data = shapes_data(train=1, val=1, test=1, size=64)
    with pytest.raises(UserError, match="no split 'dev'; it has train, val, test"):
        data.split("dev")
    with pytest.raises(UserError, match="no images in split 'val'"):
        replace(data, splits={"val": replace(data.splits["val"], records=[])}).split("val")
