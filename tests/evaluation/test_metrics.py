"""AP against pycocotools, and the other metrics against small examples by hand."""

import contextlib
import io
import json
import subprocess
import sys
import time

import hotcoco
import numpy as np
import pytest

from boxquery.data.dataset import Record
from boxquery.errors import UserError
from boxquery.evaluation import metrics
from boxquery.evaluation.coco_matching import IGNORED, RIGHT, coco_match, flatten_detections, iou
from boxquery.evaluation.metrics import evaluate, limits_note


def record(boxes=(), labels=None, ignore=None, areas=None, id=1, size=(640, 480)):
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    return Record(
        id=id,
        path=None,
        width=size[0],
        height=size[1],
        boxes=boxes,
        labels=np.zeros(count, np.int64) if labels is None else np.asarray(labels, np.int64),
        ignore=np.zeros(count, bool) if ignore is None else np.asarray(ignore, bool),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(1) if areas is None else np.asarray(areas, np.float32),
    )


def prediction(*rows):
    """Rows of (x1, y1, x2, y2, score[, label])."""
    table = np.array([row if len(row) == 6 else (*row, 0) for row in rows], np.float64).reshape(-1, 6)
    return table[:, :4], table[:, 4], table[:, 5].astype(np.int64)


def random_boxes(rng, count):
    corner = rng.uniform(0, 400, (count, 2))
    return np.concatenate([corner, corner + rng.lognormal(3.7, 0.9, (count, 2))], axis=1).astype(np.float32)


def random_case(rng, images, classes, per_image=6, extra=20, crowds=True):
    """Records and predictions with empty images, crowds, stated areas, tied scores, unclipped boxes and images without detections."""
    records, predictions = [], {}
    for position in range(images):
        count = 0 if rng.random() < 0.15 else int(rng.integers(1, per_image + 1))
        boxes = random_boxes(rng, count)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) * rng.uniform(0.4, 1, count).astype(np.float32)
        ignore = rng.random(count) < (0.2 if crowds else 0)
        records.append(record(boxes, rng.integers(0, classes, count), ignore, areas, id=f"image {position}"))
        if rng.random() < 0.1:
            continue
        near = np.repeat(boxes, 3, axis=0) + rng.normal(0, 6, (3 * count, 4)).astype(np.float32)
        found = np.concatenate([near, random_boxes(rng, int(rng.integers(0, extra + 1)))])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        labels = np.concatenate([np.repeat(records[-1].labels, 3), rng.integers(0, classes, len(found) - 3 * count)])
        flip = rng.random(len(labels)) < 0.2
        labels = np.where(flip, rng.integers(0, classes, len(labels)), labels)
        predictions[position] = found, np.round(rng.random(len(found)), 2).astype(np.float32), labels
    return records, predictions


def pycocotools_run(records, predictions, classes, limits=(1, 10, 100)):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    annotations = []
    for number, item in enumerate(records, 1):
        for box, label, ignore, area in zip(item.boxes.astype(float), item.labels, item.ignore, item.areas, strict=True):
            x, y, right, bottom = box.tolist()
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": int(label) + 1, "area": float(area),
                                "bbox": [x, y, right - x, bottom - y], "iscrowd": int(ignore)})  # fmt: skip
    results = []
    for position, (boxes, scores, labels) in predictions.items():
        for box, score, label in zip(np.asarray(boxes, float), scores, labels, strict=True):
            x, y, right, bottom = box.tolist()
            results.append({"image_id": position + 1, "category_id": int(label) + 1, "bbox": [x, y, right - x, bottom - y],
                            "score": float(score)})  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {
            "images": [{"id": n, "width": r.width, "height": r.height} for n, r in enumerate(records, 1)],
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
        }
        truth.createIndex()
        run = cocoeval.COCOeval(truth, truth.loadRes(results), "bbox")
        run.params.maxDets = list(limits)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run


@pytest.mark.parametrize(("seed", "images", "classes", "extra"), [(0, 40, 5, 20), (1, 25, 1, 10), (2, 60, 12, 30), (3, 8, 2, 260)])
def test_equal_to_pycocotools(seed, images, classes, extra):
    records, predictions = random_case(np.random.default_rng(seed), images, classes, extra=extra)
    reference = pycocotools_run(records, predictions, classes)
    ours = evaluate(records, predictions, [f"class {i}" for i in range(classes)], list(range(classes)))
    for key, expected in zip(("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"), reference.stats[:9], strict=True):
        assert (-1 if ours[key] is None else ours[key]) == pytest.approx(expected, abs=1e-12), key
    table = reference.eval["precision"]
    for label, row in enumerate(ours["per_class"]):
        for key, values in (("AP", table[:, :, label, 0, 2]), ("AP50", table[0, :, label, 0, 2])):
            expected = values[values > -1].mean() if values.max() > -1 else -1
            assert (-1 if row[key] is None else row[key]) == pytest.approx(expected, abs=1e-12)


