"""Boxes in images, as a task of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxquery.augment import Augment
from boxquery.check.feasibility import FeasibilityPlan, drops_queries
from boxquery.check.findings import Finding
from boxquery.check.run_checks import CheckResult, run_checks
from boxquery.data.dataset import Data, Record, Split
from boxquery.data.loading import DetectionDataset, collate
from boxquery.data.preprocessing import Preprocessing, object_shares, object_sizes
from boxquery.data.transforms import ResizeTransform, TrainTransform
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.evaluation.alignment import Alignment, measure_split
from boxquery.evaluation.analysis import analyse
from boxquery.evaluation.bootstrap import resampled_ap
from boxquery.evaluation.median_box import evaluate_median_boxes, median_box_note, median_boxes
from boxquery.evaluation.metric_names import OF_IMAGES
from boxquery.evaluation.metrics import evaluate, limits_note
from boxquery.evaluation.predictions import DetectionsByImage, apply_nms, predict_split
from boxquery.model_folder import load
from boxquery.models import list_baselines, list_models
from boxquery.models.interface import Model
from boxquery.pages.drawing import draw
from boxquery.pages.images import resize_to
from boxquery.report.pictures import write_pictures
from boxquery.report.run_files import data_facts, write_analysis, write_evaluation
from boxquery.training.config import RunConfig, TrainFlags
from boxquery.training.settings import Automatic, automatic, with_rate
from boxquery.training.task import Closing, Task

#: longest side in pixels of an image that is drawn to be seen beside others
PICTURE_SIDE = 400


class ImageTask(Task[Detector]):
    """See ``Task``; detections are (boxes [K, 4] xyxy in pixels, scores [K], labels [K])."""

    kind, zero = "boxes", "AP50"
    unit, better, shown, duplicates = OF_IMAGES.unit, OF_IMAGES.better, OF_IMAGES.shown, OF_IMAGES.duplicates
    baseline = "median box of each class in every image"
    columns = (*OF_IMAGES.shown, *OF_IMAGES.others, "duplicate_rate", "best_threshold")
    collate = staticmethod(collate)
    data: Data

    @property
    def train(self) -> Split:
        return self.data.splits["train"]

    @property
    def val(self) -> Split:
        return self.data.splits["val"]

    def automatic(self, requested: TrainFlags, say: Callable[[str], Any]) -> Automatic:
        return automatic(requested, self.data, say)

    def with_rate(self, requested: TrainFlags, say: Callable[[str], Any]) -> tuple[TrainFlags, list[str]]:
        return with_rate(requested, self.data, say)

    @property
    def remedy(self) -> str:
        return f"choose one of {', '.join(list_models())}, or a baseline: {', '.join(list_baselines())}"

    def build(self, config: RunConfig, weights: Any) -> Model:
        model = super().build(config, weights)
        fullest = max(self.train, key=lambda record: int((~record.ignore).sum()))
        most, queries = int((~fullest.ignore).sum()), model.num_queries_per_layer[-1]
        if drops_queries(model) and most > queries:  # every layer matches all objects
            raise UserError(
                f"image {fullest.id!r} has {most} objects, but the last layer keeps {queries} queries: end num_queries with {most} or more"
            )
        return model

    def fit_to_data(self, model: Model, preprocessing: Preprocessing) -> dict[str, Any]:
        sizes, shares = np.concatenate(object_sizes(self.train, preprocessing)), np.concatenate(object_shares(self.train))
        return model.fit_to_data(sizes, shares)

    def dataset(self, config: RunConfig, model: Model, preprocessing: Preprocessing, augment: Augment) -> DetectionDataset:
        transform = TrainTransform(preprocessing, augment, most_objects=model.num_queries_per_layer[-1])
        return DetectionDataset(self.train, transform, seed=config.seed, cache=True, strict=config.strict)

    def shapes(self) -> Sequence[float] | None:
        ratios = [math.log(record.width / record.height) for record in self.train]
        return None if len(set(ratios)) == 1 else ratios

    def check(self, config: RunConfig, model: Model, augment: Augment, findings: Sequence[Finding], *, picture: bool) -> CheckResult:
        start = "" if config.start_from else "trained" if config.pretrained else "random"
        plan = FeasibilityPlan.of(
            model, image_size=config.image_size, square=bool(config.square), steps=config.length.total_steps, lr=config.lr, start=start,
            max_detections=config.max_detections,
        )  # fmt: skip
        return run_checks(self.data, findings, plan, augment, seed=config.seed, picture="always" if picture else "never")

    def detector(self, model: Model, preprocessing: Preprocessing) -> Detector:
        return Detector(model, self.data.names, self.data.ids, preprocessing)

    def load(self, folder: Path) -> Detector:
        return load(folder)

    def val_dataset(self, detector: Detector, strict: bool) -> DetectionDataset:
        return DetectionDataset(self.val, ResizeTransform(detector.resize), cache=True, strict=strict)

    def predict(
        self, detector: Detector, split: Split, config: RunConfig, *, only: Sequence[int] | None = None,
        cached: DetectionDataset | None = None, strict: bool = False, warn: Callable[[str], None],
    ) -> DetectionsByImage:  # fmt: skip
        return predict_split(
            detector, split, batch_size=config.evaluation_batch, only=only, cached=cached, max_detections=config.max_detections,
            strict=strict, warn=warn,
        )  # fmt: skip

    def evaluate(self, records: Sequence[Record], found: Mapping[int, Any], config: RunConfig) -> dict[str, Any]:
        return evaluate(records, found, self.data.names, self.data.ids, max_detections=config.max_detections)

    def resampled(self, records: Sequence[Record], found: Mapping[int, Any], weights: np.ndarray, config: RunConfig) -> np.ndarray:
        return resampled_ap(records, found, len(self.data.names), weights, config.max_detections)[0]

    def with_nms(
        self, detector: Detector, split: Split, found: DetectionsByImage, threshold: float, config: RunConfig
    ) -> DetectionsByImage:
        if detector.model.has_queries:
            return found if threshold == 1 else apply_nms(found, threshold)
        return predict_split(  # a model with NMS of its own has to predict again
            detector, split, nms=threshold, batch_size=config.evaluation_batch, max_detections=config.max_detections, strict=config.strict
        )

    def draw(self, split: Split, position: int, found: Mapping[int, Any], threshold: float) -> tuple[Image.Image, Image.Image]:
        record, names = split[position], self.data.names
        image, scale = resize_to(split.read(position), PICTURE_SIDE)
        boxes, scores, labels = found[position]
        real, kept = ~record.ignore, scores >= threshold
        truth = draw(image, record.boxes[real] * scale, record.labels[real], names)
        return truth, draw(image, boxes[kept] * scale, labels[kept], names, scores=scores[kept])

    def measures_alignment(self, model: Model) -> bool:
        return model.has_queries

    def alignment(self, detector: Detector, only: Sequence[int], cached: DetectionDataset) -> Alignment:
        return measure_split(detector, self.val, only=only, cached=cached)

    def spreads(self, found: Mapping[int, Any]) -> np.ndarray:
        sizes = ((boxes, self.val[i]) for i, (boxes, _, _) in found.items() if len(boxes) > 1)
        return np.array([(boxes / np.array([r.width, r.height] * 2, np.float64)).std(0).mean() for boxes, r in sizes])

    def scores(self, found: Mapping[int, Any]) -> np.ndarray:
        return np.array([scores.max(initial=0.0) for _, scores, _ in found.values()])

    def facts(self) -> dict[str, Any]:
        return data_facts(self.data)

    @cached_property
    def medians(self) -> Any:
        return median_boxes(self.train, len(self.data.names))

    def close(self, folder: Path, split: Split, found: DetectionsByImage, detector: Detector, config: RunConfig) -> Closing:
        names, limit = self.data.names, config.max_detections
        metrics = self.evaluate(split, found, config)
        metrics["median_box"] = evaluate_median_boxes(self.medians, split, names, self.data.ids)
        below = median_box_note(metrics)
        limits = limits_note(split, limit, detector.num_queries if detector.has_queries else limit)
        write_evaluation(folder, split.name, {**metrics, "notes": limits + below})
        write_analysis(folder, split.name, analyse(split, found, names, metrics))
        if split.name == "val":
            write_pictures(folder, split, found, names, threshold=detector.threshold)
        return Closing(metrics, metrics["median_box"], below)
