"""Faithfulness of maps: does the detection depend on the pixels that a map points to, and does it point at the object?

Deletion and insertion (Petsiuk et al. 2018, "RISE", arXiv:1806.07421; for detections Petsiuk et al. 2021, "D-RISE", arXiv:2006.03204):
pixels are removed, the highest of the map first, or inserted into an image without any, and the detection's score is tracked. With a
faithful map the score falls early and rises early. The pointing game (Zhang et al. 2016, "Top-down neural attention by excitation
backprop", arXiv:1608.00507; 2018 in IJCV): is the map's maximum inside the object's box?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import ImageFilter
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchvision.ops import box_iou

from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.evaluation.bootstrap import mean_over_images
from boxquery.evaluation.coco_matching import iou
from boxquery.evaluation.errors import IOU_RIGHT
from boxquery.evaluation.predictions import warn_skipped
from boxquery.explain.explanation import Explanation, explain
from boxquery.explain.inference import open_split, run_model
from boxquery.explain.relevance import relevances
from boxquery.parts.boxes import cxcywh_to_xyxy

if TYPE_CHECKING:
    from boxquery.data.dataset import Data

#: sigma of the blur that removes objects, relative to the image's short side
BLUR = 1 / 16
#: pixels tie within this relative tolerance
SAME = 1e-5
#: of pixels: by the map; by the detection's own box, from its centre outwards; by the map shifted to a random place
ORDERS = ("map", "box", "random")


@dataclass(frozen=True)
class Procedure:
    """How maps are measured.

    Attributes:
        kind: "attention": of the queries in a decoder ``layer``; "relevance": by gradients (see ``relevance``), of all layers.
        steps: a curve has steps + 1 points. At point k, (k / steps)^2 of the pixels are removed, since objects are small.
        seeds: random places of the control.
        tolerance: pixels of the image by which a maximum may miss the box. 0 here; 15 on images of 500 pixels in the paper, which would be
            most of an object on small images.
        batch_size: images per forward pass.
    """

    kind: Literal["attention", "relevance"] = "attention"
    layer: int = -1
    steps: int = 16
    seeds: int = 3
    tolerance: float = 0.0
    batch_size: int = 16

    def __post_init__(self) -> None:
        if self.kind not in ("attention", "relevance"):
            raise UserError(f'kind={self.kind!r}: must be "attention" or "relevance"')
        for name in ("steps", "seeds", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.tolerance < float("inf"):
            raise UserError(f"tolerance={self.tolerance}: must be a number of pixels, 0 or more")


@dataclass(frozen=True, eq=False)
class DetectionCurves:
    """Deletion and insertion curves of one detection.

    Attributes:
        query, name, score: the query, its class and score.
        deletion, insertion: for each of ``ORDERS`` float64 [steps + 1], the detection relative to that on the whole image (may exceed 1),
            with ``Faithfulness.fractions`` of the pixels removed or inserted; "random" is the mean over seeds.
    """

    query: int
    name: str
    score: float
    deletion: dict[str, np.ndarray]
    insertion: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Pointing:
    """The pointing game of the detections that found an object: the one of their class with the largest IoU, at least 0.5.

    Attributes:
        queries, objects: the detections, and the ground-truth boxes that they found.
        hits: float64 [n], the share of the map's maximum that is inside the box: 0 or 1 unless pixels tie, as those of a cell do.
        chance: float64 [n], the share of the image that the box covers, the expected hits of a random point.
    """

    queries: list[int]
    objects: list[int]
    hits: np.ndarray
    chance: np.ndarray


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """The faithfulness of the maps of one image.

    Attributes:
        procedure: how it was measured.
        fractions: float64 [steps + 1] from 0 to 1, the shares of pixels at the points of the curves.
        detections: one per query.
        pointing: None without ground truth.
    """

    procedure: Procedure
    fractions: np.ndarray
    detections: list[DetectionCurves]
    pointing: Pointing | None

    def areas(self) -> dict[str, dict[str, np.ndarray]]:
        """Areas under the curves, ``["deletion" or "insertion"][order]`` float64 [n]: low is good for deletion, high for insertion."""
        curves = {"deletion": [d.deletion for d in self.detections], "insertion": [d.insertion for d in self.detections]}
        return {
            what: {order: np.array([np.trapezoid(one[order], self.fractions) for one in each]) for order in ORDERS}
            for what, each in curves.items()
        }

    def summary(self) -> dict[str, Any]:
        """Means over the detections, as plain values."""
        areas = {what: {order: float(value.mean()) for order, value in each.items()} for what, each in self.areas().items()}
        pointing = None
        if (game := self.pointing) is not None:
            means = {name: float(value.mean()) if len(value) else None for name, value in (("hits", game.hits), ("chance", game.chance))}
            pointing = {"detections": len(game.hits), **means}
        return {**_of_maps(self.procedure), "detections": len(self.detections), **areas, "pointing": pointing}


@dataclass(frozen=True, eq=False)
class FaithfulnessOver:
    """The faithfulness of the maps of many images.

    Attributes:
        images: number of images; ``found``: those with a detection.
        skipped: a line per image whose pixels could not be read; these are in no count.
    """

    procedure: Procedure
    images: int
    found: list[Faithfulness]
    skipped: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Means over all detections as ``{"mean", "low", "high"}`` with 95 % intervals over resampled images, as plain values.

        Beside the area of every order there is the difference between the map and each control, on the same detections.
        """
        each = [one.areas() for one in self.found]
        means: dict[str, Any] = {}
        for what in ("deletion", "insertion"):
            values = {order: [areas[what][order] for areas in each] for order in ORDERS}
            for control in ORDERS[1:]:
                values[f"map - {control}"] = [a - b for a, b in zip(values["map"], values[control], strict=True)]
            means[what] = {name: mean_over_images(value) for name, value in values.items()}
        pointed = [one.pointing for one in self.found if one.pointing is not None]
        games = {"hits": [p.hits for p in pointed], "chance": [p.chance for p in pointed]}
        games["hits - chance"] = [p.hits - p.chance for p in pointed]
        count = {"images": self.images, "detections": sum(len(one.detections) for one in self.found)}
        pointing = {"detections": sum(len(p.hits) for p in pointed), **{name: mean_over_images(value) for name, value in games.items()}}
        return {**_of_maps(self.procedure), **count, **means, "pointing": pointing, "skipped": self.skipped}


