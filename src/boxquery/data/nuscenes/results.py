"""nuScenes' result file: detections in the global frame, by the tokens of samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.boxes3d import inverse_rigid, matrix_yaw, quaternion_matrix, transform, yaw_quaternion
from boxquery.data.nuscenes.classes import NAMES, likely_attributes
from boxquery.data.nuscenes.tables import Row
from boxquery.data.scenes.records import SceneDetections, SceneRecord
from boxquery.errors import UserError, one_line

META = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}
MOST = 500
"""Detections per sample that the file may have."""


def to_results(records: Sequence[SceneRecord], predictions: Mapping[int, SceneDetections], names: Sequence[str] = NAMES) -> dict[str, Any]:
    """The content of a result file: every record is in it, with its best detections and, where none is predicted, their likely attributes.

    Args:
        predictions: position in ``records`` -> detections.
        names: of their classes, nuScenes' ten or those of other data, whose objects have no attributes.
    """
    return {
        "meta": META,
        "results": {one.id: _rows(one, predictions[i], names) if i in predictions else [] for i, one in enumerate(records)},
    }


def _rows(record: SceneRecord, found: SceneDetections, names: Sequence[str]) -> list[dict[str, Any]]:
    best = np.argsort(-found.scores, kind="stable")[:MOST]
    labels = found.labels[best]
    boxes = transform(found.boxes[best], record.pose)
    if found.attributes is not None:
        attributes = found.attributes[best]
    else:
        attributes = likely_attributes(boxes, labels) if list(names) == list(NAMES) else np.full(len(best), "")
    return [
        {
            "sample_token": record.id,
            "translation": box[:3],
            "size": box[3:6],
            "rotation": rotation,
            "velocity": box[7:9],
            "detection_name": names[label],
            "detection_score": score,
            "attribute_name": attribute,
        }
        for box, rotation, label, score, attribute in zip(
            boxes.tolist(),
            yaw_quaternion(boxes[:, 6]).tolist(),
            labels.tolist(),
            found.scores[best].tolist(),
            attributes.tolist(),
            strict=True,
        )
    ]


def read_results(path: Path, records: Sequence[SceneRecord]) -> dict[int, SceneDetections]:
    """The detections of a result file, by position in ``records``.

    Raises:
        UserError: the file cannot be read, has none of a record, or a row that is not a detection; it names the row.
    """
    try:
        results = json.loads(path.read_bytes())["results"]
        found = {i: results[record.id] for i, record in enumerate(records)}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); write it again") from error
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not nuScenes' results of these samples (no {error}); give the file of this split") from error
    return {i: _detections(path, records[i], rows) for i, rows in found.items()}


def _detections(path: Path, record: SceneRecord, rows: object) -> SceneDetections:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{path}: {record.id}: not a list of detections; write it again")
    boxes, scores, labels, attributes = np.zeros((len(rows), 9)), np.zeros(len(rows)), np.zeros(len(rows), np.int64), []
    for k, values in enumerate(rows):
        row = Row(values, f"{path}: {record.id}, detection {k}")
        name, score = row.text("detection_name"), float(row.numbers("detection_score"))
        rotation = row.numbers("rotation", 4)
        if name not in NAMES:
            raise UserError(f"{row.where}: no class {name!r}; classes are {', '.join(NAMES)}")
        yaw = matrix_yaw(quaternion_matrix(rotation)) if rotation.any() else np.nan
        boxes[k] = [*row.numbers("translation", 3), *row.numbers("size", 3), yaw, *row.numbers("velocity", 2)]
        scores[k], labels[k] = score, NAMES.index(name)
        if not np.isfinite(boxes[k, :7]).all() or not np.isfinite(score) or (boxes[k, 3:6] <= 0).any():
            raise UserError(f"{row.where}: its score and box must be finite, and its size positive; write it again")
        attributes.append(row.text("attribute_name"))
    return SceneDetections(transform(boxes, inverse_rigid(record.pose)), scores, labels, np.array(attributes, np.str_))
