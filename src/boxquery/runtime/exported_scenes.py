"""A detector of scenes of several cameras from an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import numpy as np

from boxquery.boxes3d import widened
from boxquery.data.scenes.records import SceneDetections
from boxquery.data.scenes.resize import SceneResize
from boxquery.errors import UserError
from boxquery.runtime.engines import Engine, open_file
from boxquery.runtime.exported import best_classes, run, wrong_size
from boxquery.runtime.scene_predictor import ScenePredictor


class ExportedSceneDetector(ScenePredictor):
    """An exported model with everything that detection needs beside it: ``predict`` as of ``boxquery.SceneDetector``."""

    def __init__(self, engine: Engine):
        self.engine, self.record = engine, engine.record
        record = self.record
        assert record.scenes is not None
        resize = SceneResize(record.preprocessing, record.scenes.images, record.size)
        super().__init__([str(name) for name in record.classes], record.ids, resize, record.scenes.area, record.threshold)

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", threads: int | None = None) -> Self:
        """See ``boxquery.runtime.load``. Raises ``UserError`` for a model of images."""
        engine = open_file(Path(path), device, threads)
        if engine.record.scenes is None:
            raise UserError(f"{path}: {engine.record.model} finds boxes in images; scenes of several cameras need a model of theirs")
        return cls(engine)

    def __repr__(self) -> str:
        height, width = self.resize.size
        return (
            f"<ExportedSceneDetector {self.name} ({self.record.precision}), {len(self.classes)} classes: {', '.join(self.classes[:8])}; "
            f"images of {width} x {height}, threshold {self.threshold:.2f}, {self.engine.runtime} on {self.engine.device}>"
        )

    @property
    def name(self) -> str:
        return self.record.model

    @property
    def cameras(self) -> int | None:
        return None if self.record.scenes is None else self.record.scenes.cameras

    def detect(self, images: np.ndarray, lidar2img: np.ndarray, *, one_label: bool = False) -> list[SceneDetections]:
        """See ``ScenePredictor.detect``. Raises ``UserError`` for images of another size than the model was exported for."""
        if (fixed := self.resize.fixed) is not None and images.shape[-2:] != fixed:
            raise wrong_size(images, fixed)
        self.check_views(images)
        names = ("boxes", "scores", "labels") if one_label else ("query_boxes", "class_scores")
        columns = run(self.engine, names, images, lidar2img.astype(np.float32))
        if one_label:  # in which those far outside the area have no score
            return [_plain(*(column[scene[1] > 0] for column in scene)) for scene in zip(*columns, strict=True)]
        low, high = np.array(widened(self.area), np.float32).reshape(2, 3)
        found = []
        for queries, scores in zip(*columns, strict=True):
            best = best_classes(queries, scores, self.record.top_k)
            inside = ((best.boxes[:, :3] >= low) & (best.boxes[:, :3] <= high)).all(1)
            found.append(_plain(*(column[inside] for column in best)))
        return found


def _plain(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> SceneDetections:
    return SceneDetections(boxes.astype(np.float64), scores.astype(np.float64), labels)
