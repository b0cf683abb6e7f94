"""A model of several cameras with its class names and preprocessing: the images of a scene in, 3-D boxes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from PIL import Image

from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes.loading import SceneBatch, SceneTransform
from boxquery.data.scenes.records import SceneDetections
from boxquery.data.transforms import normalize
from boxquery.errors import UserError, count
from boxquery.limits import DEFAULT_THRESHOLD, check_above_zero, check_threshold
from boxquery.runtime.predictor import ImageSource, to_pil
from boxquery.scene_result import SceneResult

if TYPE_CHECKING:
    from boxquery.models.interface import Model
    from boxquery.models.scenes.base import SceneTransformer


class SceneDetector:
    """A model of scenes with everything that detection needs beside it.

    Args:
        model: from ``create_model``, one of ``boxquery.models.list_scene_models()``.
        classes: class names, one per logit column.
        ids: the data set's own category ids, parallel to ``classes``.
        preprocessing: how an image becomes the model's input.
        size: (height, width) of the images that it was trained on; all images are resized as one of this size is.
        threshold: the default score threshold; 0.5 until an evaluation has found a better one.
    """

    def __init__(
        self,
        model: Model,
        classes: Sequence[str],
        ids: Sequence[int],
        preprocessing: Preprocessing,
        size: tuple[int, int],
        threshold: float = DEFAULT_THRESHOLD,
    ):
        if not len(classes) == len(ids) == model.config["classes"]:
            raise UserError(f"the model has {model.config['classes']} classes, but {len(classes)} names and {len(ids)} ids were given")
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise UserError(f"size={size}: must be the height and width of the images in pixels")
        check_threshold(threshold)
        self.model, self.classes, self.ids, self.preprocessing = model, list(classes), list(ids), preprocessing
        self.size, self.threshold = (size[0], size[1]), threshold
        #: the run folder that it was loaded from, if any
        self.run: Path | None = None

    def summary(self) -> dict[str, Any]:
        """Model name, classes and, if it comes from a run, its mAP: plain values."""
        evaluation = self.run / "evaluation.json" if self.run else None
        known = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation and evaluation.is_file() else {}
        measured = {name: {k: split[k] for k in ("mAP", "NDS")} for name, split in known.items()}
        return {"model": self.name, "classes": self.classes, "run": self.run and str(self.run), **measured}

    def __repr__(self) -> str:
        made, (height, width) = self.model.config, self.transform.size
        return (
            f"<SceneDetector {made['name']} ({made['preset']}), {len(self.classes)} classes: {', '.join(self.classes[:8])}; images of "
            f"{width} x {height}, threshold {self.threshold:.2f}, on {self.device}>"
        )

    @property
    def name(self) -> str:
        """The model's name, as in ``boxquery models``."""
        return self.model.config["name"]

    @property
    def transformer(self) -> SceneTransformer:
        return cast("SceneTransformer", self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def transform(self) -> SceneTransform:
        """From the images of a scene to the model's input."""
        return SceneTransform(self.preprocessing, *self.size, self.transformer.area)

    def to(self, device: str | torch.device) -> Self:
        self.model.to(device)
        return self

    def inputs(self, images: Sequence[Image.Image], lidar2img: np.ndarray) -> SceneBatch:
        """The images of one scene, with their calibration, as a batch for the model."""
        transform = self.transform
        pixels = normalize(transform.pixels(images), self.preprocessing)
        matrices = torch.from_numpy(transform.lidar2img(lidar2img, [image.size for image in images])).float()
        return SceneBatch(pixels[None], matrices[None], [], [0])

    @torch.inference_mode()
    def detect(self, batch: SceneBatch, *, one_label: bool = False) -> list[SceneDetections]:
        """Detections per scene of a batch, best first, as many as the paper has; ``one_label``: only the best class of each query."""
        out = self.model.eval()(*batch.to(self.device).inputs, last_only=True)
        found = self.model.postprocess(out, [], one_label=one_label)
        columns = [[one[name].cpu().numpy() for name in ("boxes", "scores", "labels")] for one in found]
        return [SceneDetections(boxes.astype(np.float64), scores.astype(np.float64), labels) for boxes, scores, labels in columns]

    def predict(
        self,
        images: Sequence[ImageSource],
        lidar2img: np.ndarray,
        *,
        threshold: float | None = None,
        max_detections: int | None = None,
        cameras: Sequence[str] = (),
    ) -> SceneResult:
        """Detect the objects of one scene; one class per query.

        Args:
            images: of the V cameras: paths, PIL images or RGB uint8 arrays [H, W, 3].
            lidar2img: [V, 4, 4], from the frame of the vehicle to the pixels of these images: (u * depth, v * depth, depth, 1).
            threshold: minimum score, 0..1; None: the detector's own.
            max_detections: most detections, the best ones; None: all.
            cameras: names of the cameras, for pictures.

        Raises ``UserError`` for an image that cannot be read, or matrices that do not belong to the images.
        """
        check_above_zero(max_detections=max_detections)
        pictures, matrices = [to_pil(image) for image in images], check_matrices(lidar2img, len(images))
        found = self.detect(self.inputs(pictures, matrices), one_label=True)[0]
        return self.result(found, pictures, matrices, threshold=threshold, max_detections=max_detections, cameras=cameras)

    def result(
        self, found: SceneDetections, images: list[Image.Image], lidar2img: np.ndarray, *, threshold: float | None = None,
        max_detections: int | None = None, cameras: Sequence[str] = (),
    ) -> SceneResult:  # fmt: skip
        """Detections at or above the threshold, with what they were found in."""
        check_threshold(threshold)
        kept = found.scores >= (self.threshold if threshold is None else threshold)
        boxes, scores, labels = (column[kept][:max_detections] for column in found[:3])
        return SceneResult(
            boxes, scores, labels, [self.classes[i] for i in labels], [self.ids[i] for i in labels], lidar2img, images, self.classes,
            tuple(cameras), float(max(map(abs, self.transformer.area[:2]))),
        )  # fmt: skip


def check_matrices(lidar2img: np.ndarray, views: int) -> np.ndarray:
    """The calibration as float64 [V, 4, 4]. Raises ``UserError`` where it is none of so many cameras."""
    matrices = np.asarray(lidar2img, np.float64)
    if matrices.shape != (views, 4, 4) or not np.isfinite(matrices).all():
        raise UserError(f"lidar2img {list(matrices.shape)} for {count(views, 'image')}: must be finite numbers [{views}, 4, 4]")
    return matrices
