"""A detector from an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from boxquery.data.preprocessing import Resize
from boxquery.errors import UserError
from boxquery.runtime.engines import Engine, open_file
from boxquery.runtime.nms import nms_per_class
from boxquery.runtime.predictor import Detections, Predictor


class ExportedDetector(Predictor):
    """An exported model with everything that detection needs beside it: ``predict`` as of ``boxquery.Detector``."""

    def __init__(self, engine: Engine):
        self.engine, self.record = engine, engine.record
        record = self.record
        super().__init__(record.classes, record.ids, Resize(record.preprocessing, record.size), record.threshold)

    @classmethod
    def open(cls, path: str | Path, *, device: str = "auto", threads: int | None = None) -> Self:
        """See ``boxquery.runtime.load``. Raises ``UserError`` for a model of scenes of several cameras."""
        engine = open_file(Path(path), device, threads)
        if engine.record.scenes is not None:
            kind = "finds 3-D boxes in scenes of several cameras"
            raise UserError(f"{path}: {engine.record.model} {kind}; give it such scenes (docs/surround.md), or take a model of images")
        return cls(engine)

    def __repr__(self) -> str:
        named = [name for name in self.classes if name is not None]
        names = ", ".join(named[:8]) + (", ..." if len(named) > 8 else "")
        height, width = self.resize.fixed or (self.image_size, self.image_size if self.preprocessing.square else "any")
        return (
            f"<ExportedDetector {self.name} ({self.record.precision}), {len(named)} classes: {names}; image size {height} x {width}, "
            f"threshold {self.threshold:.2f}, {self.engine.runtime} on {self.engine.device}>"
        )

    @property
    def name(self) -> str:
        return self.record.model

    @property
    def num_queries(self) -> int:
        return self.record.queries

    def detect(
        self,
        images: np.ndarray,
        sizes: Sequence[tuple[int, int]],
        *,
        top_k: int | None = None,
        one_label: bool = False,
        nms: float | None = None,
    ) -> list[Detections]:
        """See ``Predictor.detect``. Raises ``UserError`` for images of another size than the model was exported for."""
        if (fixed := self.resize.fixed) is not None and images.shape[-2:] != fixed:
            raise wrong_size(images, fixed)
        originals = np.array(sizes, np.int64).reshape(-1, 2)
        if one_label or self.record.has_no_object:
            columns = run(self.engine, ("boxes", "scores", "labels"), images, originals)
            found = [Detections(*(column[:top_k] for column in image)) for image in zip(*columns, strict=True)]
        else:
            count = top_k or self.record.top_k
            columns = run(self.engine, ("query_boxes", "class_scores"), images, originals)
            found = [best_classes(boxes, scores, count) for boxes, scores in zip(*columns, strict=True)]
        if nms is None:
            return found
        kept = [nms_per_class(*image, nms) for image in found]
        return [Detections(*(column[rows] for column in image)) for image, rows in zip(found, kept, strict=True)]


def wrong_size(images: np.ndarray, fixed: tuple[int, int]) -> UserError:
    """The error of images [..., h, w] that are not of the one size that a model was exported for."""
    given, wanted = ("x".join(map(str, size)) for size in (images.shape[-2:], fixed))
    return UserError(f"images of {given}: this model was exported for {wanted} alone")


def run(engine: Engine, names: Sequence[str], images: np.ndarray, beside: np.ndarray) -> list[np.ndarray]:
    """Outputs of a graph (see ``Run``). Raises ``UserError`` where they are no numbers, or labels of no class."""
    record, columns = engine.record, engine.run(names, images, beside)
    for column in columns:
        if not np.isfinite(column).all():
            raise UserError(
                f"{record.model}: its graph gives boxes or scores that are no finite numbers, in {record.precision}; "
                "export it again from its run, in fp32"
            )
        if column.dtype.kind == "i" and column.size and not 0 <= column.min() <= column.max() < len(record.classes):
            raise UserError(
                f"{record.model}: its graph gives labels beyond its {len(record.classes)} classes; export it again from its run"
            )
    return columns


def best_classes(boxes: np.ndarray, scores: np.ndarray, count: int) -> Detections:
    """The best pairs of query and class, of queries with ``boxes`` [Q, ...] and ``scores`` [Q, C]; of equal ones the first."""
    flat = scores.ravel()
    best = np.argsort(-flat, kind="stable")[:count]
    queries, labels = np.divmod(best, scores.shape[1])
    return Detections(boxes[queries], flat[best], labels)
