"""nuScenes' metrics: the devkit's numbers on random detections, a slow matching, and cases that can be counted by hand."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from boxquery.data.nuscenes.classes import NAMES, PROTOCOL, likely_attributes
from boxquery.data.scenes import DetectionProtocol, SceneDetections, SceneRecord
from boxquery.evaluation.nuscenes import MOST, _match, evaluate_scenes, resampled_map

EXPECTED = json.loads((Path(__file__).parent / "nuscenes_expected.json").read_text(encoding="utf-8"))
TWO = DetectionProtocol({"van": 50, "bus": 50}, errors=("ATE", "ASE", "AOE"))


def record(boxes, labels, **own) -> SceneRecord:
    boxes = np.array(boxes, np.float64).reshape(-1, 9)
    empty = {"ignore": np.zeros(len(boxes), bool), "attributes": np.full(len(boxes), ""), "racks": np.zeros((0, 9))}
    views = {"paths": None, "cameras": (), "sizes": np.zeros((0, 2), np.int64), "lidar2img": np.zeros((0, 4, 4)), "pose": np.eye(4)}
    return SceneRecord(**({"id": "0", "boxes": boxes, "labels": np.array(labels, np.int64)} | empty | views | own))


def case(number) -> tuple[list[SceneRecord], dict[int, SceneDetections]]:
    """Scenes and detections of a case of the file."""
    records, found = [], {}
    for i, scene in enumerate(EXPECTED["cases"][number]["scenes"]):
        racks = np.array(scene["racks"], np.float64).reshape(-1, 9)
        ignore = np.array(scene["points"]) == 0
        records.append(record(scene["truth"], scene["labels"], ignore=ignore, attributes=np.array(scene["attributes"]), racks=racks))
        columns = np.array(scene["boxes"]), np.array(scene["scores"]), np.array(scene["found"]), np.array(scene["said"])
        found[i] = SceneDetections(*columns)
    return records, found


@pytest.mark.parametrize("number", range(len(EXPECTED["cases"])))
def test_the_devkit_measures_the_same(number):
    metrics, expected = evaluate_scenes(*case(number), PROTOCOL), EXPECTED["cases"][number]["expected"]
    assert tuple(EXPECTED["names"]) == NAMES == tuple(row["name"] for row in metrics["classes"])
    for name in ("mAP", "NDS", "mATE", "mASE", "mAOE", "mAVE", "mAAE"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-9), name
    for own, other in zip(metrics["classes"], expected["classes"], strict=True):
        for name, value in other.items():
            assert own[name] == (value if value is None else pytest.approx(value, abs=1e-9)), (own["name"], name)
    assert 0 < metrics["mAP"] < 1


@pytest.mark.parametrize("number", range(len(EXPECTED["cases"])))
def test_a_scene_that_is_drawn_twice_counts_as_two(number):
    """Resampled mAP is that of the scenes as often as they were drawn; with every scene once it is what ``evaluate_scenes`` gives."""
    records, found = case(number)
    chance = np.random.default_rng(number)
    # copies of a scene have scores that are equal, but no two detections of one do
    found = {i: own._replace(scores=chance.permutation(len(own.scores)) / len(own.scores) + i / 1e4) for i, own in found.items()}
    weights = chance.multinomial(len(records), np.full(len(records), 1 / len(records)), 5)
    weights[0] = 1
    for row, value in zip(weights, resampled_map(records, found, PROTOCOL, weights), strict=True):
        copies = np.repeat(np.arange(len(records)), row)
        metrics = evaluate_scenes([records[i] for i in copies], {n: found[i] for n, i in enumerate(copies)}, PROTOCOL)
        assert value == pytest.approx(metrics["mAP"], abs=1e-12)


def test_the_cases_have_what_can_go_wrong():
    """Equal scores, velocities that are not known, objects without attribute, without points, in racks and out of range."""
    scenes = [scene for case in EXPECTED["cases"] for scene in case["scenes"]]
    assert any(len(set(scene["scores"])) < len(scene["scores"]) / 2 for scene in scenes)
    assert any(box[7] is None for scene in scenes for box in scene["truth"])
    assert any(name == "" for scene in scenes for name in scene["attributes"])
    assert any(points == 0 for scene in scenes for points in scene["points"])
    whole, _ = case(0)
    fewer = [replace(one, racks=np.zeros((0, 9))) for one in whole]
    counts = [sum(row["objects"] for row in evaluate_scenes(records, {}, PROTOCOL)["classes"]) for records in (whole, fewer)]
    assert counts[0] < counts[1] < sum(len(one.boxes) for one in whole)


def test_matching_is_that_of_one_after_the_other():
    rng = np.random.default_rng(0)
    for _ in range(50):
        found, objects = rng.uniform(0, 6, (int(rng.integers(0, 40)), 2)), rng.uniform(0, 6, (int(rng.integers(0, 12)), 2))
        distance = np.linalg.norm(found[:, None] - objects[None], axis=2)
        own, expected, free = rng.permutation(len(found)), [], set(range(len(objects)))
        for i in own:
            nearest = min(free, key=lambda j: distance[i, j], default=None)
            expected.append(-1 if nearest is None or distance[i, nearest] >= 2 else nearest)
            free -= {expected[-1]}
        where = np.nonzero(distance < 4)
        assert _match((*where, distance[where]), own, len(objects), 2.0).tolist() == expected


def test_perfect_and_nothing():
    rng = np.random.default_rng(1)
    records = [record(np.column_stack((rng.uniform(-30, 30, (8, 3)), rng.uniform(1, 5, (8, 3)), np.zeros((8, 3)))), [0, 1] * 4)] * 3
    found = {i: SceneDetections(one.boxes, np.full(8, 0.9), one.labels) for i, one in enumerate(records)}
    perfect, nothing = evaluate_scenes(records, found, TWO), evaluate_scenes(records, {}, TWO)
    assert (perfect["mAP"], perfect["NDS"], perfect["mATE"], perfect["mASE"], perfect["mAOE"]) == pytest.approx((1, 1, 0, 0, 0), abs=1e-9)
    assert (nothing["mAP"], nothing["NDS"], nothing["mATE"]) == (0, 0, 1)
    assert "mAVE" not in perfect
    assert [row["objects"] for row in nothing["classes"]] == [12, 12]
    assert evaluate_scenes([], {}, TWO)["mAP"] == 0


def test_a_box_is_as_wrong_as_it_was_made():
    truth = [[10.0, 5, 0, 2, 4, 2, 0.3, np.nan, np.nan]]
    box = np.array([[10.6, 5.8, 3, 2, 8, 2, 0.5, 0, 0]])  # a metre off, which is not below one metre
    box[:, 0] += 1e-9
    metrics = evaluate_scenes([record(truth, [1])], {0: SceneDetections(box, np.array([0.5]), np.array([1]))}, TWO)
    bus = metrics["classes"][1]
    assert [bus[f"AP@{d}"] for d in ("0.5", "1", "2", "4")] == pytest.approx([0, 0, 1, 1])
    assert (bus["ATE"], bus["ASE"], bus["AOE"]) == pytest.approx((1, 0.5, 0.2))
    assert metrics["mATE"] == pytest.approx(1)
    assert metrics["AP@2"] == pytest.approx(0.5)


def test_half_a_turn_is_no_error_of_what_is_symmetric():
    box = np.array([[10.0, 5, 0, 2, 4, 2, 0.1, 0, 0]])
    turned = box.copy()
    turned[:, 6] += np.pi - 0.3
    found = {0: SceneDetections(turned, np.array([0.5]), np.array([0]))}
    errors = [evaluate_scenes([record(box, [0])], found, replace(TWO, symmetric=names))["classes"][0]["AOE"] for names in ((), ("van",))]
    assert errors == pytest.approx([np.pi - 0.3, 0.3])


def test_the_best_of_too_many_count():
    box = np.array([[10.0, 5, 0, 2, 4, 2, 0, 0, 0]])
    many = np.repeat(box, MOST + 7, 0)
    scores = np.linspace(0, 1, MOST + 7)
    many[scores < scores[7], 0] = 30
    metrics = evaluate_scenes([record(box, [0])], {0: SceneDetections(many, scores, np.zeros(len(many), int))}, TWO)
    assert metrics["truncated"] == 7
    assert metrics["classes"][0]["detections"] == MOST
    assert metrics["classes"][0]["AP"] > 0.98  # at recall 1 interpolation takes the last precision


def test_likely_attributes_are_those_of_the_class():
    boxes = np.zeros((20, 9))
    boxes[10:, 7] = 3
    said = likely_attributes(boxes, np.tile(np.arange(10), 2))
    assert said[:3].tolist() == ["vehicle.parked", "vehicle.parked", "vehicle.stopped"]
    assert said[10:].tolist() == ["vehicle.moving"] * 5 + ["pedestrian.moving", "cycle.with_rider", "cycle.with_rider", "", ""]


def test_many_scenes_are_fast():
    rng = np.random.default_rng(2)
    records, found = [], {}
    for i in range(200):
        centres = rng.uniform(-50, 50, (230, 2))
        boxes = np.column_stack((centres, np.zeros(230), np.ones((230, 3)), np.zeros((230, 3))))
        labels = rng.integers(0, 10, 230)
        records.append(record(boxes[:30], labels[:30]))
        found[i] = SceneDetections(boxes + rng.normal(0, 0.3, boxes.shape) * (1, 1, 0, 0, 0, 0, 0, 0, 0), rng.random(230), labels)
    start = time.process_time()
    evaluate_scenes(records, found, PROTOCOL)
    assert time.process_time() - start < 3  # 0.2 on an idle machine
