"""3-D boxes in scenes of several cameras, as a task of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxquery.augment import Augment
from boxquery.auto import SCENE_MODEL, scene_preset
from boxquery.check.findings import Finding
from boxquery.check.run_checks import CheckResult
from boxquery.check.scenes import check_scenes
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes.loading import SceneAugment, SceneDataset, SceneResizeTransform, collate_scenes
from boxquery.data.scenes.records import SceneData, SceneDetections, SceneRecord, SceneSplit
from boxquery.device import choose_device
from boxquery.errors import UserError
from boxquery.evaluation.fixed_boxes import evaluate_fixed_boxes, fixed_boxes, fixed_boxes_note
from boxquery.evaluation.metric_names import OF_SCENES
from boxquery.evaluation.nuscenes import DISTANCES, evaluate_scenes, resampled_map
from boxquery.evaluation.scene_predictions import ScenesFound, predict_scenes
from boxquery.model_folder import load_scenes
from boxquery.models import list_scene_models
from boxquery.models.interface import Model
from boxquery.report.run_files import scene_facts, write_evaluation
from boxquery.report.scenes import above, draw_pair, write_scene_pictures
from boxquery.scene_detector import SceneDetector
from boxquery.training.config import RunConfig, TrainFlags
from boxquery.training.settings import Automatic
from boxquery.training.task import Closing, Task

#: parts of the augmentation of images that scenes have, too
AUGMENTED = ("scales", "flip", "colour", "rotation", "plain_end")


def check_scene_augment(parts: Iterable[str]) -> None:
    """Raises ``UserError`` for a part of the augmentation that scenes do not have."""
    if other := [name for name in parts if name not in ("level", *AUGMENTED)]:
        raise UserError(f"augment: {other[0]} is of images; scenes of several cameras have {', '.join(AUGMENTED)}")


class SceneTask(Task[SceneDetector]):
    """See ``Task``; detections are ``SceneDetections``."""

    kind, zero = "boxes3d", "AP@4"
    unit, better, shown, duplicates = OF_SCENES.unit, OF_SCENES.better, OF_SCENES.shown, OF_SCENES.duplicates
    baseline = "the best fixed boxes in every scene"
    collate = staticmethod(collate_scenes)
    data: SceneData

    @property
    def columns(self) -> Sequence[str]:
        errors = [f"m{error}" for error in self.data.protocol.errors]
        return [*OF_SCENES.shown, *errors, *(f"AP@{distance:g}" for distance in DISTANCES), "best_threshold"]

    @property
    def train(self) -> SceneSplit:
        return self.data.splits["train"]

    @property
    def val(self) -> SceneSplit:
        return self.data.splits["val"]

    def automatic(self, requested: TrainFlags, say: Callable[[str], Any]) -> Automatic:
        size = requested.preset or scene_preset(choose_device(requested.device))
        line = f"auto: {SCENE_MODEL} {size}: it takes any number of cameras; all else is as the preset has it (--model, --preset)"
        return Automatic(replace(requested, model=SCENE_MODEL, preset=size), ["model"] + ["preset"] * (requested.preset is None), [line])

    @property
    def remedy(self) -> str:
        return f"name one with --model: {' or '.join(list_scene_models())}"

    def model_options(self) -> dict[str, Any]:
        return {"area": list(self.data.area)}

    def augment(self, config: RunConfig) -> dict[str, Any]:
        check_scene_augment(config.augment)
        return config.augment

    def dataset(self, config: RunConfig, model: Model, preprocessing: Preprocessing, augment: Augment) -> SceneDataset:
        changes = SceneAugment(augment.flip, augment.rotation, (min(augment.scales), max(augment.scales)), augment.colour)
        transform = self.detector(model, preprocessing).transform
        return SceneDataset(self.train, transform, augment=changes, seed=config.seed, cache=True, strict=config.strict)

    def check(self, config: RunConfig, model: Model, augment: Augment, findings: Sequence[Finding], *, picture: bool) -> CheckResult:
        return check_scenes(self.data, findings, queries=model.num_queries_per_layer[-1], picture=picture)

    def detector(self, model: Model, preprocessing: Preprocessing) -> SceneDetector:
        width, height = self.train[0].sizes[0].tolist()
        return SceneDetector(model, self.data.names, self.data.ids, preprocessing, (height, width))

    def load(self, folder: Path) -> SceneDetector:
        return load_scenes(folder)

    def val_dataset(self, detector: SceneDetector, strict: bool) -> SceneDataset:
        return SceneDataset(self.val, SceneResizeTransform(detector.resize, detector.area), cache=True, strict=strict)

    def predict(
        self, detector: SceneDetector, split: SceneSplit, config: RunConfig, *, only: Sequence[int] | None = None,
        cached: SceneDataset | None = None, strict: bool = False, warn: Callable[[str], None],
    ) -> ScenesFound:  # fmt: skip
        return predict_scenes(detector, split, batch_size=config.evaluation_batch, only=only, cached=cached, strict=strict, warn=warn)

    def evaluate(self, records: Sequence[SceneRecord], found: Mapping[int, SceneDetections], config: RunConfig) -> dict[str, Any]:
        return evaluate_scenes(records, found, self.data.protocol)

    def resampled(
        self, records: Sequence[SceneRecord], found: Mapping[int, SceneDetections], weights: np.ndarray, config: RunConfig
    ) -> np.ndarray:
        return resampled_map(records, found, self.data.protocol, weights)

    def draw(
        self, split: SceneSplit, position: int, found: Mapping[int, SceneDetections], threshold: float
    ) -> tuple[Image.Image, Image.Image]:
        return draw_pair(split, position, above(found[position], threshold), self.data)

    def spreads(self, found: Mapping[int, SceneDetections]) -> np.ndarray:
        low, high = np.array(self.data.area).reshape(2, 3)[:, :2]
        return np.array([(own.boxes[:, :2] / (high - low)).std(0).mean() for own in found.values() if len(own.boxes) > 1])

    def scores(self, found: Mapping[int, SceneDetections]) -> np.ndarray:
        return np.array([own.scores.max(initial=0.0) for own in found.values()])

    @cached_property
    def fixed(self) -> SceneDetections:
        """What is predicted without looking."""
        return fixed_boxes(self.train, self.data.protocol)

    def facts(self) -> dict[str, Any]:
        return scene_facts(self.data, self.fixed)

    def close(self, folder: Path, split: SceneSplit, found: ScenesFound, detector: SceneDetector, config: RunConfig) -> Closing:
        metrics = self.evaluate(split, found, config)
        metrics["fixed_boxes"] = evaluate_fixed_boxes(self.fixed, split, self.data.protocol)
        below = fixed_boxes_note(metrics)
        write_evaluation(folder, split.name, {**metrics, "notes": below})
        if split.name == "val":
            write_scene_pictures(folder, split, found, self.data, threshold=detector.threshold)
        return Closing(metrics, metrics["fixed_boxes"], below)
