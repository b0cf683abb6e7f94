"""nuScenes' detection classes, the categories that they are made of, their attributes, and what is evaluated."""

from __future__ import annotations

import numpy as np

from boxquery.data.scenes.records import DetectionProtocol

NAMES = (
    "car", "truck", "bus", "trailer", "construction_vehicle", "pedestrian", "motorcycle", "bicycle", "traffic_cone", "barrier",
)  # fmt: skip
CATEGORIES = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.trailer": "trailer",
    "vehicle.construction": "construction_vehicle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "movable_object.trafficcone": "traffic_cone",
    "movable_object.barrier": "barrier",
}
"""The detection class of each category that has one."""
RACK = "static_object.bicycle_rack"
PROTOCOL = DetectionProtocol(
    ranges=dict(zip(NAMES, (50, 50, 50, 50, 50, 40, 40, 40, 30, 30), strict=True)),
    undefined={"traffic_cone": ("AOE", "AVE", "AAE"), "barrier": ("AVE", "AAE")},
    symmetric=("barrier",),
    in_racks=("motorcycle", "bicycle"),
)
"""The devkit's detection_cvpr_2019."""
AREA = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)

_MOVING = 0.2  # m/s above which an object is said to move
_AT_REST = {
    "car": "vehicle.parked", "truck": "vehicle.parked", "bus": "vehicle.stopped", "trailer": "vehicle.parked",
    "construction_vehicle": "vehicle.parked", "pedestrian": "pedestrian.standing", "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider", "traffic_cone": "", "barrier": "",
}  # fmt: skip
_IN_MOTION = {"pedestrian": "pedestrian.moving", "motorcycle": "cycle.with_rider", "bicycle": "cycle.with_rider"}


def likely_attributes(boxes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The attribute, str [K], that a box [K, 9] of a class most likely has, by its speed: what detectors without attributes state."""
    speeds = np.hypot(boxes[:, 7], boxes[:, 8])
    return np.array([_attribute(NAMES[label], speed > _MOVING) for label, speed in zip(labels, speeds, strict=True)], dtype=np.str_)


def _attribute(name: str, moves: bool) -> str:
    rest = _AT_REST[name]
    return _IN_MOTION.get(name, "vehicle.moving") if moves and rest else rest
