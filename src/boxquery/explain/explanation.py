"""An explanation of one image: what every query attended to and predicted, layer by layer, from the trace of one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.evaluation.alignment import covered
from boxquery.evaluation.coco_matching import iou
from boxquery.explain import rollout
from boxquery.explain.inference import run_model
from boxquery.explain.rivals import OVERLAP, Rival, find_rivals
from boxquery.explain.rollout import Cell
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.trace import Heatmap, Trace
from boxquery.runtime.predictor import ImageSource, to_pil


@dataclass(frozen=True, eq=False)
class Explanation:
    """What Q queries did on one image in L decoder layers. Boxes and points are in pixels of the upright image, not clipped.

    Attributes:
        image: RGB; ``path``: its file or another name, None if it has none.
        model: the model's name; ``classes``: names, None for a column without one.
        threshold: the minimum score of a detection.
        boxes: float32 [L, Q, 4] xyxy, predicted by each layer.
        scores, labels: float32 and int64 [L, Q], of each query's best class.
        references: float32, points [L, Q, 2] or xyxy boxes [L, Q, 4] that each layer starts from; None for DETR. If only some layers have
            boxes, a point is a box without size.
        found: the queries that are detections, best first.
        trace: of this image alone.
        chosen: the one query to explain, if there is one.
    """

    image: Image.Image
    model: str
    classes: list[str | None]
    threshold: float
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    references: np.ndarray | None
    found: list[int]
    trace: Trace = field(repr=False)
    path: str | None = None
    chosen: int | None = None

    @property
    def shown(self) -> list[int]:
        """The queries to explain: the chosen one, else the detections, else the one with the best score."""
        if self.chosen is not None:
            return [self.chosen]
        return self.found or [int(self.scores[-1].argmax())]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.image.height, self.image.width

    def name(self, query: int, layer: int = -1) -> str:
        """The class that the query predicts in a layer."""
        return str(self.classes[self.labels[layer, query]])

    def heatmap(self, query: int, layer: int = -1, size: tuple[int, int] | None = None) -> Heatmap:
        """What the query attends to in a decoder layer, as one map over the image that sums to one; default size: the image's."""
        return self.trace.layers[layer].heatmap(query, size or self.size)

    def heatmaps(self, queries: Sequence[int], layer: int = -1, size: tuple[int, int] | None = None, heads: bool = False) -> Heatmap:
        """The same for several queries, or for each of their heads: see ``LayerTrace.heatmaps``."""
        return self.trace.layers[layer].heatmaps(queries, size or self.size, heads=heads)

    def nearest(self, x: float, y: float) -> int:
        """The query whose last box is centred nearest to a point in pixels; on ties the one with the higher score."""
        if not (0 <= x <= self.image.width and 0 <= y <= self.image.height):
            raise UserError(f"({x:g}, {y:g}) is outside the image, which is {self.image.width} x {self.image.height} pixels")
        centres = (self.boxes[-1, :, :2] + self.boxes[-1, :, 2:]) / 2
        distance = np.hypot(centres[:, 0] - x, centres[:, 1] - y)
        return int(np.lexsort((-self.scores[-1], distance))[0])

    def at(self, box: np.ndarray) -> int:
        """The query for the object in a box [4] xyxy in pixels, such as a box of another model.

        It is the detection with the largest IoU if that is at least 0.5, else the query ``nearest`` to the box's centre.
        """
        overlap = iou(self.boxes[-1, self.found].astype(np.float64), box[None].astype(np.float64))[:, 0]
        if len(overlap) and overlap.max() >= OVERLAP:
            return self.found[int(overlap.argmax())]
        x, y = np.clip((box[:2] + box[2:]) / 2, 0, [self.image.width, self.image.height]).tolist()
        return self.nearest(x, y)

    def inside(self, query: int, heat: Tensor) -> float:
        """The share, 0..1, of a map [h, w] over the image that is inside the query's last box; a pixel counts by its covered part."""
        box, (h, w), heat = self._last_box(query), heat.shape, heat.double()
        inside = covered(h, h * box[None, 1::2])[0] @ heat @ covered(w, w * box[None, 0::2])[0]
        return float(inside / heat.sum().clamp(min=torch.finfo(heat.dtype).tiny))

    def share(self, query: int) -> float:
        """The share of the image, 0..1, that the query's last box covers, which is ``inside`` of a uniform map."""
        box = self._last_box(query)
        return float((box[2:] - box[:2]).prod())

    def _last_box(self, query: int) -> Tensor:
        """float64 [4]: xyxy, relative to the image and clipped to it."""
        return (torch.from_numpy(self.boxes[-1, query]).double() / torch.tensor([self.image.width, self.image.height] * 2)).clamp(0, 1)

    def choose(self, query: int) -> Explanation:
        """The same explanation for one query. Raises ``UserError`` if it does not exist."""
        queries = self.scores.shape[1]
        if not 0 <= query < queries:
            raise UserError(f"query {query}: the model has queries 0 to {queries - 1}")
        return replace(self, chosen=query)

    def present(self, query: int) -> int:
        """The number of decoder layers that the query is in: all, unless the model prunes queries between layers."""
        return sum(layer.alive is None or bool(layer.alive[0, query]) for layer in self.trace.layers)

    def rivals(self, query: int) -> list[Rival]:
        """The queries that competed with ``query`` for its object in some layer, and what became of them; the strongest first."""
        return self.all_rivals([query])[0]

    def all_rivals(self, queries: Sequence[int], most: int | None = None) -> list[list[Rival]]:
        """The same for several queries, all or the first ``most`` of each."""
        attention = np.stack([cast(Tensor, layer.self_attention)[0].mean(0).float().cpu().numpy() for layer in self.trace.layers])
        arrays = self.boxes, self.scores, self.labels, self.references, attention
        return find_rivals(queries, *arrays, self.classes, self.threshold, most)

    def cells(self, query: int, layer: int = -1, most: int = 5) -> list[Cell]:
        """The cells of the memory that the query attends to most in a decoder layer, over all levels; mean over heads."""
        return rollout.cells(self.trace, query, layer, most, self.size)

    def token_heatmap(self, token: int, layer: int = -1, size: tuple[int, int] | None = None) -> Heatmap:
        """What a token of the memory (``Cell.token``) attends to in an encoder layer. Raises ``UserError`` if the model has no encoder."""
        if not self.trace.encoder:
            raise UserError("the model has no encoder with attention, so its tokens attend to nothing")
        return self.trace.encoder[layer].heatmap(token, size or self.size)

    def origin(self, query: int, layer: int = -1, size: tuple[int, int] | None = None) -> Heatmap:
        """``heatmap`` traced through the last encoder layer to the image, as one map that sums to one.

        It is the sum over the cells that the query attends to, each as its share of the attention times what the cell's token attends to
        in the last encoder layer; without an encoder, ``heatmap``. Residual connections, earlier encoder layers and the receptive field of
        the backbone are not included.
        """
        if not self.trace.encoder:
            return self.heatmap(query, layer, size)
        found = rollout.attention_rollout(self.trace, [query], [layer], size or self.size)
        return Heatmap(found.map[0, 0], float(found.lost))

    def summary(self) -> dict[str, Any]:
        """Plain values: ``{"image", "width", "height", "model", "threshold", "layers", "queries", "chosen", "detections": [..]}``.

        A detection (or the chosen query) has ``query``, ``class``, ``score`` and ``box``; ``layers``, per decoder layer ``box``, ``class``,
        ``score`` and ``reference`` (None for DETR); ``cells``, those attended to most in the last layer; and ``rivals``. Boxes are xyxy in
        pixels.
        """
        layers, queries = self.scores.shape
        return {
            "image": self.path,
            "width": self.image.width,
            "height": self.image.height,
            "model": self.model,
            "threshold": self.threshold,
            "layers": layers,
            "queries": queries,
            "chosen": self.chosen,
            "detections": [self._detection(query) for query in (self.found if self.chosen is None else [self.chosen])],
        }

    def _detection(self, query: int) -> dict[str, Any]:
        layers = [
            {
                "class": self.name(query, layer),
                "score": float(self.scores[layer, query]),
                "box": self.boxes[layer, query].tolist(),
                "reference": None if self.references is None else self.references[layer, query].tolist(),
            }
            for layer in range(len(self.scores))
        ]
        last = {key: layers[-1][key] for key in ("class", "score", "box")}
        cells, rivals = ([each.summary() for each in found] for found in (self.cells(query), self.rivals(query)))
        return {"query": query, **last, "layers": layers, "cells": cells, "rivals": rivals}

    def table(self) -> Table:
        """A row per detection, or for the chosen query: class, box, score by layer, and what became of its rivals."""
        what = (
            f"query {self.chosen}"
            if self.chosen is not None
            else f"{len(self.found)} detections with a score of at least {self.threshold:.2f}"
        )
        table = Table(title=escape(f"{self.model} on {self.path or 'an image'}: {what}"), title_justify="left")
        for column in ("query", "class", "box", "score by layer", "rivals"):
            table.add_column(column, justify="right" if column == "query" else "left", overflow="fold")
        for query in self.found if self.chosen is None else [self.chosen]:
            box = " ".join(f"{value:.0f}" for value in self.boxes[-1, query])
            scores = " ".join(f"{value:.2f}" for value in self.scores[:, query])
            table.add_row(str(query), escape(self.name(query)), box, scores, _fates(self.rivals(query)))
        return table

    def show(self) -> None:
        """Print the table."""
        Console(highlight=False).print(self.table())


