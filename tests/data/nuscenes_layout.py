"""A miniature nuScenes: the scenes of ``surround`` in the layout of v1.0-mini, with all 13 tables and tiny images.

``python -m tests.data.nuscenes_layout FOLDER RESULTS.json`` writes it, and detections in its val split, for benchmarks/nuscenes_devkit.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from boxquery.boxes3d import inverse_rigid, matrix_quaternion, quaternion_matrix, rigid, transform, yaw_matrix, yaw_quaternion
from boxquery.data.nuscenes.reader import CAMERAS, LIDAR
from boxquery.data.nuscenes.results import to_results
from boxquery.data.scenes import SceneDetections, SceneRecord
from boxquery.data.scenes.open import open_scenes
from boxquery.data.surround import surround_data

SCENES = {"scene-0061": 3, "scene-0103": 3}
"""Names of the scenes, one of each split, and how many samples each has."""
WIDTH = 64
GAPS = (0.5, 2.0)
"""Seconds between samples: of the first two, and after."""
CATEGORIES = (
    "vehicle.car", "vehicle.truck", "vehicle.bus.rigid", "vehicle.trailer", "vehicle.bicycle", "static_object.bicycle_rack",
    "human.pedestrian.wheelchair",
)  # fmt: skip
ATTRIBUTES = ("vehicle.moving", "vehicle.parked", "cycle.without_rider")
_START = 1_532_402_927_000_000


def write(root: Path) -> dict[str, SceneRecord]:
    """Write the data set; the scenes that it was made from, by the tokens of samples."""
    tables: dict[str, list[dict]] = {name: [] for name in ("ego_pose", "calibrated_sensor", "sample", "sample_data", "sample_annotation")}
    tables |= {"scene": [], "instance": []}
    tables["sensor"] = [{"token": name, "channel": name, "modality": "camera"} for name in CAMERAS]
    tables["sensor"].append({"token": LIDAR, "channel": LIDAR, "modality": "lidar"})
    tables["category"] = [{"token": f"c{i}", "name": name, "description": ""} for i, name in enumerate(CATEGORIES)]
    tables["attribute"] = [{"token": f"a{i}", "name": name, "description": ""} for i, name in enumerate(ATTRIBUTES)]
    tables["visibility"] = [{"token": "4", "level": "v80-100", "description": ""}]
    tables["log"] = [{"token": "log", "logfile": "", "vehicle": "n015", "date_captured": "2018-07-24", "location": "singapore-onenorth"}]
    tables["map"] = [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/map.png"}]
    made: dict[str, SceneRecord] = {}
    split = surround_data(width=WIDTH, objects=8).splits["test"]
    rng = np.random.default_rng(7)
    for name, count in SCENES.items():
        tokens = [f"{name}/{i}" for i in range(count)]
        tables["scene"].append(
            {
                "token": name, "log_token": "log", "nbr_samples": count, "first_sample_token": tokens[0], "last_sample_token": tokens[-1],
                "name": name, "description": "",
            }
        )  # fmt: skip
        time = _START
        for i, token in enumerate(tokens):
            time += int(1e6 * GAPS[min(i, 2) - 1]) if i else 0
            before, after = _neighbours(tokens, i)
            tables["sample"].append({"token": token, "timestamp": time, "prev": before, "next": after, "scene_token": name})
            index = len(made)
            made[token] = split[index]
            pose = rigid(yaw_matrix(rng.uniform(-3, 3)), (*rng.uniform(300, 1500, 2), 0))
            _write_frames(root, tables, token, time, made[token], split.read(index), pose, rng)
            _write_objects(tables, tokens, i, made[token], pose, rng)
    for kind in tables["instance"]:
        kind["nbr_annotations"] = sum(row["instance_token"] == kind["token"] for row in tables["sample_annotation"])
    folder = root / "v1.0-mini"
    folder.mkdir(parents=True)
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))
    (root / "maps").mkdir()
    Image.new("L", (8, 8)).save(root / "maps" / "map.png")
    return made


def _neighbours(tokens: list[str], i: int) -> tuple[str, str]:
    return tokens[i - 1] if i else "", tokens[i + 1] if i + 1 < len(tokens) else ""


def _write_frames(root, tables, token, time, record: SceneRecord, images, pose, rng) -> None:
    """Six images, each taken at a moment and pose of its own, a lidar scan from a vehicle that rolls and pitches, and one sweep."""
    roll, pitch = rng.uniform(-0.03, 0.03, 2)
    tilt = quaternion_matrix(np.array([np.cos(pitch / 2), 0, np.sin(pitch / 2), 0])) @ quaternion_matrix(
        np.array([np.cos(roll / 2), np.sin(roll / 2), 0, 0])
    )
    _frame(root, tables, token, LIDAR, time, pose @ rigid(tilt, np.zeros(3)), rigid(np.eye(3), np.array([0.9, 0, 1.8])), [], None)
    for v, channel in enumerate(CAMERAS):
        intrinsic, rotation, place = _parts(record.lidar2img[v])
        turn = rng.normal(0, 0.01, 3)
        moved = rigid(quaternion_matrix(np.array([1, *turn])), np.array([*rng.uniform(-0.5, 0.5, 2), rng.uniform(-0.05, 0.05)]))
        mount = inverse_rigid(moved) @ rigid(rotation.T, place)
        _frame(root, tables, token, channel, time + 1000 * (v - 3), pose @ moved, mount, intrinsic.tolist(), images[v])
    sweep = dict(tables["sample_data"][-1], token=f"{token}/sweep", is_key_frame=False, filename="sweeps/CAM_FRONT_RIGHT/none.jpg")
    tables["sample_data"].append(sweep)


def _parts(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The intrinsic matrix, rotation (of the rows right, down, forward) and place of a camera without skew."""
    forward = matrix[2, :3]
    middle = matrix[:2, :3] @ forward
    sides = matrix[:2, :3] - middle[:, None] * forward
    focal = np.linalg.norm(sides, axis=1)
    intrinsic = np.array([[focal[0], 0, middle[0]], [0, focal[1], middle[1]], [0, 0, 1]])
    return intrinsic, np.stack((*(sides / focal[:, None]), forward)), -np.linalg.solve(matrix[:3, :3], matrix[:3, 3])


