"""Alignment: how much of a query's cross-attention is on its object.

DETR is said to learn slowly because at first a query's cross-attention is spread evenly over the image instead of being on its object. This
measures it, for every kind of attention alike, from the trace of an ordinary forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from boxquery.data.dataset import AnySplit, Split
from boxquery.data.loading import DetectionDataset, collate
from boxquery.data.transforms import ResizeTransform
from boxquery.detector import Detector
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.output import Output
from boxquery.parts.trace import LayerTrace


@dataclass(frozen=True, eq=False)
class Alignment:
    """Cross-attention of the queries of N objects in each of L decoder layers. An object's query is the one that it is matched to in the
    last layer, for all layers, so that layers differ in the attention and not in the query.

    An object without a query (there are more objects than queries) has NaN everywhere and -1 in ``query``.

    Attributes:
        inside: float64 [L, N], the share of the cross-attention inside the object's box, 0..1. A cell counts by the share of it that the
            box covers, heads count alike; sampled points outside the image are not inside.
        even: float64 [N], the box's share of the image: ``inside`` of even attention.
        entropy: float64 [L, N], the entropy of the attention (mean over heads) over all unpadded cells of all levels, divided by that of
            even attention: 1 even, 0 a single cell. NaN where all sampled points are outside the image, or the image is a single cell.
        distance: float64 [L, N] from the layer's reference to the object's centre, in diagonals of the image, 0..1 (in object sizes, the
            smallest objects would dominate the mean). NaN for DETR, which has no reference.
        query: int64 [N], the object's query; in a two-stage model a rank among the proposals.
    """

    inside: np.ndarray
    even: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    query: np.ndarray

    def columns(self) -> dict[str, float]:
        """Means over the objects as ``metrics.csv`` names them: ``inside_1`` .. ``inside_L``, ``inside_even``, ``entropy_1`` ..,
        ``distance_1`` ..; without the ones that no object has."""
        layers = range(1, len(self.inside) + 1)
        values = {f"inside_{i}": row for i, row in zip(layers, self.inside, strict=True)} | {"inside_even": self.even}
        values |= {f"entropy_{i}": row for i, row in zip(layers, self.entropy, strict=True)}
        values |= {f"distance_{i}": row for i, row in zip(layers, self.distance, strict=True)}
        known = {name: row[~np.isnan(row)] for name, row in values.items()}
        return {name: float(row.mean()) for name, row in known.items() if len(row)}

    def changes(self, before: Sequence[int]) -> float | None:
        """The share of objects, 0..1, whose query is not the one in ``before``, the ``query`` of the same images at an earlier time; None
        where there is nothing to compare."""
        if len(before) != len(self.query):
            return None
        found = (self.query >= 0) | (np.asarray(before) >= 0)
        return float((self.query != before)[found].mean()) if found.any() else None


def measure_batch(out: Output, targets: Sequence[dict], matches: Sequence[tuple[Tensor, Tensor]]) -> Alignment:
    """The alignment of a batch, with the objects of one image after those of another.

    Args:
        out: of ``model(images, mask, trace="decoder")``.
        targets: per image ``{"boxes": [N, 4] cxcywh in [0, 1] of the unpadded extent, ...}``.
        matches: the last layer's, ``model.match(out, targets)[-1]``: per image (query indices, target indices).
    """
    assert out.trace is not None
    layers = out.trace.layers
    parts = [
        _of_image(layers, image, target["boxes"], query.cpu(), target_index.cpu())
        for image, (target, (query, target_index)) in enumerate(zip(targets, matches, strict=True))
    ]
    return _joined(parts, len(layers))


@torch.no_grad()
def measure_split(
    detector: Detector, split: Split, *, only: Sequence[int] | None = None, cached: DetectionDataset | None = None
) -> Alignment:
    """The alignment of a detector on images of a split whose labels are positions in its classes, one image at a time.

    Args:
        only: positions in the split; None: all.
        cached: a data set over this split that keeps images as ``detector.resize`` makes them.

    Draws no random number, and leaves the model in the mode (training or evaluation) that it was in.
    """
    model, device = detector.transformer, detector.device
    dataset = cached or DetectionDataset(split, ResizeTransform(detector.resize))
    training, parts = model.training, []
    model.eval()
    for position in range(len(split)) if only is None else only:
        batch = collate([dataset[position]]).to(device)
        out = model(detector.inputs(batch.images), batch.mask, trace="decoder", last_only=True)
        parts.append(measure_batch(out, batch.targets, model.match(out, batch.targets)[-1]))
    model.train(training)
    return _joined(parts, model.inference_layers)


def with_objects(split: AnySplit, count: int) -> list[int]:
    """Positions of at most ``count`` images with objects, spread evenly over the split; always the same ones."""
    full = [i for i, record in enumerate(split) if not record.ignore.all()]
    count = min(count, len(full))
    return [full[(2 * i + 1) * len(full) // (2 * count)] for i in range(count)]


def _of_image(layers: list[LayerTrace], image: int, boxes: Tensor, query: Tensor, matched: Tensor) -> Alignment:
    boxes = boxes.detach().cpu().double()
    objects, boxes = len(boxes), cxcywh_to_xyxy(boxes[matched]).clamp(0, 1)
    found = torch.full((objects,), -1, dtype=torch.int64)
    found[matched] = query

    def of_objects(values: Tensor) -> np.ndarray:
        """[..., matched] -> [..., objects]."""
        every = torch.full((*values.shape[:-1], objects), torch.nan, dtype=torch.float64)
        every[..., matched] = values
        return every.numpy()

    attention = [_inside_and_entropy(layer, image, query, boxes) for layer in layers]
    return Alignment(
        inside=of_objects(torch.stack([inside for inside, _ in attention])),
        even=of_objects((boxes[:, 2:] - boxes[:, :2]).prod(-1)),
        entropy=of_objects(torch.stack([entropy for _, entropy in attention])),
        distance=of_objects(torch.stack([_distance(layer, image, query, boxes) for layer in layers])),
        query=found.numpy(),
    )


def _inside_and_entropy(layer: LayerTrace, image: int, query: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Share inside the box, and entropy relative to even attention, [M] each; boxes [M, 4] xyxy."""
    inside, cells = torch.zeros(len(query), dtype=torch.float64), []
    for level, (h, w) in enumerate(layer.memory.shapes):
        mass = layer.masses(level, query, image, heads=False)
        extent = layer.memory.valid_ratios[image, level].cpu().double() * torch.tensor([w, h])  # of the image, in cells
        extent = torch.where((extent - extent.round()).abs() < 1e-4, extent.round(), extent)  # the ratios are float32
        columns, rows = extent.ceil().long().tolist()
        mass = mass[:, :rows, :columns]
        across, down = covered(columns, boxes[:, 0::2] * extent[0]), covered(rows, boxes[:, 1::2] * extent[1])
        inside = inside + torch.einsum("mhw,mh,mw->m", mass, down, across)
        cells.append(mass.flatten(1))
    mass = torch.cat(cells, 1)
    share = mass / mass.sum(1, keepdim=True)
    return inside, torch.special.entr(share).sum(1) / torch.log(torch.tensor(share.shape[1], dtype=torch.float64))


