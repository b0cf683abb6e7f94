"""A model with its class names and preprocessing: images in, detections out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from boxquery.data.preprocessing import Preprocessing, Resize
from boxquery.data.transforms import EvalTransform, normalize
from boxquery.errors import UserError
from boxquery.limits import DEFAULT_THRESHOLD
from boxquery.models import list_models
from boxquery.runtime.predictor import Detections, Predictor

if TYPE_CHECKING:
    from boxquery.models.base import DetectionTransformer
    from boxquery.models.interface import Model


class Detector(Predictor):
    """A model with everything that detection needs beside it.

    Args:
        model: from ``create_model``.
        classes: class names, one per logit column; None for a column that has no name and is never predicted.
        ids: the data set's own category ids, parallel to ``classes``.
        preprocessing: how an image becomes the model's input.
        threshold: the default score threshold; 0.5 until an evaluation has found a better one.
    """

    def __init__(
        self,
        model: Model,
        classes: Sequence[str | None],
        ids: Sequence[int],
        preprocessing: Preprocessing,
        threshold: float = DEFAULT_THRESHOLD,
    ):
        if not len(classes) == len(ids) == model.config["classes"]:
            raise UserError(f"the model has {model.config['classes']} classes, but {len(classes)} names and {len(ids)} ids were given")
        super().__init__(classes, ids, Resize(preprocessing), threshold)
        self.model = model

    def summary(self) -> dict[str, Any]:
        """Model name, classes and, if it comes from a run, its AP: plain values."""
        evaluation = self.run / "evaluation.json" if self.run else None
        known = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation and evaluation.is_file() else {}
        measured = {name: {k: split[k] for k in ("AP", "AP50", "AP75")} for name, split in known.items()}
        return {"model": self.name, "classes": self.classes, "run": self.run and str(self.run), **measured}

    def __repr__(self) -> str:
        named = [name for name in self.classes if name is not None]
        names = ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")
        made = self.model.config
        return (
            f"<Detector {made['name']} ({made['preset']}), {len(named)} classes: {names}; image size {self.image_size}, "
            f"threshold {self.threshold:.2f}, on {self.device}>"
        )

    @property
    def name(self) -> str:
        return self.model.config["name"]

    @property
    def num_queries(self) -> int:
        return self.model.num_queries_per_layer[-1]

    @property
    def has_queries(self) -> bool:
        return self.model.has_queries

    @property
    def transform(self) -> EvalTransform:
        """From an upright RGB image to the model's input float32 [3, h, w]."""
        return EvalTransform(self.preprocessing)

    @property
    def unnamed(self) -> list[int]:
        """Logit columns without a class name."""
        return [i for i, name in enumerate(self.classes) if name is None]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def transformer(self) -> DetectionTransformer:
        """The model, if it is a detection transformer. Raises ``UserError`` if it is a baseline, which has no queries."""
        if not self.has_queries:
            family = ", ".join(list_models())
            raise UserError(f"{self.name} has no queries: this needs a model of the family ({family})")
        return cast("DetectionTransformer", self.model)

    def to(self, device: str | torch.device) -> Self:
        self.model.to(device)
        return self

    def inputs(self, pixels: Tensor) -> Tensor:
        """Resized pixels uint8 [B, 3, h, w] as the model takes them, on its device."""
        return normalize(pixels.to(self.device), self.preprocessing)

    def detect(
        self,
        images: np.ndarray,
        sizes: list[tuple[int, int]],
        *,
        top_k: int | None = None,
        one_label: bool = False,
        nms: float | None = None,
    ) -> list[Detections]:
        """See ``Predictor.detect``."""
        pixels = self.inputs(torch.from_numpy(images))
        found = self.predict_batch(pixels, None, sizes, top_k=top_k, one_label=one_label, nms=nms)
        return [Detections(*(image[name].cpu().numpy() for name in Detections._fields)) for image in found]

    @torch.inference_mode()
    def predict_batch(
        self,
        images: Tensor,
        mask: Tensor | None,
        sizes: list[tuple[int, int]],
        *,
        top_k: int | None = None,
        one_label: bool = False,
        nms: float | None = None,
    ) -> list[dict[str, Tensor]]:
        """Detections of a preprocessed batch, in pixels of the original images: see ``Model.postprocess``."""
        mask = None if mask is None else mask.to(self.device)
        out = self.hide_unnamed(self.model.eval()(images.to(self.device), mask, last_only=True))
        return self.model.postprocess(out, sizes, top_k=top_k, one_label=one_label, nms=nms)

    def hide_unnamed(self, out: Any) -> Any:
        """The output of a model, with logit -inf in the columns without a class name."""
        out.logits[..., self.unnamed] = -torch.inf
        return out
