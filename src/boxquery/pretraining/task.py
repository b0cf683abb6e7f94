"""Random query patch detection, as a task of training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from boxquery.augment import LEVELS, Augment
from boxquery.check.duplicates import check_duplicates, equal_images
from boxquery.check.feasibility import FeasibilityPlan, check_objects
from boxquery.check.findings import Finding
from boxquery.check.near_duplicates import check_near_duplicates, check_uniform, thumbnails
from boxquery.check.preview import draw_picture
from boxquery.check.run_checks import CheckResult
from boxquery.data.dataset import Record, Split
from boxquery.data.loading import DetectionDataset
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.shapes import WORD
from boxquery.data.transforms import TrainTransform
from boxquery.detector import Detector
from boxquery.errors import UserError, first_line
from boxquery.evaluation.median_box import evaluate_median_boxes
from boxquery.evaluation.predictions import DetectionsByImage
from boxquery.files import atomic_write
from boxquery.limits import DEFAULT_THRESHOLD
from boxquery.model_folder import load
from boxquery.models import create_model, list_models
from boxquery.models.base import DetectionTransformer
from boxquery.models.interface import Model
from boxquery.parts.weights import BackboneWeights
from boxquery.pretraining.evaluation import find_patches, mean_iou
from boxquery.pretraining.model import PatchDetection
from boxquery.pretraining.patches import PatchDataset
from boxquery.report.pictures import write_pictures
from boxquery.report.run_files import write_evaluation
from boxquery.training.config import RunConfig
from boxquery.training.image_task import ImageTask
from boxquery.training.task import Closing

#: in the model's folder: what only pre-training needs
PATCHES = "patches.safetensors"
#: parts of augmentation that move no patch out of the image
POSSIBLE = ("scales", "flip", "vertical_flip", "colour")
#: images as they are
PLAIN = LEVELS["none"]


class PatchDetector(Detector):
    """A ``PatchDetection`` with its preprocessing; its class has no name, so that nobody takes it for a detector of objects."""

    def __init__(self, model: Model, preprocessing: Preprocessing, threshold: float = DEFAULT_THRESHOLD):
        super().__init__(model, [None], [0], preprocessing, threshold)

    @property
    def looking(self) -> PatchDetection:
        """The model."""
        assert isinstance(self.model, PatchDetection)
        return self.model

    @property
    def transformer(self) -> DetectionTransformer:
        return self.looking.model

    @classmethod
    def load(cls, run: Path) -> Self:
        """Of a run's folder. Raises ``UserError``."""
        detector, file = load(run), run / "model" / PATCHES
        model = PatchDetection(detector.transformer)
        try:
            model.patches.load_state_dict(load_file(file))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise UserError(f"{file}: not what belongs to the model beside it ({first_line(error)}); restore it, or train again") from error
        found = cls(model, detector.preprocessing, detector.threshold)
        found.run = detector.run
        return found


