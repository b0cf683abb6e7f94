"""Whether a map deserves belief: does the detection depend on the pixels that it names, and does it point at the object?

Deletion and insertion (Petsiuk et al. 2018, "RISE", arXiv:1806.07421; for detections Petsiuk et al. 2021, "D-RISE", arXiv:2006.03204):
pixels are taken away, the highest of the map first, and the detection is followed; or they are put back into an image that has none. A
faithful map makes the score fall early and come back early. The pointing game (Zhang et al. 2016, "Top-down neural attention by
excitation backprop", arXiv:1608.00507; 2018 in IJCV): is the map's maximum inside the object's box?
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
from boxquery.evaluation.coco_matching import iou
from boxquery.evaluation.errors import IOU_RIGHT
from boxquery.evaluation.predictions import warn_skipped
from boxquery.explain.explanation import Explanation, explain
from boxquery.explain.inference import answer, records_of
from boxquery.explain.relevance import relevances
from boxquery.parts.boxes import cxcywh_to_xyxy

if TYPE_CHECKING:
    from boxquery.data.dataset import Data

#: the blur that takes objects away, as a share of the image's short side
BLUR = 1 / 16
#: share of a maximum by which pixels may fall short of it and still tie
SAME = 1e-5
#: in which pixels go: by the map; by the detection's own box, from its middle outwards; by the same map moved to a random place
ORDERS = ("map", "box", "random")
#: how often images are drawn anew for an interval that holds 95 % of the means
DRAWS, TAILS = 2000, (2.5, 97.5)


@dataclass(frozen=True)
class Procedure:
    """How maps are judged.

    Attributes:
        kind: "attention": what the queries read in a decoder ``layer``; "relevance": the gradient's opinion (``relevance``), of no layer.
        steps: points of a curve less one. Point k has (k / steps)^2 of the pixels taken: objects are small, so the first steps are.
        seeds: random places for the control.
        tolerance: by how many pixels of the image a maximum may miss the box. 0 here; the paper had 15 on images of 500 pixels, which on
            small images is most of an object.
        batch_size: images at once.
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
class Followed:
    """One detection while its pixels go and come.

    Attributes:
        query, name, score: which it is, its class and its score.
        deletion, insertion: for each of ``ORDERS`` float64 [steps + 1], the share of the detection that is left (it may exceed 1), at the
            share of pixels taken away, or put back, that ``Faithfulness.fractions`` says; "random" is the mean over seeds.
    """

    query: int
    name: str
    score: float
    deletion: dict[str, np.ndarray]
    insertion: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Pointing:
    """The pointing game of the detections that found an object: same class, IoU of at least 0.5, the box that overlaps most.

    Attributes:
        queries, objects: which detection, and which truth box it found.
        hits: float64 [n], the share of the map's maximum that is inside the box: 0 or 1 unless pixels tie, as those of a cell do.
        chance: float64 [n], the share of the image that the box fills: what a random point would get.
    """

    queries: list[int]
    objects: list[int]
    hits: np.ndarray
    chance: np.ndarray


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """The maps of one image, judged.

    Attributes:
        procedure: how.
        fractions: float64 [steps + 1] from 0 to 1, the shares of pixels at which curves were measured.
        detections: one for each query.
        pointing: None where no truth was given.
    """

    procedure: Procedure
    fractions: np.ndarray
    detections: list[Followed]
    pointing: Pointing | None

    def areas(self) -> dict[str, dict[str, np.ndarray]]:
        """Areas under the curves, ``["deletion" or "insertion"][order]`` float64 [n]: low is faithful for deletion, high for insertion."""
        curves = {"deletion": [d.deletion for d in self.detections], "insertion": [d.insertion for d in self.detections]}
        return {
            what: {order: np.array([np.trapezoid(one[order], self.fractions) for one in each]) for order in ORDERS}
            for what, each in curves.items()
        }

    def summary(self) -> dict[str, Any]:
        """Plain means over the detections."""
        areas = {what: {order: float(value.mean()) for order, value in each.items()} for what, each in self.areas().items()}
        return {**_said(self.procedure), "detections": len(self.detections), **areas, "pointing": _pointed(self.pointing)}