def faithfulness(
    detector: Detector,
    explanation: Explanation,
    queries: Sequence[int] | None = None,
    truth: tuple[np.ndarray, np.ndarray] | None = None,
    procedure: Procedure | None = None,
) -> Faithfulness:
    """Measure the maps of one image.

    Removed pixels are replaced by the blurred image, with a sigma of a sixteenth of its short side: it keeps colours and brightness and has
    no edges, while a grey patch would be a square to a detector. Insertion starts from the blurred image.

    Tracked is the best prediction of the same class, by any query: its score times its IoU with the explained box, 0 if that is below 0.5,
    relative to the whole image.

    Of pixels that tie, as all of a cell do, those with higher surroundings go first. The random control shifts the same order cyclically,
    so it is as coarse and as connected as the map; single random pixels would be noise, which hurts any detector more.

    Args:
        explanation: by the same detector.
        queries: whose maps; default: the explanation's detections.
        truth: ground-truth boxes [N, 4] xyxy in pixels and labels [N], for the pointing game.
        procedure: default: ``Procedure()``.

    Raises ``UserError`` if there is no query, or one that does not exist.
    """
    procedure = procedure or Procedure()
    chosen = explanation.found if queries is None else list(queries)
    if not chosen:
        raise UserError(f"no query reaches the threshold {explanation.threshold:g} on this image; give queries or a lower threshold")
    if wrong := [q for q in chosen if not 0 <= q < explanation.boxes.shape[1]]:
        raise UserError(f"query {wrong[0]}: the model has {explanation.boxes.shape[1]} queries, 0 to {explanation.boxes.shape[1] - 1}")
    blur = ImageFilter.GaussianBlur(min(explanation.size) * BLUR)
    image, blurred = (detector.transform(each).to(detector.device) for each in (explanation.image, explanation.image.filter(blur)))
    maps = _maps(detector, explanation, chosen, (image.shape[-2], image.shape[-1]), procedure)
    fractions = (np.arange(procedure.steps + 1) / procedure.steps) ** 2
    detections = []
    for query, heat in zip(chosen, maps, strict=True):
        orders = {"map": [ranks(heat)], "box": [_box_ranks(explanation, query, heat.shape)]}
        orders["random"] = [_shifted(orders["map"][0], seed, query) for seed in range(procedure.seeds)]
        every = torch.from_numpy(np.stack([rank for each in orders.values() for rank in each])).to(detector.device)
        curves = _curves(image, blurred, every, fractions, _tracker(detector, explanation, query), procedure.batch_size)
        whole = curves[0, 0, 0]
        if not whole > 0:
            raise UserError(f"query {query}: the detector does not predict this detection; explain the image with the same detector")
        parts = np.split(curves / whole, np.cumsum([len(each) for each in orders.values()])[:-1], axis=1)
        deletion, insertion = ({o: part[i].mean(0) for o, part in zip(orders, parts, strict=True)} for i in (0, 1))
        detections.append(DetectionCurves(query, explanation.name(query), float(explanation.scores[-1, query]), deletion, insertion))
    pointing = None if truth is None else pointing_game(explanation, chosen, maps, *truth, tolerance=procedure.tolerance)
    return Faithfulness(procedure, fractions, detections, pointing)


