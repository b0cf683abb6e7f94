"""A model with its class names and preprocessing: images in, detections out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from boxquery.data.images import read_image
from boxquery.data.loading import collate
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.transforms import EvalTransform
from boxquery.errors import UserError
from boxquery.models import list_models
from boxquery.result import Result

if TYPE_CHECKING:
    from boxquery.models.base import DetectionTransformer
    from boxquery.models.interface import Model

ImageSource = str | Path | Image.Image | np.ndarray


class Detector:
    """A model with everything that detection needs beside it.

    Args:
        model: from ``create_model``.
        classes: class names, one per logit column; None for a column that has no name and is never predicted.
        ids: the data set's own category ids, parallel to ``classes``.
        preprocessing: how an image becomes the model's input.
        threshold: the default score threshold; 0.5 until an evaluation has found a better one.
    """

    def __init__(
        self, model: Model, classes: Sequence[str | None], ids: Sequence[int], preprocessing: Preprocessing, threshold: float = 0.5
    ):
        if not len(classes) == len(ids) == model.config["classes"]:
            raise UserError(f"the model has {model.config['classes']} classes, but {len(classes)} names and {len(ids)} ids were given")
        self.model, self.classes, self.ids = model, list(classes), list(ids)
        self.preprocessing, self.threshold = preprocessing, self.min_score(threshold)
        self.transform = EvalTransform(preprocessing)
        #: the run folder that it was loaded from, if any
        self.run: Path | None = None

    def summary(self) -> dict[str, Any]:
        """Model name, classes and, if it comes from a run, its AP: plain values."""
        evaluation = self.run / "evaluation.json" if self.run else None
        known = json.loads(evaluation.read_text(encoding="utf-8")) if evaluation and evaluation.is_file() else {}
        measured = {name: {k: split[k] for k in ("AP", "AP50", "AP75")} for name, split in known.items()}
        return {"model": self.model.config["name"], "classes": self.classes, "run": self.run and str(self.run), **measured}

    @property
    def image_size(self) -> int:
        return self.preprocessing.image_size

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
        if not self.model.has_queries:
            name, family = self.model.config["name"], ", ".join(list_models())
            raise UserError(f"{name} has no queries: this needs a model of the family ({family})")
        return cast("DetectionTransformer", self.model)

    def to(self, device: str | torch.device) -> Self:
        self.model.to(device)
        return self

    def predict(
        self, source: ImageSource | Iterable[ImageSource], *, threshold: float | None = None, batch_size: int = 1, top_k: int | None = None
    ) -> Any:
        """Detect objects; one label per query.

        Args:
            source: a path, PIL image or RGB uint8 array [H, W, 3] gives a ``Result``; a list gives a list; any other iterable gives a
                generator that holds one batch at a time.
            threshold: minimum score, 0..1; None: the detector's own.
            batch_size: images per batch.
            top_k: maximum number of detections per image; None: the paper's own number.

        Raises ``UserError`` for an image that cannot be read.
        """
        if isinstance(source, ImageSource):
            return next(self._stream([source], threshold, 1, top_k))
        stream = self._stream(source, threshold, batch_size, top_k)
        return list(stream) if isinstance(source, list | tuple) else stream

    def _stream(self, sources: Iterable[ImageSource], threshold: float | None, batch_size: int, top_k: int | None) -> Iterator[Result]:
        threshold = self.min_score(threshold)
        if batch_size < 1:
            raise UserError(f"batch_size={batch_size}: must be 1 or more")
        no_target = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
        sources = iter(sources)
        while group := list(islice(sources, batch_size)):
            images = [to_pil(source) for source in group]
            batch = collate([{"image": self.transform(image), "target": no_target, "index": i} for i, image in enumerate(images)])
            sizes = [(image.height, image.width) for image in images]
            detections = self.predict_batch(batch.images, batch.mask, sizes, top_k=top_k, one_label=True)
            for source, found, size in zip(group, detections, sizes, strict=True):
                yield self._result(found, threshold, size, str(source) if isinstance(source, str | Path) else None)

    def min_score(self, threshold: float | None) -> float:
        """The threshold; the detector's own for None. Raises ``UserError`` if it is not from 0 to 1."""
        threshold = self.threshold if threshold is None else threshold
        if not 0 <= threshold <= 1:
            raise UserError(f"threshold={threshold}: must be from 0 to 1")
        return threshold

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

    def _result(self, found: dict[str, Tensor], threshold: float, size: tuple[int, int], path: str | None) -> Result:
        keep = (found["scores"] >= threshold) & (found["scores"] > 0)
        boxes = found["boxes"][keep].float().cpu()
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, size[1])
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, size[0])
        labels = found["labels"][keep].cpu().numpy()
        return Result(
            boxes=boxes.numpy(),
            scores=found["scores"][keep].float().cpu().numpy(),
            labels=labels,
            names=[str(self.classes[i]) for i in labels],
            ids=[self.ids[i] for i in labels],
            size=size,
            path=path,
        )


def to_pil(source: ImageSource) -> Image.Image:
    """An RGB image from a path, a PIL image or an RGB uint8 array [H, W, 3]. Raises ``UserError``."""
    if isinstance(source, str | Path):
        return read_image(Path(source))
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise UserError(f"an array of {source.dtype} {list(source.shape)}: give RGB uint8 [H, W, 3]")
    return Image.fromarray(source)