def _frame(root, tables, token, channel, time, pose, mount, intrinsic, image) -> None:
    name = f"samples/{channel}/{token.replace('/', '_')}__{channel}__{time}.{'pcd.bin' if image is None else 'jpg'}"
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    if image is None:
        (root / name).write_bytes(b"")
    else:
        image.save(root / name, quality=95)
    own = f"{token}/{channel}"
    tables["ego_pose"].append({"token": own, "timestamp": time, **_turned(pose)})
    tables["calibrated_sensor"].append({"token": own, "sensor_token": channel, **_turned(mount), "camera_intrinsic": intrinsic})
    width, height = (0, 0) if image is None else image.size
    tables["sample_data"].append(
        {
            "token": own, "sample_token": token, "ego_pose_token": own, "calibrated_sensor_token": own, "timestamp": time,
            "fileformat": "pcd" if image is None else "jpg", "is_key_frame": True, "height": height, "width": width, "filename": name,
            "prev": "", "next": "",
        }
    )  # fmt: skip


def _turned(matrix: np.ndarray) -> dict[str, list[float]]:
    return {"translation": matrix[:3, 3].tolist(), "rotation": matrix_quaternion(matrix[:3, :3]).tolist()}


def _write_objects(tables, tokens: list[str], i: int, record: SceneRecord, pose, rng) -> None:
    """The scene's boxes, one without a point; a bicycle in a rack; and a wheelchair, which is of no class. Instances last for the scene."""
    extra = np.array([[8.0, 9, 0.5, 0.6, 1.8, 1.1, 0.3], [8, 9, 1, 4, 6, 2, 0.8], [-9, 9, 0.7, 0.8, 1, 1.4, 0]])
    boxes = np.zeros((len(record.boxes) + 3, 9))
    boxes[:, :7] = np.concatenate((record.boxes[:, :7], extra))
    kinds = [*record.labels.tolist(), 4, 5, 6]
    boxes = transform(boxes, pose)
    for k, (box, kind) in enumerate(zip(boxes, kinds, strict=True)):
        own, instance = f"{tokens[i]}/{k}", f"{tokens[0]}/{k}"
        before, after = (f"{near}/{k}" if near else "" for near in _neighbours(tokens, i))
        if i == 0:
            first, last = f"{tokens[0]}/{k}", f"{tokens[-1]}/{k}"
            tables["instance"].append(
                {"token": instance, "category_token": f"c{kind}", "first_annotation_token": first, "last_annotation_token": last}
            )
        attributes = {4: ["a2"], 5: [], 6: []}.get(kind, [["a0"], ["a1"], []][int(rng.integers(3))])
        tables["sample_annotation"].append(
            {
                "token": own, "sample_token": tokens[i], "instance_token": instance, "visibility_token": "4",
                "attribute_tokens": attributes,
                "translation": box[:3].tolist(), "size": box[3:6].tolist(), "rotation": yaw_quaternion(box[6]).tolist(), "prev": before,
                "next": after, "num_lidar_pts": 0 if k == 2 else 5, "num_radar_pts": 0,
            }
        )  # fmt: skip


def detections(records, seed: int = 0) -> dict[int, SceneDetections]:
    """Most of the objects of scenes, some where and what they are not, and others."""
    rng, found = np.random.default_rng(seed), {}
    for i, record in enumerate(records):
        source = np.concatenate((np.flatnonzero(rng.random(len(record.boxes)) < 0.9), rng.integers(len(record.boxes), size=4)))
        boxes = record.boxes[source] + rng.normal(0, 1, (len(source), 9)) * (0.6, 0.6, 0.2, 0.1, 0.4, 0.1, 0.2, 0.5, 0.5)
        boxes[-4:, :2] = rng.uniform(-45, 45, (4, 2))
        boxes[:, 7:] = np.nan_to_num(boxes[:, 7:])
        found[i] = SceneDetections(boxes, rng.random(len(source)), record.labels[source])
    return found


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    val = open_scenes(sys.argv[1]).split("val")
    Path(sys.argv[2]).write_text(json.dumps(to_results(val, detections(val))))
