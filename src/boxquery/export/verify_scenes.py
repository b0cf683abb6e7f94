"""Whether an exported model of scenes gives what its model gives: as ``verify``, scene by scene."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.data.scenes.records import SceneData
from boxquery.evaluation.nuscenes import evaluate_scenes
from boxquery.evaluation.scene_predictions import ScenesFound, with_labels_of
from boxquery.export.graph import SceneGraph
from boxquery.export.verify import Comparison, Outputs, as_engine, run_graph
from boxquery.progress import Progress, note
from boxquery.runtime.exported_scenes import ExportedSceneDetector


def verify_scenes(graph: SceneGraph, path: Path, data: SceneData, split: str) -> dict[str, Any]:
    """Compare the file at ``path`` with the model that it was made of, scene by scene and on the same pixels.

    Returns ``scenes``; ``mAP``, ``mAP_exported``, ``NDS`` and ``NDS_exported``; ``mAP_own_size``, the model's at its own size of images;
    and ``Comparison.values``, of ``scene_rows`` and of milliseconds per scene without reading and resizing. Raises ``CheckFailed``, with
    these numbers, where they are too far apart.
    """
    exported = ExportedSceneDetector.open(path, device="cpu")
    record, scenes = exported.record, data.split(split)
    own = replace(exported.resize, fixed=None)
    found: tuple[ScenesFound, ScenesFound, ScenesFound] = ({}, {}, {})
    both = Comparison(graph, exported.engine)
    with Progress("verify", len(scenes)) as bar:
        for i, scene in enumerate(scenes):
            images = scenes.read(i)
            pixels, matrices = exported.inputs(images, scene.lidar2img)
            exported.check_views(pixels)
            matrices = matrices.astype(np.float32)
            ours, theirs = both.run(pixels, matrices, partial(scene_rows, area=exported.area))
            unstretched = ours
            if own.size != exported.resize.size:
                calibration = own.lidar2img(scene.lidar2img, scene.sizes)[None].astype(np.float32)
                unstretched = run_graph(graph, own.pixels(images)[None], calibration)
            for outputs, kept in zip((ours, theirs, unstretched), found, strict=True):
                kept[i] = ExportedSceneDetector(as_engine(record, outputs)).detect(pixels, matrices)[0]
            bar.advance()
    metrics = [evaluate_scenes(scenes, with_labels_of(each, exported.classes, data), data.protocol) for each in found]
    maps, scores = ([each[name] for each in metrics] for name in ("mAP", "NDS"))
    if own.size != exported.resize.size:
        (height, width), (high, wide) = exported.resize.size, own.size
        note(f"the model has mAP {maps[0]:.4f} at {height}x{width}, {maps[2]:.4f} at its own size, --size {high}x{wide}")
    both.judge(path.name, "mAP", maps[0], maps[1])
    first = {"scenes": len(scenes), "mAP": maps[0], "mAP_exported": maps[1], "NDS": scores[0], "NDS_exported": scores[1]}
    return first | {"mAP_own_size": maps[2]} | both.values()


def scene_rows(outputs: Outputs, area: tuple[float, ...]) -> np.ndarray:
    """[Q, 10 + C]: of each query x, y, z as shares of the area's sides, the logarithms of w, l, h, sine and cosine of the heading, the
    velocity in tens of m/s, and its scores."""
    boxes = outputs["query_boxes"][0].astype(np.float64)
    low, high = np.array(area).reshape(2, 3)
    yaw = boxes[:, 6:7]
    columns = (boxes[:, :3] - low) / (high - low), np.log(boxes[:, 3:6]), np.sin(yaw), np.cos(yaw), boxes[:, 7:] / 10
    return np.concatenate((*columns, outputs["class_scores"][0]), 1)
