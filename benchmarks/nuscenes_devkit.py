"""Detections through nuscenes-devkit, for tests/evaluation/test_nuscenes.py and tests/data/test_nuscenes.py to compare with.

Random ones, and those in a miniature data set, which the devkit reads as it reads nuScenes. It needs NumPy below 2, so it runs in an
environment of its own:

    python -m venv /tmp/nusc && /tmp/nusc/bin/pip install "numpy<2" nuscenes-devkit
    python -m tests.data.nuscenes_layout /tmp/mini /tmp/results.json
    /tmp/nusc/bin/python benchmarks/nuscenes_devkit.py tests/evaluation/nuscenes_expected.json /tmp/mini /tmp/results.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval

CONFIG = config_factory("detection_cvpr_2019")
NAMES = list(CONFIG.class_names)
ERRORS = {"ATE": "trans_err", "ASE": "scale_err", "AOE": "orient_err", "AVE": "vel_err", "AAE": "attr_err"}


class Sensors:
    """Of the devkit's database what its filters ask for: the vehicle stands at the origin, and there are bicycle racks."""

    def __init__(self, scenes):
        self.tables = {"sample_data": {"lidar": {"ego_pose_token": "pose"}}, "ego_pose": {"pose": {"translation": [0, 0, 0]}}}
        self.tables["sample"], self.tables["sample_annotation"] = {}, {}
        for i, scene in enumerate(scenes):
            racks = {f"{i}/{k}": rack for k, rack in enumerate(scene["racks"])}
            self.tables["sample"][str(i)] = {"anns": list(racks), "data": {"LIDAR_TOP": "lidar"}}
            for token, rack in racks.items():
                place = {"translation": rack[:3], "size": rack[3:6], "rotation": quaternion(rack[6])}
                self.tables["sample_annotation"][token] = {"category_name": "static_object.bicycle_rack", **place}

    def get(self, table, token):
        return self.tables[table][token]


def quaternion(yaw):
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def random_scene(rng, classes, objects, ties, racks):
    """Objects of some classes, detections around most of them and elsewhere."""
    labels = rng.choice(classes, objects)
    truth = np.zeros((objects, 9))
    truth[:, :3] = rng.uniform((-45, -45, -1), (45, 45, 1), (objects, 3))
    truth[:, 3:6] = rng.uniform(0.5, (3, 9, 4), (objects, 3))
    truth[:, 6] = rng.uniform(-np.pi, np.pi, objects)
    truth[:, 7:] = rng.normal(0, 3, (objects, 2))
    truth[rng.random(objects) < 0.15, 7:] = np.nan
    copies = rng.integers(0, 4, objects)
    source = np.arange(objects).repeat(copies)
    boxes = truth[source] + rng.normal(0, 1, (len(source), 9)) * (0.8, 0.8, 0.3, 0.2, 0.5, 0.2, 0.4, 0.8, 0.8)
    boxes[:, 7:] = np.where(np.isnan(boxes[:, 7:]), 1.0, boxes[:, 7:])
    found = np.where(rng.random(len(source)) < 0.9, labels[source], rng.choice(classes, len(source)))
    others = rng.integers(5, 15)
    stray = truth[rng.integers(objects, size=others)].copy()
    stray[:, :2], stray[:, 7:] = rng.uniform(-55, 55, (others, 2)), 0
    boxes, found = np.concatenate((boxes, stray)), np.concatenate((found, rng.choice(classes, others)))
    boxes[:, 3:6] = np.maximum(boxes[:, 3:6], 0.2)
    scores = rng.random(len(boxes))
    attributes = ["", *ATTRIBUTE_NAMES]
    named = rng.integers(0, len(attributes), objects)
    said = np.concatenate((named[source], rng.integers(0, 9, others)))
    said = np.where(rng.random(len(said)) < 0.6, said, rng.integers(0, 9, len(said)))
    place = np.concatenate((rng.uniform((-20, -20, -1), (20, 20, 1), (racks, 3)), rng.uniform(8, 20, (racks, 3))), 1)
    return {
        "truth": rounded(truth),
        "labels": labels.tolist(),
        "attributes": [attributes[i] for i in named],
        "points": rng.choice([0, 1, 30], objects, p=[0.1, 0.3, 0.6]).tolist(),
        "racks": rounded(np.concatenate((place, rng.uniform(-3, 3, (racks, 1)), np.zeros((racks, 2))), 1)),
        "boxes": rounded(boxes),
        "scores": np.round(scores, 1 if ties else 4).tolist(),
        "found": found.tolist(),
        "said": [attributes[i] for i in said],
    }


