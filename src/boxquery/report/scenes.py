"""Typical and worst scenes of a split: cameras and the view from above, ground truth beside predictions. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from boxquery.boxes3d import BOX
from boxquery.data.scenes.records import DetectionProtocol, SceneData, SceneDetections, SceneRecord, SceneSplit
from boxquery.evaluation.nuscenes import ERROR_DISTANCE
from boxquery.files import atomic_write, write_json
from boxquery.limits import DEFAULT_THRESHOLD
from boxquery.pages.cameras import draw_scene
from boxquery.pages.images import encode_within
from boxquery.report.pictures import BYTES

WIDTH = 1100
"""Pixels of a stored picture."""


class SceneOutcome(NamedTuple):
    """What became of the detections shown in a scene, and of its objects.

    Attributes:
        outcomes: per detection "right", "duplicate", "wrong class" or "false".
        objects: per detection the object that it is near, or -1.
        missed: bool per object.
        f1: of this scene; 1 without objects and detections.
    """

    outcomes: list[str]
    objects: list[int]
    missed: np.ndarray
    f1: float


def judge(record: SceneRecord, shown: SceneDetections, protocol: DetectionProtocol) -> SceneOutcome:
    """Best first, a detection takes the nearest object of its class within 2 m that is left; objects beyond their class's range do not
    count."""
    ranges = np.array(list(protocol.ranges.values()))
    counts = ~record.ignore & (np.hypot(record.boxes[:, 0], record.boxes[:, 1]) < ranges[record.labels])
    taken, outcomes, objects = np.zeros(len(record.boxes), dtype=bool), [], []
    for box, label in zip(shown.boxes, shown.labels, strict=True):
        distance = np.hypot(record.boxes[:, 0] - box[0], record.boxes[:, 1] - box[1])
        near = distance < ERROR_DISTANCE
        own = near & (record.labels == label)
        candidates = own & ~taken if (own & ~taken).any() else own if own.any() else near
        place = int(np.where(candidates, distance, np.inf).argmin()) if candidates.any() else -1
        outcomes.append("false" if place < 0 else "wrong class" if not own.any() else "duplicate" if taken[place] else "right")
        objects.append(place)
        if outcomes[-1] == "right":
            taken[place] = True
    total = int(counts.sum()) + len(outcomes)
    right = outcomes.count("right")
    return SceneOutcome(outcomes, objects, counts & ~taken, 2 * right / total if total else 1.0)


def write_scene_pictures(
    run: Path,
    split: SceneSplit,
    predictions: Mapping[int, SceneDetections],
    data: SceneData,
    *,
    typical: int = 3,
    worst: int = 3,
    threshold: float | None,
) -> Path:
    """Pick, draw and write scenes as ``boxquery.report.pictures.write_pictures`` does images; ``boxes`` are those of ``boxes3d``.

    Worst: the lowest F1; typical: those around the median. Predictions have solid lines, what was missed is dashed.

    Args:
        threshold: minimum score of the detections that are shown; None: the default.
    """
    least = DEFAULT_THRESHOLD if threshold is None else threshold
    shown = {i: above(predictions[i], least) for i in predictions}
    judged = {i: judge(split[i], shown[i], data.protocol) for i in shown}
    order = sorted(judged, key=lambda i: judged[i].f1)
    low = [i for i in order if judged[i].f1 < 1][: min(worst, len(order) // 2)]
    rest = [i for i in order if i not in low]
    middle = rest[max((len(rest) - typical) // 2, 0) :][:typical]
    picked = [*(("typical", i) for i in reversed(middle)), *(("worst", i) for i in low)]
    limit, entries, written = BYTES // max(1, 2 * len(picked)), [], set()
    for kind, i in picked:
        number = sum(entry["kind"] == kind for entry in entries) + 1
        entry, pictures = _entry(split, i, shown[i], judged[i], data, f"pictures/{kind}-{number}")
        for file, picture in pictures.items():
            atomic_write(run / file, encode_within(picture, limit))
            entry |= {"width": picture.width, "height": picture.height}
        written.update(pictures)
        entries.append({"kind": kind, **entry})
    for old in (run / "pictures").glob("*.jpg"):
        if f"pictures/{old.name}" not in written:
            old.unlink()
    return write_json(run / "pictures.json", {"split": split.name, "threshold": threshold, "pictures": entries})


def above(found: SceneDetections, threshold: float) -> SceneDetections:
    """The detections with at least this score."""
    kept = found.scores >= threshold
    return SceneDetections(found.boxes[kept], found.scores[kept], found.labels[kept])


def draw_pair(
    split: SceneSplit, i: int, shown: SceneDetections, data: SceneData, missed: np.ndarray | None = None
) -> tuple[Image.Image, Image.Image]:
    """A scene with its ground truth, and with detections, beside which those objects are dashed that are ``missed`` (bool [N])."""
    record, images = split[i], split.read(i)
    view = {"names": data.names, "cameras": record.cameras, "radius": max(map(abs, data.area[:2])), "width": WIDTH}
    seen, dashed = ~record.ignore, None if missed is None else (record.boxes[missed], record.labels[missed])
    truth = draw_scene(images, record.lidar2img, record.boxes[seen], record.labels[seen], **view)
    return truth, draw_scene(images, record.lidar2img, shown.boxes, shown.labels, truth=dashed, **view)


def _entry(
    split: SceneSplit, i: int, shown: SceneDetections, judged: SceneOutcome, data: SceneData, stem: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    record, files = split[i], (f"{stem}-truth.jpg", f"{stem}-prediction.jpg")
    pictures = dict(zip(files, draw_pair(split, i, shown, data, judged.missed), strict=True))
    entry = {"image": record.id, "title": f"scene {record.id}", "f1": judged.f1}
    entry |= dict(zip(("truth_file", "prediction_file"), files, strict=True))
    entry["truth"] = [
        {"name": data.names[label], "box": _columns(box), "ignore": bool(ignore), "missed": bool(missed)}
        for label, box, ignore, missed in zip(record.labels, record.boxes, record.ignore, judged.missed, strict=True)
    ]
    entry["predictions"] = [
        {"name": data.names[label], "box": _columns(box), "score": float(score), "outcome": outcome, "object": place}
        for label, box, score, outcome, place in zip(shown.labels, shown.boxes, shown.scores, judged.outcomes, judged.objects, strict=True)
    ]
    return entry, pictures


def _columns(box: np.ndarray) -> list[float | None]:
    """The numbers of a box, ``BOX``; None for a velocity that is not known, as JSON has no NaN."""
    return [round(float(value), 3) if np.isfinite(value) else None for _, value in zip(BOX, box, strict=True)]
