"""What is wrong with scenes of several cameras, and what will go wrong: objects against queries and cameras, splits, classes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from boxquery.boxes3d import NEAR, project
from boxquery.check.findings import Finding
from boxquery.check.run_checks import CheckResult
from boxquery.data.scenes.records import SceneData, SceneRecord, SceneSplit
from boxquery.pages.cameras import draw_scene
from boxquery.report.run_files import count_objects

#: scenes of each split that are looked at, evenly over it
LOOKED_AT = 300
#: share of the objects within the area whose centre no camera sees, from which it is a warning
UNSEEN = 0.25


def check_scenes(data: SceneData, findings: Sequence[Finding], *, queries: int, picture: bool) -> CheckResult:
    """Check a data set for a model with so many queries; nothing is written.

    Args:
        findings: of opening the data.
        picture: whether two training scenes with their boxes are drawn.
    """
    started = time.monotonic()
    facts = count_objects(data)
    samples = {name: _spread(split) for name, split in data.splits.items()}
    unseen = {name: _unseen(records, data) for name, records in samples.items()}
    numbers = np.array([int((~record.ignore).sum()) for record in samples["train"]])
    feasibility = {
        "queries": queries,
        "objects_per_scene": {str(q): float(np.percentile(numbers, q)) for q in (0, 50, 100)},
        "unseen": unseen,
    }
    result = CheckResult({"data": facts, "scenes": feasibility}, [], _draw(data) if picture else None, 0.0)
    result.add([*findings, *_queries(samples["train"], queries), *_classes(facts), *_cameras(unseen)])
    result.seconds = time.monotonic() - started
    return result


def _spread(split: SceneSplit) -> list[SceneRecord]:
    places = np.unique(np.linspace(0, len(split) - 1, min(len(split), LOOKED_AT)).round().astype(int))
    return [split[i] for i in places.tolist()]


def _unseen(records: Sequence[SceneRecord], data: SceneData) -> float | None:
    """The share of the objects whose centre is in no image; None without objects."""
    hidden, total = 0, 0
    for record in records:
        centres = record.boxes[~record.ignore, :3]
        inside = ((centres[:, :2] >= data.area[:2]) & (centres[:, :2] <= data.area[3:5])).all(1)
        pixels, depth = project(centres[inside], record.lidar2img)
        seen = (depth > NEAR) & ((pixels >= 0) & (pixels < record.sizes[:, None])).all(-1)
        hidden, total = hidden + int((~seen.any(0)).sum()), total + int(inside.sum())
    return hidden / total if total else None


def _queries(records: Sequence[SceneRecord], queries: int) -> Iterator[Finding]:
    fullest = max(records, key=lambda record: int((~record.ignore).sum()))
    most = int((~fullest.ignore).sum())
    if most > queries:
        text = f"Scene {fullest.id} has {most} objects, but the model predicts at most {queries}."
        yield Finding("crowded", "warning", text, f"--option num_queries={-(-most * 6 // 50) * 10} has room for all.")


def _classes(facts: dict[str, Any]) -> Iterator[Finding]:
    train = facts["splits"]["train"]["per_class"]
    for name, split in facts["splits"].items():
        missing = [facts["names"][i] for i, count in enumerate(split["per_class"]) if count and not train[i]]
        if missing:
            text = f"{name} has objects of {', '.join(missing)}, of which train has none."
            yield Finding("class-not-in-train", "warning", text, "They will not be found.")
    if absent := [name for name, count in zip(facts["names"], facts["splits"]["val"]["per_class"], strict=True) if not count]:
        text = f"val has no object of {', '.join(absent)}: as nuScenes defines it, such a class has AP 0 and counts in mAP and NDS."
        yield Finding("class-not-in-val", "note", text)


def _cameras(unseen: dict[str, float | None]) -> Iterator[Finding]:
    for name, share in unseen.items():
        if share is not None and share > UNSEEN:
            text = f"{share:.0%} of the objects of {name} have their centre in no image."
            yield Finding(
                "objects-out-of-view", "warning", text, "Do calibration and boxes belong to these images? Look at the picture.", "weak"
            )


def _draw(data: SceneData) -> Image.Image:
    """Two training scenes with their boxes, one below the other."""
    split, pictures = data.splits["train"], []
    for i in dict.fromkeys((0, len(split) - 1)):
        record, images = split[i], split.read(i)
        radius = max(map(abs, data.area[:2]))
        pictures.append(
            draw_scene(images, record.lidar2img, record.boxes, record.labels, names=data.names, cameras=record.cameras, radius=radius)
        )
    sheet = Image.new("RGB", (max(p.width for p in pictures), sum(p.height + 8 for p in pictures) - 8), "white")
    top = 0
    for one in pictures:
        sheet.paste(one, (0, top))
        top += one.height + 8
    return sheet
