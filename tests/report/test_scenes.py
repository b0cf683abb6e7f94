"""Pictures of scenes: what became of each detection, and which scenes are shown."""

import json

import numpy as np
import pytest
from PIL import Image

from boxquery.data.scenes.open import open_scenes
from boxquery.data.scenes.records import SceneDetections
from boxquery.evaluation.nuscenes import evaluate_scenes
from boxquery.report.scenes import judge, write_scene_pictures

DATA = open_scenes("surround:train=4,val=6,test=2,width=64")
VAL = DATA.split("val")


def truth(i: int, moved: float = 0.0) -> SceneDetections:
    """The objects of a scene within reach, each moved along x, with falling scores."""
    record = VAL[i]
    near = np.hypot(record.boxes[:, 0], record.boxes[:, 1]) < 45
    boxes = np.nan_to_num(record.boxes[near])
    boxes[:, 0] += moved
    return SceneDetections(boxes, np.linspace(0.9, 0.6, len(boxes)), record.labels[near])


def test_a_detection_is_right_within_two_metres_and_only_once():
    right = judge(VAL[0], truth(0, 1.5), DATA.protocol)
    assert set(right.outcomes) == {"right"}
    assert set(judge(VAL[0], truth(0, 2.5), DATA.protocol).outcomes) == {"false"}
    boxes, scores, labels, _ = truth(0)
    twice = SceneDetections(np.repeat(boxes[:1], 2, 0), scores[:2], np.repeat(labels[:1], 2))
    assert judge(VAL[0], twice, DATA.protocol).outcomes == ["right", "duplicate"]
    other = SceneDetections(boxes[:1], scores[:1], (labels[:1] + 1) % 4)
    found = judge(VAL[0], other, DATA.protocol)
    assert found.outcomes == ["wrong class"]
    within = np.hypot(VAL[0].boxes[:, 0], VAL[0].boxes[:, 1]) < 50
    assert found.missed.tolist() == within.tolist()  # what is farther away does not count


def test_the_worst_scenes_are_those_with_the_lowest_f1(tmp_path):
    found = {i: truth(i, 0.0 if i else 5.0) for i in range(len(VAL))}
    shown = json.loads(write_scene_pictures(tmp_path, VAL, found, DATA, threshold=0.5).read_text())
    worst = [entry for entry in shown["pictures"] if entry["kind"] == "worst"]
    assert worst[0]["image"] == "val/0"
    assert worst[0]["f1"] == 0
    for entry in shown["pictures"]:
        for side in ("truth", "prediction"):
            with Image.open(tmp_path / entry[f"{side}_file"]) as image:
                assert image.size == (entry["width"], entry["height"])


def test_the_best_threshold_is_that_of_the_best_f1_within_two_metres():
    found = {i: truth(i, 1.0) for i in range(len(VAL))}
    wrong = np.tile([0.0, 0, 0, 1, 1, 1, 0, 0, 0], (20, 1))  # where the vehicle is
    spoiled = {i: SceneDetections(np.concatenate((own.boxes, wrong)), np.append(own.scores, [0.3] * 20), np.append(own.labels, [0] * 20))
               for i, own in found.items()}  # fmt: skip
    metrics = evaluate_scenes(VAL, spoiled, DATA.protocol)
    assert metrics["best_threshold"] == pytest.approx(0.6)
    assert metrics["precision"] == 1
    assert metrics["recall"] == pytest.approx(sum(len(own.scores) for own in found.values()) / metrics["objects"])
    nothing = evaluate_scenes(VAL, {}, DATA.protocol)
    assert (nothing["best_threshold"], nothing["precision"], nothing["recall"]) == (None, None, 0.0)