def rounded(values):
    return [[None if np.isnan(value) else round(float(value), 3) for value in row] for row in values]


def eval_boxes(scenes, kind):
    """Truth or detections as the devkit's boxes."""
    made = EvalBoxes()
    boxes, labels, attributes = ("truth", "labels", "attributes") if kind == "truth" else ("boxes", "found", "said")
    for i, scene in enumerate(scenes):
        rows = []
        for k, (box, label, attribute) in enumerate(zip(scene[boxes], scene[labels], scene[attributes], strict=True)):
            box = [float("nan") if value is None else value for value in box]
            own = {"num_pts": scene["points"][k]} if kind == "truth" else {"detection_score": scene["scores"][k]}
            size, turn = tuple(box[3:6]), tuple(quaternion(box[6]))
            rows.append(
                DetectionBox(
                    sample_token=str(i), translation=tuple(box[:3]), size=size, rotation=turn, velocity=tuple(box[7:]),
                    detection_name=NAMES[label], attribute_name=attribute, **own,
                )
            )  # fmt: skip
        made.add_boxes(str(i), rows)
    return made


def evaluate(scenes):
    """What the devkit measures of them, in our words."""
    run, database = DetectionEval.__new__(DetectionEval), Sensors(scenes)
    run.cfg, run.verbose = CONFIG, False
    run.gt_boxes, run.pred_boxes = (
        filter_eval_boxes(database, add_center_dist(database, eval_boxes(scenes, kind)), CONFIG.class_range) for kind in ("truth", "found")
    )
    return in_our_words(run)


def evaluate_layout(folder, results):
    """What the devkit measures of a result file in the val split of a data set."""
    with tempfile.TemporaryDirectory() as out:
        database = NuScenes("v1.0-mini", folder, verbose=False)
        return in_our_words(DetectionEval(database, CONFIG, results, "mini_val", out, verbose=False))


def in_our_words(run):
    metrics = run.evaluate()[0].serialize()
    errors = {f"m{ours}": metrics["tp_errors"][theirs] for ours, theirs in ERRORS.items()}
    classes = []
    for name in NAMES:
        row = {f"AP@{distance:g}": ap for distance, ap in metrics["label_aps"][name].items()}
        for ours, theirs in ERRORS.items():
            value = metrics["label_tp_errors"][name][theirs]
            row[ours] = None if np.isnan(value) else float(value)
        classes.append({"name": name, **row})
    return {"mAP": metrics["mean_ap"], "NDS": float(metrics["nd_score"]), **errors, "classes": classes}


def main(path, folder, results):
    rng = np.random.default_rng(20)
    plans = [
        {"scenes": 6, "classes": range(10), "objects": 24, "ties": False, "racks": 2},
        {"scenes": 4, "classes": [0, 5, 7, 9], "objects": 20, "ties": True, "racks": 1},
        {"scenes": 1, "classes": [2, 6], "objects": 9, "ties": False, "racks": 0},
    ]
    cases = []
    for plan in plans:
        one = plan["classes"], plan["objects"], plan["ties"], plan["racks"]
        scenes = [random_scene(rng, *one) for _ in range(plan["scenes"])]
        cases.append({"scenes": scenes, "expected": evaluate(scenes)})
    layout = evaluate_layout(folder, results)
    Path(path).write_text(json.dumps({"names": NAMES, "cases": cases, "layout": layout}) + "\n")
    print(f"{path}: mAP {', '.join(format(case['expected']['mAP'], '.3f') for case in cases)}; layout {layout['mAP']:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
