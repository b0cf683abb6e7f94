"""What a model of cameras reaches that does not look: per class the boxes that most training scenes hold, in every scene. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from boxquery.data.scenes import DetectionProtocol, SceneDetections, SceneRecord
from boxquery.evaluation.nuscenes import DISTANCES, MOST, evaluate_scenes

GRID = 1.0
"""Metres between the places that are tried."""
SCENES = 1000
"""Training scenes that are looked at, the first ones: more change little."""


def fixed_boxes(train: Sequence[SceneRecord], protocol: DetectionProtocol) -> SceneDetections:
    """For each class the places that most training scenes have an object near, best first, with the class's median box.

    Places are chosen one by one: the next is that with most objects within a distance that no place chosen before is near; its score is the
    share of scenes that it is right in. Of the four distances of AP the one is taken whose boxes have the highest mAP on the
    training scenes, or, where several have the same, are right most often.

    Returns:
        at most ``MOST`` detections, to be predicted in every scene.
    """
    train = train[: min(SCENES, len(train))]
    if not len(train):
        return _stacked([])
    made = [_with_reach(train, protocol, reach) for reach in DISTANCES]
    return max(made, key=lambda found: (evaluate_fixed_boxes(found, train, protocol)["mAP"], found.scores.sum()))


def evaluate_fixed_boxes(found: SceneDetections, records: Sequence[SceneRecord], protocol: DetectionProtocol) -> dict[str, float | None]:
    """``mAP`` and ``NDS`` of what ``fixed_boxes`` gives, predicted in every scene."""
    metrics = evaluate_scenes(records, dict.fromkeys(range(len(records)), found), protocol)
    return {name: metrics[name] for name in ("mAP", "NDS")}


def fixed_boxes_note(metrics: Mapping[str, Any]) -> list[str]:
    """Whether a model's mAP is not above that of the fixed boxes, ``metrics["fixed_boxes"]``, where these are known."""
    fixed = metrics["fixed_boxes"]
    if fixed is None or metrics["mAP"] > fixed["mAP"]:
        return []
    return [
        f"mAP {metrics['mAP']:.3f} is not above the {fixed['mAP']:.3f} of boxes that are the same in every scene: the model has not "
        "learned to look; train longer, and see whether boxquery check DATA --overfit succeeds"
    ]


def _with_reach(train: Sequence[SceneRecord], protocol: DetectionProtocol, reach: float) -> SceneDetections:
    share = MOST // len(protocol.ranges)
    scenes = np.concatenate([np.full(len(record.boxes), i) for i, record in enumerate(train)])
    boxes, labels, kept = (np.concatenate([getattr(record, name) for record in train]) for name in ("boxes", "labels", "ignore"))
    kept = ~kept
    parts = []
    for label, limit in enumerate(protocol.ranges.values()):
        own = kept & (labels == label) & (np.hypot(boxes[:, 0], boxes[:, 1]) < limit)
        if own.any():
            places, right = _places(boxes[own, :2], scenes[own], limit, reach, share)
            parts.append(SceneDetections(_typical(boxes[own], places), right / len(train), np.full(len(places), label)))
    return _stacked(parts)


def _places(centres: np.ndarray, scenes: np.ndarray, limit: float, reach: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Places [K, 2], and for each the number of objects that it is the first to be near."""
    steps = np.arange(-limit, limit + GRID, GRID)
    grid = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    near = np.stack([((grid - centre) ** 2).sum(1) < reach**2 for centre in centres])
    places, right, counts = [], [], near.sum(0)
    while len(places) < most and counts.max() > 0:
        best = int(counts.argmax())
        covered = np.flatnonzero(near[:, best])
        places.append(grid[best])
        right.append(len(np.unique(scenes[covered])))
        counts = counts - near[covered].sum(0)
        near[covered] = False
    return np.reshape(places, (-1, 2)), np.array(right, np.float64)


def _typical(boxes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A class's median height above the ground and size at some places, with the mean direction of its headings, standing still."""
    made = np.zeros((len(places), 9))
    made[:, :2], made[:, 2:6] = places, np.median(boxes[:, 2:6], axis=0)
    made[:, 6] = np.arctan2(np.sin(boxes[:, 6]).mean(), np.cos(boxes[:, 6]).mean())
    return made


def _stacked(parts: list[SceneDetections]) -> SceneDetections:
    if not parts:
        return SceneDetections(np.zeros((0, 9)), np.zeros(0), np.zeros(0, np.int64))
    return SceneDetections(*(np.concatenate(columns) for columns in list(zip(*parts, strict=True))[:3]))
