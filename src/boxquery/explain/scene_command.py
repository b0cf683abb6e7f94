"""What ``boxquery explain`` does with a scene of several cameras."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from boxquery.data.classes import match_names
from boxquery.data.scenes.open import open_scenes
from boxquery.device import choose_device
from boxquery.errors import UserError
from boxquery.explain.scenes import SceneExplanation, explain_scene
from boxquery.flags import check_model
from boxquery.limits import check_threshold
from boxquery.model_folder import load_scenes


def explain_in_data(
    run: str, data: str, *, split: str, scene: int, query: int | None, threshold: float | None, out: Path, device: str, download: bool,
    strict: bool,
) -> tuple[SceneExplanation, Path]:  # fmt: skip
    """A scene of a data set explained, and the page that was written of it. Raises ``UserError``."""
    check_threshold(threshold)
    check_model(run)
    opened = open_scenes(data, strict=strict)
    for line in opened.messages():
        print(line, file=sys.stderr)
    scenes = opened.split(split)
    if not 0 <= scene < len(scenes):
        raise UserError(f"--scene {scene}: split {split!r} of {data} has scenes 0 to {len(scenes) - 1}")
    detector, record = load_scenes(run, download=download).to(choose_device(device)), scenes[scene]
    found = explain_scene(
        detector, scenes.read(scene), record.lidar2img, name=record.id, threshold=threshold, query=query, cameras=record.cameras
    )
    known = np.array(match_names(opened.names, detector.classes))[record.labels]
    seen = ~record.ignore & (known >= 0)
    found = replace(found, truth=(record.boxes[seen], known[seen]))
    return found, found.write(out if out.suffix.lower() == ".html" else out / f"{record.id.replace('/', '-')}.html")