def faithfulness_over(
    detector: Detector,
    data: str | Path | Data,
    *,
    split: str = "val",
    limit: int = 20,
    threshold: float | None = None,
    procedure: Procedure | None = None,
    strict: bool = False,
) -> FaithfulnessOver:
    """Measure the maps of all detections in the first ``limit`` images of a split.

    A detection takes 2 * (2 + seeds) * (steps - 1) + 2 forward passes. Classes are matched by name; ignored objects (crowds, "difficult")
    are not ground truth. An image whose pixels cannot be read is named on stderr and left out; with ``strict`` it is fatal.

    Raises ``UserError`` if the data lacks the split, if none of the images can be read or if there are no detections in them.
    """
    procedure = procedure or Procedure()
    if limit < 1:
        raise UserError(f"limit={limit}: must be at least 1")
    source, records = open_split(detector, data, split, strict)
    found, skipped = [], []
    for i in range(min(limit, len(records))):
        try:
            image = records.read(i)
        except UserError as error:
            if strict:
                raise
            skipped.append(error.line())
            warn_skipped(skipped[-1])
            continue
        explanation = explain(detector, image, threshold=threshold)
        if explanation.found:
            record = records[i]
            truth = record.boxes[~record.ignore], record.labels[~record.ignore]
            found.append(faithfulness(detector, explanation, truth=truth, procedure=procedure))
    images = min(limit, len(records)) - len(skipped)
    if skipped and not images:
        raise UserError(f"{source}: none of the first {len(skipped)} images of {split} can be read: {skipped[0]}")
    if not found:
        least = detector.min_score(threshold)
        raise UserError(f"{source}: nothing reaches the threshold {least:g} in {images} images of {split}; give a lower one")
    return FaithfulnessOver(procedure, images, found, skipped)


def pointing_game(
    explanation: Explanation, queries: Sequence[int], maps: np.ndarray, boxes: np.ndarray, labels: np.ndarray, *, tolerance: float = 0.0
) -> Pointing:
    """Whether each map [n, h, w] of the queries has its maximum in the ground-truth box that the query found.

    Args:
        boxes, labels: the ground truth, [N, 4] xyxy in pixels and [N]; a query that found none of it is left out.
        tolerance: pixels by which boxes grow on every side, for hits and for chance.
    """
    labels = np.asarray(labels)
    overlap = iou(explanation.boxes[-1, list(queries)].astype(np.float64), np.asarray(boxes, np.float64).reshape(-1, 4))
    overlap = np.where(explanation.labels[-1, list(queries), None] == labels[None], overlap, 0.0)
    place = [(i, int(row.argmax())) for i, row in enumerate(overlap) if len(row) and row.max() >= IOU_RIGHT]
    x, y = _pixel_centres(explanation, maps.shape[1:])
    hits, chance = [], []
    for i, number in place:
        x1, y1, x2, y2 = np.asarray(boxes[number], np.float64) + np.array([-1, -1, 1, 1]) * tolerance
        inside = ((y >= y1) & (y <= y2))[:, None] & ((x >= x1) & (x <= x2))[None]
        hits.append(inside[maps[i] >= maps[i].max() * (1 - SAME)].mean())
        chance.append(inside.mean())
    return Pointing([queries[i] for i, _ in place], [number for _, number in place], np.array(hits), np.array(chance))


