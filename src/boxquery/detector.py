"""A model with its class names and preprocessing: images in, detections out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from boxquery.data.classes import match_names
from boxquery.data.images import read_image
from boxquery.data.loading import collate
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.transforms import EvalTransform
from boxquery.errors import UserError
from boxquery.flags import DEFAULT_THRESHOLD, check_above_zero, check_nms, check_threshold
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
        self,
        model: Model,
        classes: Sequence[str | None],
        ids: Sequence[int],
        preprocessing: Preprocessing,
        threshold: float = DEFAULT_THRESHOLD,
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

    def __repr__(self) -> str:
        named = [name for name in self.classes if name is not None]
        names = ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")
        made = self.model.config
        return (
            f"<Detector {made['name']} ({made['preset']}), {len(named)} classes: {names}; image size {self.image_size}, "
            f"threshold {self.threshold:.2f}, on {self.device}>"
        )

    @property
    def image_size(self) -> int:
        """Short side of the model's input in pixels, or the side of the square; may be set."""
        return self.preprocessing.image_size

    @image_size.setter
    def image_size(self, pixels: int) -> None:
        check_above_zero(image_size=pixels)
        self.preprocessing = replace(self.preprocessing, image_size=pixels)
        self.transform = EvalTransform(self.preprocessing)

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
        self,
        source: ImageSource | Iterable[ImageSource],
        *,
        threshold: float | None = None,
        nms: float | None = None,
        classes: Sequence[str] | None = None,
        max_detections: int | None = None,
        batch_size: int = 1,
    ) -> Any:
        """Detect objects; one label per query.

        Args:
            source: a path, PIL image or RGB uint8 array [H, W, 3] gives a ``Result``; a list gives a list; any other iterable gives a
                generator that holds one batch at a time.
            threshold: minimum score, 0..1; None: the detector's own.
            nms: IoU threshold of class-wise NMS (1 disables it); None: the model's own (none for DETRs).
            classes: names of the only classes to keep; None: all.
            max_detections: most detections per image; None: as many as the model has queries, or a baseline's own.
            batch_size: images of one shape that run together, of so many that are read at a time.

        Raises ``UserError`` for an image that cannot be read.
        """
        check_above_zero(batch_size=batch_size, max_detections=max_detections)
        check_nms(nms)
        kept = None if classes is None else torch.tensor(self.labels_of(classes))
        chosen = _Chosen(self.min_score(threshold), nms, kept, max_detections)
        if isinstance(source, ImageSource):
            return next(self._stream([source], chosen, 1))
        stream = self._stream(source, chosen, batch_size)
        return list(stream) if isinstance(source, list | tuple) else stream

    def _stream(self, sources: Iterable[ImageSource], chosen: _Chosen, batch_size: int) -> Iterator[Result]:
        sources = iter(sources)
        while group := list(islice(sources, batch_size)):
            images = [to_pil(source) for source in group]
            yield from map(self._result, group, images, self._detect(images, chosen), repeat(chosen))

    def _detect(self, images: list[Image.Image], chosen: _Chosen) -> list[dict[str, Tensor]]:
        """Detections per image. Only images of one shape run together: none is padded, so what is found in it depends on it alone."""
        top_k = chosen.max_detections and max(chosen.max_detections, self.model.num_queries_per_layer[-1])
        no_target = {"labels": torch.zeros(0, dtype=torch.int64), "boxes": torch.zeros(0, 4)}
        by_shape: dict[tuple[int, int], list[int]] = {}
        for i, image in enumerate(images):
            by_shape.setdefault(self.preprocessing.size(image.height, image.width), []).append(i)
        found: dict[int, dict[str, Tensor]] = {}
        for alike in by_shape.values():
            batch = collate([{"image": self.transform(images[i]), "target": no_target, "index": i} for i in alike])
            sizes = [(images[i].height, images[i].width) for i in alike]
            found |= zip(
                alike, self.predict_batch(batch.images, batch.mask, sizes, top_k=top_k, one_label=True, nms=chosen.nms), strict=True
            )
        return [found[i] for i in range(len(images))]

    def labels_of(self, names: Sequence[str]) -> list[int]:
        """Labels of class names, which match without case, space, hyphen and underscore. Raises ``UserError`` for one that is unknown."""
        names = [names] if isinstance(names, str) else list(names)
        labels = match_names(names, self.classes)
        if unknown := [name for name, label in zip(names, labels, strict=True) if label < 0]:
            known = [name for name in self.classes if name is not None]
            close = get_close_matches(unknown[0], known, 1)
            meant = f" (did you mean {close[0]}?)" if close else ""
            raise UserError(f"classes: the detector does not know {', '.join(unknown)}{meant}; it knows {', '.join(known)}")
        return labels

    def min_score(self, threshold: float | None) -> float:
        """The threshold; the detector's own for None. Raises ``UserError`` if it is not from 0 to 1."""
        check_threshold(threshold)
        return self.threshold if threshold is None else threshold

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

    def _result(self, source: ImageSource, image: Image.Image, found: dict[str, Tensor], chosen: _Chosen) -> Result:
        found = {name: values.cpu() for name, values in found.items()}
        keep = (found["scores"] >= chosen.threshold) & (found["scores"] > 0)
        if chosen.labels is not None:
            keep &= torch.isin(found["labels"], chosen.labels)
        boxes, scores, labels = (found[name][keep][: chosen.max_detections] for name in ("boxes", "scores", "labels"))
        limits = torch.tensor([image.width, image.height] * 2)
        path = str(source) if isinstance(source, str | Path) else None
        return Result(
            boxes=boxes.float().clamp(min=torch.zeros(()), max=limits).numpy(),
            scores=scores.float().numpy(),
            labels=labels.numpy(),
            names=[str(self.classes[i]) for i in labels],
            ids=[self.ids[i] for i in labels],
            size=(image.height, image.width),
            path=path,
            image=image if path is None else None,
        )


class _Chosen(NamedTuple):
    """Which detections are kept, see ``Detector.predict``; ``labels`` [C'] or None."""

    threshold: float
    nms: float | None
    labels: Tensor | None
    max_detections: int | None


def to_pil(source: ImageSource) -> Image.Image:
    """An RGB image from a path, a PIL image or an RGB uint8 array [H, W, 3]. Raises ``UserError``."""
    if isinstance(source, str | Path):
        return read_image(Path(source))
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or 0 in source.shape:
        raise UserError(f"an array of {source.dtype} {list(source.shape)}: give RGB uint8 [H, W, 3]")
    return Image.fromarray(source)
