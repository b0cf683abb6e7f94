"""What one fixed box per class gives: by hand, in the report of a run, and where a run is evaluated."""

import json

import numpy as np
import pytest

import boxquery as bq
from boxquery.cli import run
from boxquery.data.dataset import Record
from boxquery.evaluation.median_box import evaluate_median_boxes, median_box_note, median_boxes
from boxquery.report.run_files import read_median_boxes
from tests.training.runs import SMALL, scenes, settings


def record(width, height, boxes, labels, ignore=None) -> Record:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    ignored = np.array(ignore or [False] * len(array), bool)
    return Record("a", None, width, height, array, np.array(labels, np.int64), ignored, (array[:, 2:] - array[:, :2]).prod(1))


TRAIN = [
    record(100, 50, [[10, 10, 50, 40]], [0]),  # .1 .2 .5 .8
    record(200, 100, [[40, 0, 120, 50], [0, 0, 200, 100]], [0, 2]),  # .2 0 .6 .5; the whole image
    record(10, 10, [[3, 4, 9, 6], [0, 0, 1, 1]], [0, 0], [False, True]),  # .3 .4 .9 .6; ignored
    record(10, 10, [], []),
]


def test_median_boxes_by_hand():
    boxes, scores, labels = median_boxes(TRAIN, 4)
    assert labels.tolist() == [0, 2]
    assert boxes == pytest.approx(np.array([[0.2, 0.2, 0.6, 0.6], [0, 0, 1, 1]]))
    assert scores.tolist() == [3 / 4, 1 / 4], "of four images three hold class 0, one holds class 2"


def test_the_median_box_is_scored_as_a_detection_in_every_image():
    val = [
        record(100, 100, [[20, 20, 60, 60]], [0]),  # found exactly, at every IoU
        record(100, 100, [[20, 20, 60, 40]], [0]),  # half of the box: IoU 0.5
    ]
    found = evaluate_median_boxes(median_boxes(TRAIN, 4), val, list("abcd"), [0, 1, 2, 3])
    assert found["AP50"] == pytest.approx(1)
    # from IoU 0.55 on, of two detections with one score the first is right: precision 1 up to recall 1/2, which 51 of 101 points are
    assert found["AP"] == pytest.approx((1 + 9 * 51 / 101) / 10)
    nothing = evaluate_median_boxes(median_boxes([TRAIN[3]], 4), val, list("abcd"), [0, 1, 2, 3])
    assert nothing == {"AP": 0, "AP50": 0}
    assert evaluate_median_boxes(median_boxes(TRAIN, 4), [TRAIN[3]], list("abcd"), [0, 1, 2, 3]) == {"AP": None, "AP50": None}


@pytest.mark.parametrize(
    ("own", "fixed", "said"),
    [(0.1, 0.2, True), (0.2, 0.2, False), (0.2001, 0.2004, False), (0.3, 0.2, False), (None, 0.2, False), (0.1, None, False)],
)
def test_a_model_below_it_is_named(own, fixed, said):
    notes = median_box_note({"AP": own, "median_box": {"AP": fixed, "AP50": None}})
    assert bool(notes) == said
    assert not said or notes[0].startswith("AP 0.100 is below the 0.200 of one fixed box per class")
    assert median_box_note({"AP": own, "median_box": None}) == []


def test_training_report_and_evaluation_say_what_it_gives(tmp_path, capsys):
    bq.train(scenes(), out=tmp_path / "run", epochs=1, **settings("deformable-detr", SMALL))
    medians = read_median_boxes(tmp_path / "run")
    assert medians is not None
    data = scenes()
    own = evaluate_median_boxes(medians, data.splits["val"], data.names, data.ids)
    text = f"AP {own['AP']:.3f}  AP50 {own['AP50']:.3f}"
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert f"median box of each class in every image: {text}" in " ".join(lines)
    written = json.loads((tmp_path / "run" / "evaluation.json").read_text())["val"]
    assert written["median_box"] == own
    assert "AP of median boxes" in (tmp_path / "run" / "report.html").read_text()

    detector = bq.load(tmp_path / "run")
    again = detector.evaluate(data)
    assert again["median_box"] == own
    assert any("one fixed box per class" in note for note in again["notes"]) == (again["AP"] < own["AP"])
    detector.run = None
    assert detector.evaluate(data)["median_box"] is None


def test_the_command_prints_it_where_the_run_knows_it(tmp_path, capsys):
    scenes = "shapes:train=12,val=4,test=1,size=64"
    bq.train(scenes, out=tmp_path / "run", images_seen=8, **settings("deformable-detr", SMALL))
    capsys.readouterr()
    assert run(["evaluate", str(tmp_path / "run"), scenes]) == 0
    assert "median box of each class in every image: AP 0." in capsys.readouterr().out
    assert run(["evaluate", str(tmp_path / "run" / "model"), scenes]) == 0
    assert "median box" not in capsys.readouterr().out