def test_hotcoco_1_0_1_is_enough(monkeypatch):
    """That version, which other detectors pin, makes ground truth from a dictionary of plain numbers alone; its numbers are the same."""
    records, predictions = random_case(np.random.default_rng(4), 20, 3)
    arguments = records, predictions, ["a", "b", "c"], [1, 2, 3]
    expected = evaluate(*arguments)

    def as_in_1_0_1(dataset):
        return hotcoco.COCO(json.loads(json.dumps(dataset)))

    monkeypatch.setattr(metrics, "COCO", as_in_1_0_1)  # a function: it has no ``from_arrays``
    assert evaluate(*arguments) == expected


@pytest.mark.parametrize("seed", range(4))
def test_matching_is_that_of_pycocotools(seed):
    records, predictions = random_case(np.random.default_rng(seed + 10), 40, 4)
    reference = pycocotools_run(records, predictions, 4)
    expected = {"right": 0, "ignored": 0, "all": 0}
    for entry in reference.evalImgs:
        if entry is not None and entry["aRng"] == reference.params.areaRng[0]:
            expected["all"] += len(entry["dtIds"])
            expected["ignored"] += int(entry["dtIgnore"][0].sum())
            expected["right"] += int(((entry["dtMatches"][0] > 0) & ~entry["dtIgnore"][0].astype(bool)).sum())
    detections = flatten_detections(records, predictions, 4, 100)
    outcome, found = coco_match(records, detections, 0.5)
    assert {"right": int((outcome == RIGHT).sum()), "ignored": int((outcome == IGNORED).sum()), "all": len(outcome)} == expected
    assert ((found >= 0) == (outcome == RIGHT)).all()
    pairs = set(zip(detections.image[found >= 0].tolist(), found[found >= 0].tolist(), strict=True))
    assert len(pairs) == (outcome == RIGHT).sum()


def test_other_limits_than_100():
    records, predictions = random_case(np.random.default_rng(5), 6, 1, extra=300)
    reference = pycocotools_run(records, predictions, 1, (1, 10, 200))
    ours = evaluate(records, predictions, ["a"], [7], max_detections=200)
    values = reference.eval["precision"][:, :, :, 0, 2]
    assert ours["AP"] == pytest.approx(values[values > -1].mean(), abs=1e-12)
    assert "AR200" in ours
    assert "AR100" not in ours
    few = evaluate(records, predictions, ["a"], [7], max_detections=10)
    assert few["truncated"] == sum(max(0, len(p[1]) - 10) for p in predictions.values())
    assert few["detections"] + few["truncated"] == sum(len(p[1]) for p in predictions.values())
    assert set(few) >= {"AR1", "AR10"}
    assert few["per_class"][0]["id"] == 7


def test_threshold_duplicates_and_false_positives_by_hand():
    records = [record([[0, 0, 100, 100], [200, 200, 300, 300]], [0, 1]), record(), record()]
    predictions = {
        0: prediction(
            (0, 0, 100, 100, 0.9, 0),  # right
            (0, 0, 100, 90, 0.6, 0),  # the same again, IoU 0.9: wrong and a duplicate
            (0, 0, 100, 90, 0.8, 1),  # another class: wrong, no duplicate
            (200, 200, 300, 300, 0.5, 1),  # right
            (400, 400, 450, 450, 0.4, 1),  # below the best threshold
        ),
        1: prediction((0, 0, 50, 50, 0.7, 0), (0, 0, 50, 50, 0.55, 0), (0, 0, 50, 50, 0.3, 0)),
    }
    result = evaluate(records, predictions, ["a", "b"], [1, 2])
    # By falling score: right at 0.9 -> F1 2/3; with six shown at 0.5: 4/(6+2) = 1/2. So the best is the first alone.
    assert (result["best_threshold"], result["precision"], result["recall"]) == (0.9, 1.0, 0.5)
    assert result["f1"] == pytest.approx(2 / 3)
    assert result["duplicate_rate"] == 0
    assert result["false_positives_per_empty_image"] == 0
    assert (result["images"], result["objects"], result["detections"], result["empty_images"]) == (3, 2, 8, 2)

    more = [record([[0, 0, 100, 100], [200, 200, 300, 300]] + [[i * 20, 400, i * 20 + 15, 415] for i in range(8)]), *records[1:]]
    predictions[0] = prediction(
        (0, 0, 100, 100, 0.9), (0, 0, 100, 90, 0.6), *[(i * 20, 400, i * 20 + 15, 415, 0.52) for i in range(8)], (200, 200, 300, 300, 0.5)
    )
    result = evaluate(more, predictions, ["a", "b"], [1, 2])
    # Down to 0.5: 13 shown, 10 right of 10 objects, 3 wrong, of which 0.7 and 0.55 on one of two empty images, itself a duplicate pair.
    assert result["best_threshold"] == 0.5
    assert result["precision"] == pytest.approx(10 / 13)
    assert result["f1"] == pytest.approx(20 / 23)
    assert result["duplicate_rate"] == pytest.approx(2 / 13)
    assert result["false_positives_per_empty_image"] == 1.0


