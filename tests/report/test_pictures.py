"""Which images are chosen, and the error types of their detections."""

import json

import numpy as np
import pytest
from PIL import Image

from boxquery.data.dataset import Record
from boxquery.evaluation.errors import OUTCOMES
from boxquery.report.pictures import pick_pictures, write_pictures

from .fake_run import NAMES, make_predictions, make_split


def record(boxes, labels, ignore=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    ignore = np.zeros(len(boxes), bool) if ignore is None else np.array(ignore)
    return Record(1, None, 640, 480, boxes, np.array(labels, np.int64), ignore, (boxes[:, 2:] - boxes[:, :2]).prod(1))


def detections(*rows):
    table = np.array(rows, float).reshape(-1, 6)
    return table[:, :4], table[:, 4], table[:, 5].astype(int)


def test_every_kind_of_mistake_by_hand():
    truth = record(
        [[0, 0, 100, 100], [200, 0, 300, 100], [400, 0, 500, 100], [0, 200, 100, 300], [200, 200, 400, 400]],
        [0, 1, 0, 1, 2],
        [False, False, False, False, True],
    )
    prediction = detections(
        (0, 0, 100, 100, 0.9, 0),  # right
        (0, 0, 100, 95, 0.8, 0),  # duplicate of it
        (200, 0, 300, 100, 0.7, 0),  # wrong class
        (400, 60, 500, 160, 0.65, 0),  # IoU 0.25: misplaced
        (250, 250, 300, 300, 0.6, 2),  # in the ignored one
        (550, 400, 600, 450, 0.55, 2),  # false
        (0, 200, 100, 300, 0.4, 1),  # below the threshold, so its object is missed
    )
    (picked,) = pick_pictures([truth], {0: prediction}, 3, typical=1, worst=1, threshold=0.5)
    by_score = dict(zip(picked.detections[1].tolist(), zip(picked.errors.outcomes, picked.errors.objects, strict=True), strict=True))
    assert by_score == {
        0.9: ("right", 0), 0.8: ("duplicate", -1), 0.7: ("wrong class", 1),
        0.65: ("misplaced", 2), 0.6: ("ignored", -1), 0.55: ("false", -1),
    }  # fmt: skip
    assert picked.errors.missed == [3]
    assert picked.f1 == pytest.approx(2 * 1 / (4 + 5))


def test_choice():
    records = [record([[0, 0, 100, 100]], [0]) for _ in range(9)]
    predictions = {i: detections((0, 0, 100, 100 - 5 * i, 0.9, 0)) for i in range(6)}  # quality falls with i
    predictions[7] = detections((300, 300, 400, 400, 0.9, 0))  # two mistakes; 6 and 8 have one
    picked = pick_pictures(records, predictions, 1, typical=3, worst=2, threshold=None)
    assert [(p.kind, p.position) for p in picked] == [("typical", 2), ("typical", 3), ("typical", 4), ("worst", 7), ("worst", 6)]


def test_images_without_a_mistake_are_not_worst():
    records = [record([[0, 0, 100, 100]], [0]), record([], [])]
    picked = pick_pictures(records, {0: detections((0, 0, 100, 100, 0.9, 0))}, 1, typical=6, worst=6, threshold=0.5)
    assert [(p.kind, p.position) for p in picked] == [("typical", 0)]


@pytest.mark.parametrize("records", [[], [record([], [])]])
def test_nothing_there(records):
    assert len(pick_pictures(records, {}, 1, typical=6, worst=6, threshold=0.3)) == len(records)


def test_files(tmp_path):
    split = make_split("val", 14, 2)
    predictions = make_predictions(split, 3)
    path = write_pictures(tmp_path, split, predictions, NAMES, threshold=0.4)
    content = json.loads(path.read_text())
    assert (content["split"], content["threshold"]) == ("val", 0.4)
    files = {file for entry in content["pictures"] for file in (entry["truth_file"], entry["prediction_file"])}
    assert files == {f"pictures/{file.name}" for file in (tmp_path / "pictures").iterdir()}
    for entry in content["pictures"]:
        with Image.open(tmp_path / entry["truth_file"]) as image:
            assert image.size == (entry["width"], entry["height"])
            assert max(image.size) == 640
        assert {item["outcome"] for item in entry["predictions"]} <= set(OUTCOMES)
        assert all(item["score"] >= 0.4 for item in entry["predictions"])
        counts = {word: sum(item["outcome"] == word for item in entry["predictions"]) for word in OUTCOMES}
        explained = counts["right"] + counts["wrong class"] + counts["misplaced"] + sum(item["missed"] for item in entry["truth"])
        assert explained == sum(not item["ignore"] for item in entry["truth"])

    write_pictures(tmp_path, split, predictions, NAMES, typical=1, worst=0, threshold=0.4)
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == ["typical-1-prediction.jpg", "typical-1-truth.jpg"]


def test_noisy_pictures_keep_to_the_budget(tmp_path):
    split = make_split("val", 14, 2)

    def noise(record):
        return Image.fromarray(np.random.default_rng(0).integers(0, 255, (record.height, record.width, 3), dtype=np.uint8))

    noisy = type(split)("val", split.records, noise)
    write_pictures(tmp_path, noisy, {}, NAMES, threshold=None)
    assert sum(file.stat().st_size for file in (tmp_path / "pictures").iterdir()) < 1_300_000