def _fates(rivals: Sequence[Rival], most: int = 4) -> str:
    """The rivals' numbers by fate, the strongest first."""
    parts = []
    for fate in dict.fromkeys(rival.fate for rival in rivals):
        queries = [str(rival.query) for rival in rivals if rival.fate == fate]
        parts.append(f"{fate}: {' '.join(queries[:most])}" + (f" and {len(queries) - most} more" if len(queries) > most else ""))
    return "; ".join(parts) or "-"


@torch.inference_mode()
def explain(detector: Detector, source: ImageSource, *, threshold: float | None = None) -> Explanation:
    """Run the detector on an image and keep what every query did.

    Args:
        source: a path, PIL image or RGB uint8 array [H, W, 3].
        threshold: minimum score of a detection, 0..1; default: the detector's own.

    Raises ``UserError`` for an image that cannot be read.
    """
    least = detector.min_score(threshold)
    image, model = to_pil(source), detector.transformer
    out = run_model(detector, detector.transform(image)[None].to(detector.device), trace=True)
    assert out.trace is not None
    best = model.scores(out.logits[:, 0]).max(-1)
    scores, labels = best.values.float().cpu().numpy(), best.indices.cpu().numpy()
    order = np.argsort(-scores[-1], kind="stable")
    return Explanation(
        image=image,
        model=model.config["name"],
        classes=detector.classes,
        threshold=least,
        boxes=_pixels(out.boxes[:, 0], image),
        scores=scores,
        labels=labels,
        references=_references([layer.reference for layer in out.trace.layers], image),
        found=[int(q) for q in order if scores[-1, q] >= least and scores[-1, q] > 0],
        trace=out.trace,
        path=str(source) if not isinstance(source, Image.Image | np.ndarray) else None,
    )


def _references(layers: Sequence[Tensor | None], image: Image.Image) -> np.ndarray | None:
    """Per layer [1, Q, 2 or 4] in [0, 1] -> in pixels [L, Q, 2], or [L, Q, 4] if any layer has boxes; None without references."""
    found = [reference[0] for reference in layers if reference is not None]
    if not found:
        return None
    width = max(reference.shape[-1] for reference in found)
    return _pixels(torch.stack([F.pad(reference, (0, width - reference.shape[-1])) for reference in found]), image)


def _pixels(places: Tensor, image: Image.Image) -> np.ndarray:
    """[..., 4] cxcywh or [..., 2] xy in [0, 1] -> [..., 4] xyxy or [..., 2] xy in pixels."""
    places = places.float().cpu()
    places = cxcywh_to_xyxy(places) if places.shape[-1] == 4 else places
    return (places * torch.tensor([image.width, image.height] * (places.shape[-1] // 2))).numpy()