def ranks(heat: np.ndarray) -> np.ndarray:
    """int64 [h, w]: 0 for the map's highest pixel; of pixels that tie, those with higher surroundings come first."""
    around = gaussian_filter(heat.astype(np.float64), min(heat.shape) * BLUR, mode="wrap")
    return np.lexsort((-_levelled(around).ravel(), -_levelled(heat).ravel())).argsort().reshape(heat.shape)


def _box_ranks(explanation: Explanation, query: int, size: tuple[int, ...]) -> np.ndarray:
    """The same for the query's last box: concentric frames of its shape, also beyond its edges."""
    x1, y1, x2, y2 = explanation.boxes[-1, query].astype(np.float64)
    x, y = _pixel_centres(explanation, size)
    across, down = np.abs(x - (x1 + x2) / 2) / (x2 - x1), np.abs(y - (y1 + y2) / 2) / (y2 - y1)
    return np.maximum(across[None], down[:, None]).ravel().argsort(kind="stable").argsort().reshape(size)


def _shifted(rank: np.ndarray, seed: int, query: int) -> np.ndarray:
    return np.roll(rank, np.random.default_rng([seed, query]).integers(rank.shape), (0, 1))


def _levelled(heat: np.ndarray) -> np.ndarray:
    """The map's logarithm without the last digits, in which pixels of one cell may differ."""
    return np.round(np.log(np.maximum(heat, np.finfo(np.float32).tiny)), 5)


def _pixel_centres(explanation: Explanation, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """x [w] and y [h] of a map's pixels, in pixels of the image."""
    height, width = explanation.size
    return (np.arange(size[1]) + 0.5) * width / size[1], (np.arange(size[0]) + 0.5) * height / size[0]


def _maps(detector: Detector, explanation: Explanation, queries: Sequence[int], size: tuple[int, int], procedure: Procedure) -> np.ndarray:
    """float32 [n, h, w]."""
    if procedure.kind == "relevance":
        return relevances(detector, explanation.image, queries, size=size).map.numpy()
    if not -len(explanation.boxes) <= procedure.layer < len(explanation.boxes):
        raise UserError(f"layer={procedure.layer}: the model has {len(explanation.boxes)} decoder layers, counted from 0")
    return explanation.heatmaps(queries, procedure.layer, size).map.numpy()


def _tracker(detector: Detector, explanation: Explanation, query: int) -> Callable[[Tensor], np.ndarray]:
    """A function images [B, 3, H, W] -> [B]: score times IoU of the best prediction of a detection's class."""
    height, width = explanation.size
    wanted = torch.from_numpy(explanation.boxes[-1, query])[None].to(detector.device)
    label, scale = int(explanation.labels[-1, query]), wanted.new_tensor([width, height, width, height])

    def track(images: Tensor) -> np.ndarray:
        out = run_model(detector, images, last_only=True)
        scores = detector.transformer.scores(out.logits[-1])[..., label]
        overlap = box_iou((cxcywh_to_xyxy(out.boxes[-1]) * scale).flatten(0, 1), wanted).view_as(scores)
        return torch.where(overlap >= IOU_RIGHT, scores * overlap, 0.0).amax(-1).double().cpu().numpy()

    return track


@torch.inference_mode()
def _curves(
    image: Tensor, blurred: Tensor, rank: Tensor, fractions: np.ndarray, track: Callable[[Tensor], np.ndarray], batch_size: int
) -> np.ndarray:
    """float64 [2, R, steps + 1]: deletion and insertion for each order [R, h, w] of the pixels, not yet relative to the whole image."""
    counts = [round(float(f) * rank[0].numel()) for f in fractions]
    jobs = [(what, r, step) for what in (0, 1) for r in range(len(rank)) for step in range(1, len(counts) - 1)]
    curves = np.zeros((2, len(rank), len(counts)))
    ends = track(torch.stack((image, blurred)))
    curves[:, :, 0], curves[:, :, -1] = ends[:, None], ends[::-1, None]
    for start in range(0, len(jobs), batch_size):
        group = jobs[start : start + batch_size]
        removed = [(rank[r] < counts[step]) == (what == 0) for what, r, step in group]
        changed = torch.stack([torch.where(each, blurred, image) for each in removed])
        for job, value in zip(group, track(changed), strict=True):
            curves[job] = value
    return curves


def _of_maps(procedure: Procedure) -> dict[str, Any]:
    return {"kind": procedure.kind, "layer": procedure.layer if procedure.kind == "attention" else None}