def test_one_threshold_counts_the_best_class_of_a_query_and_ap_all_of_them():
    one, other = (10, 10, 50, 50), (100, 100, 180, 160)
    records = [record([one, other], [0, 1])]
    found = {0: prediction((*one, 0.9, 0), (*one, 0.8, 1), (*other, 0.7, 0), (*other, 0.6, 1), (12, 10, 50, 50, 0.5, 0))}
    result = evaluate(records, found, ["a", "b"], [1, 2], threshold=0.5)
    assert (result["precision"], result["recall"], result["duplicate_rate"]) == (1 / 3, 0.5, 1 / 3)
    assert [row["recall"] for row in result["per_class"]] == [1.0, 0.0]
    assert result["per_class"][1]["AP50"] > 0.49  # the box of .6, after that of .8
    assert flatten_detections(records, {0: prediction((*one, 0.9), (*one, 0.8))}, 1, 100, one_label=True).scores.tolist() == [0.9, 0.8]
    assert evaluate(records, {}, ["a", "b"], [1, 2])["best_threshold"] is None


def test_equal_scores_are_kept_or_dropped_together():
    records = [record([[0, 0, 10, 10]])]
    result = evaluate(records, {0: prediction((0, 0, 10, 10, 0.5), (50, 50, 60, 60, 0.5), (70, 70, 80, 80, 0.5))}, ["a"], [1])
    assert (result["best_threshold"], result["f1"], result["precision"]) == (0.5, 0.5, pytest.approx(1 / 3))


def test_ignored_objects_are_neither_right_nor_wrong():
    records = [record([[0, 0, 100, 100], [200, 200, 210, 210]], ignore=[True, False])]
    inside = [(i * 10, 0, i * 10 + 10, 10, 0.9) for i in range(5)]
    result = evaluate(records, {0: prediction(*inside, (200, 200, 210, 210, 0.3))}, ["a"], [1])
    assert result["AP"] == pytest.approx(1)
    assert (result["precision"], result["recall"], result["objects"], result["ignored"]) == (1.0, 1.0, 1, 1)
    assert result["per_class"][0]["objects"] == 1


@pytest.mark.parametrize(
    ("records", "predictions", "names"),
    [
        ([], {}, ["a"]),
        ([record()], {}, ["a"]),
        ([record([[0, 0, 9, 9]])], {}, ["a"]),
        ([record([[0, 0, 9, 9]])], {0: prediction()}, ["a", "b"]),
        ([record()], {0: prediction((0, 0, 9, 9, 0.5))}, ["a"]),
        ([record([[0, 0, 9, 9]], ignore=[True])], {0: prediction((0, 0, 9, 9, 0.5))}, ["a"]),
        ([record([[0, 0, 9, 9]])], {0: prediction((20, 20, 30, 30, 0.5))}, ["a"]),
    ],
)
def test_nothing_there(records, predictions, names, capfd):
    result = evaluate(records, predictions, names, list(range(len(names))))
    json.dumps(result, allow_nan=False)
    objects = result["objects"]
    assert result["AP"] == (0.0 if objects else None)
    assert result["recall"] == (0.0 if objects else None)
    assert result["best_threshold"] is None
    assert result["duplicate_rate"] is None
    assert result["false_positives_per_empty_image"] is None
    assert len(result["per_class"]) == len(names)
    assert capfd.readouterr() == ("", "")