@dataclass(frozen=True, eq=False)
class FaithfulnessOver:
    """The maps of many images, judged.

    Attributes:
        images: how many were looked at; ``found``: those of them with a detection.
        skipped: a line for each image whose pixels could not be read; they are in no count.
    """

    procedure: Procedure
    images: int
    found: list[Faithfulness]
    skipped: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Means over all detections as ``{"mean", "low", "high"}``; the interval is of images drawn anew (95 %, bootstrap).

        Beside every order's area stands the map's less each control's: the same detections, so its interval is the one to judge by.
        """
        each = [one.areas() for one in self.found]
        means: dict[str, Any] = {}
        for what in ("deletion", "insertion"):
            values = {order: [areas[what][order] for areas in each] for order in ORDERS}
            for control in ORDERS[1:]:
                values[f"map - {control}"] = [a - b for a, b in zip(values["map"], values[control], strict=True)]
            means[what] = {name: bootstrap(value) for name, value in values.items()}
        pointed = [one.pointing for one in self.found if one.pointing is not None]
        games = {"hits": [p.hits for p in pointed], "chance": [p.chance for p in pointed]}
        games["hits - chance"] = [p.hits - p.chance for p in pointed]
        count = {"images": self.images, "detections": sum(len(one.detections) for one in self.found)}
        pointing = {"detections": sum(len(p.hits) for p in pointed), **{name: bootstrap(value) for name, value in games.items()}}
        return {**_said(self.procedure), **count, **means, "pointing": pointing, "skipped": self.skipped}


def bootstrap(groups: Sequence[np.ndarray]) -> dict[str, float | None]:
    """The mean of all values, and between what it stays when groups (images) are drawn anew; None where there is no value."""
    groups = [group for group in groups if len(group)]
    if not groups:
        return {"mean": None, "low": None, "high": None}
    totals, counts = np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])
    drawn = np.random.default_rng(0).integers(len(groups), size=(DRAWS, len(groups)))
    low, high = np.percentile(totals[drawn].sum(1) / counts[drawn].sum(1), TAILS)
    return {"mean": float(totals.sum() / counts.sum()), "low": float(low), "high": float(high)}


def faithfulness(
    detector: Detector,
    explanation: Explanation,
    queries: Sequence[int] | None = None,
    truth: tuple[np.ndarray, np.ndarray] | None = None,
    procedure: Procedure | None = None,
) -> Faithfulness:
    """Judge the maps of one image.

    What is taken away is replaced by the image itself, blurred over a sixteenth of its short side: it keeps colours and light, and brings
    no edges of its own, as a grey patch would, which is a square to a detector. Insertion begins with the blurred image.

    Followed is the best answer of the same class: its score times its IoU with the box that was explained, 0 where that is below 0.5,
    as a share of what the whole image gives. Queries may take over from each other.

    Among pixels that tie (a cell's all do) those go first around which the map is higher. The random control moves the same order
    around, over the edges: as coarse and as connected as the map, in no particular place; single pixels at random would make noise, which
    hurts any detector more.

    Args:
        explanation: by the same detector.
        queries: whose maps; None: the explanation's detections.
        truth: the image's true boxes [N, 4] xyxy in pixels and labels [N], for the pointing game.
        procedure: None: ``Procedure()``.

    Raises ``UserError`` where there is no query, or one that does not exist.
    """
    procedure = procedure or Procedure()
    chosen = explanation.found if queries is None else list(queries)
    if not chosen:
        raise UserError(f"no query reaches the threshold {explanation.threshold:g} on this image; give queries or a lower threshold")
    if wrong := [q for q in chosen if not 0 <= q < explanation.boxes.shape[1]]:
        raise UserError(f"query {wrong[0]}: the model has {explanation.boxes.shape[1]} queries, 0 to {explanation.boxes.shape[1] - 1}")
    blurred = explanation.image.filter(ImageFilter.GaussianBlur(min(explanation.size) * BLUR))
    image, ground = (detector.transform(each).to(detector.device) for each in (explanation.image, blurred))
    maps = _maps(detector, explanation, chosen, (image.shape[-2], image.shape[-1]), procedure)
    fractions = (np.arange(procedure.steps + 1) / procedure.steps) ** 2
    followed = []
    for query, heat in zip(chosen, maps, strict=True):
        orders = {"map": [ranks(heat)], "box": [_box_ranks(explanation, query, heat.shape)]}
        orders["random"] = [_moved(orders["map"][0], seed, query) for seed in range(procedure.seeds)]
        every = torch.from_numpy(np.stack([rank for each in orders.values() for rank in each])).to(detector.device)
        curves = _curves(image, ground, every, fractions, _answer(detector, explanation, query), procedure.batch_size)
        whole = curves[0, 0, 0]
        if not whole > 0:
            raise UserError(f"query {query}: the detector does not give this detection; explain the image with the same detector")
        parts = np.split(curves / whole, np.cumsum([len(each) for each in orders.values()])[:-1], axis=1)
        deletion, insertion = ({o: part[i].mean(0) for o, part in zip(orders, parts, strict=True)} for i in (0, 1))
        followed.append(Followed(query, explanation.name(query), float(explanation.scores[-1, query]), deletion, insertion))
    pointing = None if truth is None else pointing_game(explanation, chosen, maps, *truth, tolerance=procedure.tolerance)
    return Faithfulness(procedure, fractions, followed, pointing)


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
    """Judge the maps of all detections in the first ``limit`` images of a split.

    One detection takes 2 * (2 + seeds) * (steps - 1) + 2 images through the model. Classes are matched by name; ignored objects (crowds,
    "difficult") are no truth. An image whose pixels cannot be read is named on stderr and left out; with ``strict`` it is fatal.

    Raises ``UserError`` where the data lacks the split, none of the images can be read or nothing is found in them.
    """
    procedure = procedure or Procedure()
    if limit < 1:
        raise UserError(f"limit={limit}: must be at least 1")
    source, records = records_of(detector, data, split, strict)
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
    """Does each map [n, h, w] of the queries have its maximum in the truth box that the query found?

    Args:
        boxes, labels: the truth, [N, 4] xyxy in pixels and [N]; a query that found none of it does not play.
        tolerance: pixels by which boxes are grown on every side, for hits and for chance.
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
    """int64 [h, w]: 0 for the pixel of the map that goes first; of pixels that tie, those with the higher surroundings do."""
    around = gaussian_filter(heat.astype(np.float64), min(heat.shape) * BLUR, mode="wrap")
    return _places(np.lexsort((-_levelled(around).ravel(), -_levelled(heat).ravel()))).reshape(heat.shape)


def _box_ranks(explanation: Explanation, query: int, size: tuple[int, ...]) -> np.ndarray:
    """The same for the query's last box: frames around its centre, its own shape, beyond its edges too."""
    x1, y1, x2, y2 = explanation.boxes[-1, query].astype(np.float64)
    x, y = _pixel_centres(explanation, size)
    across, down = np.abs(x - (x1 + x2) / 2) / (x2 - x1), np.abs(y - (y1 + y2) / 2) / (y2 - y1)
    return _places(np.maximum(across[None], down[:, None]).ravel().argsort(kind="stable")).reshape(size)


def _moved(rank: np.ndarray, seed: int, query: int) -> np.ndarray:
    h, w = rank.shape
    down, across = np.random.default_rng([seed, query]).integers((h, w))
    return np.roll(rank, (down, across), (0, 1))


def _places(order: np.ndarray) -> np.ndarray:
    """The inverse of a permutation."""
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank


def _levelled(heat: np.ndarray) -> np.ndarray:
    """The map's logarithm without the last digits, in which the pixels of a cell may differ."""
    return np.round(np.log(np.maximum(heat, np.finfo(np.float32).tiny)), 5)


def _pixel_centres(explanation: Explanation, size: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """x [w] and y [h], in pixels of the image, of a map's pixels."""
    height, width = explanation.size
    return (np.arange(size[1]) + 0.5) * width / size[1], (np.arange(size[0]) + 0.5) * height / size[0]


def _maps(detector: Detector, explanation: Explanation, queries: Sequence[int], size: tuple[int, int], procedure: Procedure) -> np.ndarray:
    """float32 [n, h, w]."""
    if procedure.kind == "relevance":
        return relevances(detector, explanation.image, queries, size=size).map.numpy()
    if not -len(explanation.boxes) <= procedure.layer < len(explanation.boxes):
        raise UserError(f"layer={procedure.layer}: the model has {len(explanation.boxes)} decoder layers, counted from 0")
    return explanation.heatmaps(queries, procedure.layer, size).map.numpy()


def _answer(detector: Detector, explanation: Explanation, query: int) -> Callable[[Tensor], np.ndarray]:
    """What follows a detection: images [B, 3, H, W] -> [B], score times IoU of the best answer of its class."""
    height, width = explanation.size
    wanted = torch.from_numpy(explanation.boxes[-1, query])[None].to(detector.device)
    label, scale = int(explanation.labels[-1, query]), wanted.new_tensor([width, height, width, height])

    def follow(images: Tensor) -> np.ndarray:
        out = answer(detector, images, last_only=True)
        scores = detector.transformer.scores(out.logits[-1])[..., label]
        overlap = box_iou((cxcywh_to_xyxy(out.boxes[-1]) * scale).flatten(0, 1), wanted).view_as(scores)
        return torch.where(overlap >= IOU_RIGHT, scores * overlap, 0.0).amax(-1).double().cpu().numpy()

    return follow


@torch.inference_mode()
def _curves(
    image: Tensor, ground: Tensor, rank: Tensor, fractions: np.ndarray, follow: Callable[[Tensor], np.ndarray], batch_size: int
) -> np.ndarray:
    """float64 [2, R, steps + 1]: deletion and insertion in each order [R, h, w] of the pixels, not yet divided by the whole."""
    counts = [round(float(f) * rank[0].numel()) for f in fractions]
    jobs = [(what, r, step) for what in (0, 1) for r in range(len(rank)) for step in range(1, len(counts) - 1)]
    curves = np.zeros((2, len(rank), len(counts)))
    ends = follow(torch.stack((image, ground)))
    curves[:, :, 0], curves[:, :, -1] = ends[:, None], ends[::-1, None]
    for start in range(0, len(jobs), batch_size):
        group = jobs[start : start + batch_size]
        changed = [_mixed(image, ground, rank[r] < counts[step], deleted=what == 0) for what, r, step in group]
        for job, value in zip(group, follow(torch.stack(changed)), strict=True):
            curves[job] = value
    return curves


def _mixed(image: Tensor, ground: Tensor, taken: Tensor, deleted: bool) -> Tensor:
    return torch.where(taken, ground, image) if deleted else torch.where(taken, image, ground)


def _said(procedure: Procedure) -> dict[str, Any]:
    return {"kind": procedure.kind, "layer": procedure.layer if procedure.kind == "attention" else None}


def _pointed(pointing: Pointing | None) -> dict[str, Any] | None:
    if pointing is None:
        return None
    mean = {"hits": pointing.hits, "chance": pointing.chance}
    return {"detections": len(pointing.hits), **{name: float(v.mean()) if len(v) else None for name, v in mean.items()}}
