"""A model of several cameras with its class names and preprocessing: the images of a scene in, 3-D boxes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from boxquery.data.preprocessing import Preprocessing
from boxquery.data.scenes.loading import SceneTransform
from boxquery.data.scenes.records import SceneDetections
from boxquery.data.scenes.resize import SceneResize
from boxquery.data.transforms import normalize
from boxquery.errors import UserError
from boxquery.limits import DEFAULT_THRESHOLD
from boxquery.runtime.scene_predictor import ScenePredictor

if TYPE_CHECKING:
    from boxquery.models.interface import Model
    from boxquery.models.scenes.base import SceneTransformer


class SceneDetector(ScenePredictor):
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
        self.model = model
        super().__init__(classes, ids, SceneResize(preprocessing, (size[0], size[1])), self.transformer.area, threshold)

    def summary(self) -> dict[str, Any]:
        """Model name, classes and, if it comes from a run, its mAP: plain values."""
        evaluation = self.run / "evaluation.json" if self.run else None
        known = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation and evaluation.is_file() else {}
        measured = {name: {k: split[k] for k in ("mAP", "NDS")} for name, split in known.items()}
        return {"model": self.name, "classes": self.classes, "run": self.run and str(self.run), **measured}

    def __repr__(self) -> str:
        made, (height, width) = self.model.config, self.resize.size
        return (
            f"<SceneDetector {made['name']} ({made['preset']}), {len(self.classes)} classes: {', '.join(self.classes[:8])}; images of "
            f"{width} x {height}, threshold {self.threshold:.2f}, on {self.device}>"
        )

    @property
    def name(self) -> str:
        return self.model.config["name"]

    @property
    def cameras(self) -> int | None:
        return self.model.config["options"].get("cameras")

    @property
    def transformer(self) -> SceneTransformer:
        return cast("SceneTransformer", self.model)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def transform(self) -> SceneTransform:
        """From the images of a scene to the model's input, normalised."""
        return SceneTransform(self.preprocessing, *self.resize.images, self.area)

    def to(self, device: str | torch.device) -> Self:
        self.model.to(device)
        return self

    def inputs_of(self, images: np.ndarray, lidar2img: np.ndarray) -> tuple[Tensor, Tensor]:
        """What ``detect`` is given as the model takes it, on its device."""
        pixels = torch.from_numpy(images).to(self.device)
        return normalize(pixels, self.preprocessing), torch.from_numpy(lidar2img).to(self.device, torch.float32)

    @torch.inference_mode()
    def detect(self, images: np.ndarray, lidar2img: np.ndarray, *, one_label: bool = False) -> list[SceneDetections]:
        """See ``ScenePredictor.detect``."""
        self.check_views(images)
        out = self.model.eval()(*self.inputs_of(images, lidar2img), last_only=True)
        found = self.model.postprocess(out, [], one_label=one_label)
        columns = [[one[name].cpu().numpy() for name in ("boxes", "scores", "labels")] for one in found]
        return [SceneDetections(boxes.astype(np.float64), scores.astype(np.float64), labels) for boxes, scores, labels in columns]