def test_bad_input_is_refused():
    box = np.array([[0, 0, 1, 1.0]])
    with pytest.raises(UserError, match=r"image frog.*NaN or inf"):
        evaluate([record(id="frog")], {0: (box, np.array([np.nan]), np.array([0]))}, ["a"], [1])
    with pytest.raises(ValueError, match=r"label 3 is outside 0\.\.0"):
        evaluate([record()], {0: (box, np.array([0.5]), np.array([3]))}, ["a"], [1])
    with pytest.raises(ValueError, match="position 4"):
        evaluate([record()], {4: (box, np.array([0.5]), np.array([0]))}, ["a"], [1])
    with pytest.raises(ValueError, match="1 boxes, 2 scores"):
        evaluate([record()], {0: (box, np.array([0.5, 0.4]), np.array([0]))}, ["a"], [1])
    with pytest.raises(ValueError, match="max_detections"):
        evaluate([record()], {}, ["a"], [1], max_detections=0)


def test_iou_of_empty_boxes_is_zero():
    assert iou(np.zeros((1, 4)), np.zeros((1, 4)))[0, 0] == 0


def test_fast_and_plain_floats():
    rng = np.random.default_rng(0)
    records, predictions = [], {}
    for position in range(500):
        records.append(record(random_boxes(rng, 7), rng.integers(0, 80, 7)))
        predictions[position] = random_boxes(rng, 100), rng.random(100), rng.integers(0, 80, 100)
    begin = time.perf_counter()
    result = evaluate(records, predictions, [str(i) for i in range(80)], list(range(80)))
    assert time.perf_counter() - begin < 5
    assert json.loads(json.dumps(result)) == result


def test_torch_is_not_imported():
    code = "import sys; import boxquery.evaluation.metrics, boxquery.report.page, boxquery.pages.drawing; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_rates_of_each_class_and_at_a_given_threshold():
    records = [record([[0, 0, 100, 100], [200, 200, 300, 300]], [0, 1]), record()]
    predictions = {
        0: prediction((0, 0, 100, 100, 0.9, 0), (200, 200, 300, 300, 0.5, 1), (0, 0, 100, 90, 0.4, 0), (400, 400, 450, 450, 0.35, 1)),
        1: prediction((0, 0, 50, 50, 0.3, 1)),
    }
    best = evaluate(records, predictions, ["a", "b", "c"], [1, 2, 3])
    assert (best["threshold"], best["best_threshold"]) == (0.5, 0.5)
    assert [(row["precision"], row["recall"]) for row in best["per_class"]] == [(1.0, 1.0), (1.0, 1.0), (None, None)]
    low = evaluate(records, predictions, ["a", "b", "c"], [1, 2, 3], threshold=0.3)
    assert (low["threshold"], low["best_threshold"], low["precision"], low["recall"]) == (0.3, 0.5, 2 / 5, 1.0)
    assert [(row["precision"], row["recall"]) for row in low["per_class"]] == [(1 / 2, 1.0), (1 / 3, 1.0), (None, None)]
    assert (low["duplicate_rate"], low["false_positives_per_empty_image"]) == (1 / 5, 1.0)
    high = evaluate(records, predictions, ["a", "b", "c"], [1, 2, 3], threshold=0.95)
    assert (high["precision"], high["recall"], high["f1"], high["duplicate_rate"]) == (None, 0.0, 0.0, None)
    assert high["AP"] == best["AP"]
    json.dumps(high, allow_nan=False)


def test_what_recall_cannot_exceed():
    crowded = [record(random_boxes(np.random.default_rng(0), 150)), record([[0, 0, 9, 9]] * 3, [0, 1, 1])]
    assert limits_note(crowded, 100, 300) == [
        "recall can be at most 0.67: an image has up to 150 objects of one class, but 100 detections of a class count per image as COCO "
        "defines AP; --max-detections 300 counts more"
    ]
    assert limits_note(crowded, 300, 40) == [
        "recall can be at most 0.28: an image has up to 150 objects of one class, but the model has 40 queries; "
        "train with --option num_queries=180 or more"
    ]
    assert limits_note(crowded, 100, 100)[0].endswith(
        "but the model has 100 queries and 100 detections of a class count per image as COCO defines AP; "
        "train with --option num_queries=180 or more, and --max-detections 300 counts more"
    )
    assert limits_note(crowded, 150, 150) == limits_note(crowded[1:], 100, 9) == limits_note([record()], 100, 9) == []
