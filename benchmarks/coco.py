"""COCO's annotations of images that a benchmark made or copied."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.data.dataset import Record

Numbers = Callable[[Record], np.ndarray]


def xywh(record: Record) -> np.ndarray:
    """COCO's four numbers [N, 4]."""
    return np.concatenate((record.boxes[:, :2], record.boxes[:, 2:] - record.boxes[:, :2]), 1)


def own_name(record: Record) -> str:
    assert record.path is not None
    return record.path.name


def coco_content(
    names: Sequence[str],
    records: Sequence[Record],
    file_name: Callable[[Record], str] = own_name,
    numbers: Numbers = xywh,
    first_id: int = 1,
) -> dict[str, Any]:
    """The content of a file; the list of categories counts from 1, and annotations name them from ``first_id`` on."""
    content: dict[str, Any] = {"categories": [{"id": i, "name": name} for i, name in enumerate(names, 1)], "images": [], "annotations": []}
    for number, record in enumerate(records, 1):
        content["images"].append({"id": number, "file_name": file_name(record), "width": record.width, "height": record.height})
        objects = zip(numbers(record).tolist(), record.labels.tolist(), record.ignore.tolist(), strict=True)
        for box, label, ignored in objects:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": number,
                    "category_id": label + first_id,
                    "bbox": box,
                    "iscrowd": int(ignored),
                }
            )
    return content


def write_coco(names: Sequence[str], records: Sequence[Record], folder: Path) -> str:
    """Write the annotations of images that are in ``folder``; a line about them, for people."""
    content = coco_content(names, records)
    (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return f"{folder}: {len(records)} images, {len(content['annotations'])} objects, classes: {', '.join(names)}"