def covered(cells: int, sides: Tensor) -> Tensor:
    """[M, cells]: the share of each cell along one axis that an object from and to ``sides`` [M, 2], in cells, covers."""
    edges = torch.arange(cells + 1, dtype=torch.float64)
    low, high = torch.maximum(edges[:-1], sides[:, :1]), torch.minimum(edges[1:], sides[:, 1:])
    return (high - low).clamp(min=0)


def _distance(layer: LayerTrace, image: int, query: Tensor, boxes: Tensor) -> Tensor:
    """[M] in diagonals of the image; boxes [M, 4] xyxy."""
    if layer.reference is None:
        return torch.full((len(query),), torch.nan, dtype=torch.float64)
    extent = layer.memory.extents[image].cpu().double()
    points = layer.reference[image].detach().cpu().double()[query, :2]
    return ((points - (boxes[:, :2] + boxes[:, 2:]) / 2) * extent).norm(dim=-1) / extent.norm()


def _joined(parts: Sequence[Alignment], layers: int) -> Alignment:
    nothing = np.empty((layers, 0))
    start = Alignment(nothing, np.empty(0), nothing, nothing, np.empty(0, dtype=np.int64))
    return Alignment(*(np.concatenate([getattr(part, f.name) for part in (start, *parts)], axis=-1) for f in fields(Alignment)))