class PatchTask(ImageTask):
    """See ``ImageTask``; each patch of an image is an object of a class of its own, which its queries alone can find.

    Args:
        data: from ``boxquery.pretraining.images.open_images``.
    """

    zero = "iou"
    columns = (*ImageTask.columns, "iou")
    shown = (*ImageTask.shown, "iou")

    @property
    def contents(self) -> str:
        return f"{len(self.data.names)} patches each"

    def build(self, config: RunConfig, weights: BackboneWeights | None) -> Model:
        model = create_model(config.model, classes=1, preset=config.preset, pretrained=weights or False, **config.options)
        if not isinstance(model, DetectionTransformer):
            raise UserError(
                f"{config.model} has no queries that could be told what to look for in an image; pretrain takes {', '.join(list_models())}"
            )
        if (queries := model.num_queries_per_layer[-1]) < config.patches:
            raise UserError(f"--patches {config.patches}: more than the {queries} queries that find them; give fewer, or more num_queries")
        if (config.pretrained or config.start_from) and not config.train_backbone:
            model.backbone.requires_grad_(False)
        return PatchDetection(model)

    def fit_to_data(self, model: Model, preprocessing: Preprocessing) -> dict[str, Any]:
        return {}

    def augment(self, config: RunConfig) -> dict[str, Any]:
        asked = config.augment
        if impossible := [name for name in asked if name not in (*POSSIBLE, "level")] or asked.get("level", "none") not in (
            "none",
            "default",
        ):
            word = asked["level"] if impossible is True else impossible[0]
            raise UserError(f"--augment {word}: patches must stay in their images; possible are none, {', '.join(POSSIBLE)}")
        off = {name: value for name, value in PLAIN.values().items() if name not in ("own", "scales")}
        return off | asked

    def dataset(self, config: RunConfig, model: Model, preprocessing: Preprocessing, augment: Augment) -> PatchDataset:
        return PatchDataset(self.train, preprocessing, augment, config.patches, drawn=True, seed=config.seed, strict=config.strict)

    def check(self, config: RunConfig, model: Model, augment: Augment, findings: Sequence[Finding], *, picture: bool) -> CheckResult:
        """Of the images alone: nothing is wrong with patches."""
        started = time.monotonic()
        plan = FeasibilityPlan.of(model, image_size=config.image_size, square=bool(config.square), steps=config.length.total_steps)
        paths = {name: [record.path for record in split] if split[0].path else [] for name, split in self.data.splits.items()}
        groups, seen = equal_images(paths), thumbnails(self.data)
        near, found = check_near_duplicates(self.data, seen, groups)
        found = [*findings, *found, *check_uniform(self.data, seen), self._backbone(config)]
        facts = {
            "data": self.facts(), "feasibility": check_objects(self.data, plan)[0], "near_duplicates": near,
            "equal_images": check_duplicates(self.data, groups)[0], "pixels": {},
        }  # fmt: skip
        transform = TrainTransform(plan.preprocessing, augment)
        result = CheckResult(facts, [], draw_picture(self.data, transform, config.seed, found) if picture else None, 0.0)
        result.add(found)
        result.seconds = time.monotonic() - started
        return result

    def test(self, config: RunConfig) -> list[str]:
        return ["boxquery", "pretrain", WORD, "--model", config.model]

    @staticmethod
    def _backbone(config: RunConfig) -> Finding:
        """Whether it is trained, which decides what a patch's feature is worth."""
        known = bool(config.pretrained or config.start_from)
        frozen = config.freeze_backbone or (known and not config.train_backbone)
        if frozen and known:
            return Finding("backbone", "note", "The backbone, from trained weights, is frozen, as published; --train-backbone trains it.")
        if frozen:
            return Finding(
                "backbone", "warning", "The backbone is frozen at random weights: patches have features that mean nothing.",
                "Leave out --freeze-backbone, or give trained weights as --pretrained.",
            )  # fmt: skip
        start = "" if known else ", from random weights"
        return Finding("backbone", "note", f"The backbone is trained{start}; as published it is pretrained and frozen (docs/pretrain.md).")

    def detector(self, model: Model, preprocessing: Preprocessing) -> PatchDetector:
        return PatchDetector(model, preprocessing)

    def save(self, detector: Detector, folder: Path, *, epoch: Mapping[str, Any]) -> None:
        """The ordinary model, and beside it what only pre-training needs."""
        assert isinstance(detector, PatchDetector)
        own = {name: value.detach().cpu().contiguous() for name, value in detector.looking.patches.state_dict().items()}
        atomic_write(folder / PATCHES, to_bytes(own))
        ordinary = Detector(detector.transformer, detector.classes, detector.ids, detector.preprocessing, detector.threshold)
        super().save(ordinary, folder, epoch=epoch)

    def load(self, folder: Path) -> PatchDetector:
        return PatchDetector.load(folder)

    def val_dataset(self, detector: Detector, strict: bool) -> PatchDataset:
        return self._fixed(self.val, detector, strict)

    def _fixed(self, split: Split, detector: Detector, strict: bool) -> PatchDataset:
        return PatchDataset(split, detector.preprocessing, PLAIN, len(self.data.names), drawn=False, strict=strict)

    def predict(
        self, detector: Detector, split: Split, config: RunConfig, *, only: Sequence[int] | None = None,
        cached: DetectionDataset | None = None, strict: bool = False, warn: Callable[[str], None],
    ) -> DetectionsByImage:  # fmt: skip
        assert isinstance(detector, PatchDetector)
        dataset = cached if isinstance(cached, PatchDataset) else self._fixed(split, detector, strict)
        order = range(len(split)) if only is None else only
        return find_patches(detector.looking, dataset, order, batch_size=config.evaluation_batch, warn=warn)

    def evaluate(self, records: Sequence[Record], found: Mapping[int, Any], config: RunConfig) -> dict[str, Any]:
        return super().evaluate(records, found, config) | {"iou": mean_iou(records, found)}

    def close(self, folder: Path, split: Split, found: DetectionsByImage, detector: Detector, config: RunConfig) -> Closing:
        metrics, (boxes, scores, labels) = self.evaluate(split, found, config), self.medians
        fixed = {i: (boxes * np.array([record.width, record.height] * 2), scores, labels) for i, record in enumerate(split)}
        metrics["median_box"] = evaluate_median_boxes(self.medians, split, self.data.names, self.data.ids)
        baseline = metrics["median_box"] | {"iou": mean_iou(split, fixed)}
        below = []
        if metrics["iou"] <= baseline["iou"]:
            below = [f"patches are found no better (IoU {metrics['iou']:.3f}) than by one box for all images: nothing was learned yet"]
        write_evaluation(folder, split.name, {**metrics, "notes": below})
        write_pictures(folder, split, found, self.data.names, threshold=detector.threshold)
        return Closing(metrics, baseline, below)
