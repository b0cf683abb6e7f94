"""Whether queries read their objects, as numbers.

DETR is said to learn slowly because a query's cross-attention, at first, reads the whole image evenly instead of its object. Here that is
measured, for every kind of attention alike, from the trace of an ordinary forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from boxquery.data.dataset import Split
from boxquery.data.loading import DetectionDataset, collate
from boxquery.detector import Detector
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.output import Output
from boxquery.parts.trace import LayerTrace


@dataclass(frozen=True, eq=False)
class Alignment:
    """What the queries of N objects read in each of L decoder layers. An object's query is the one that the last layer's assignment gives
    it, in all layers, so that layers differ in what was read and not in who read.

    An object without a query (there are more objects than queries) has NaN everywhere and -1 in ``query``.

    Attributes:
        inside: float64 [L, N], the share of the cross-attention inside the object's box, 0..1. A cell counts by the part of it that the box
            covers, heads count alike; what sampled points read off the image is not inside.
        even: float64 [N], the box's share of the image: what ``inside`` is when the image is read evenly.
        entropy: float64 [L, N], the entropy of the reading (the mean of the heads: the map that a person sees) over all unpadded cells of
            all levels, divided by that of the even reading: 1 even, 0 a single cell. NaN where all was read off the image, or where the
            image is a single cell.
        distance: float64 [L, N] from the reference that the layer was placed at to the object's centre, in diagonals of the image, 0..1. In
            sizes of the object the mean would be that of the smallest objects; whether the place is within the object is what ``inside``
            says. NaN for DETR, which has no reference.
        query: int64 [N], who found the object. Of a two-stage model it is a rank among the proposals.
    """

    inside: np.ndarray
    even: np.ndarray
    entropy: np.ndarray
    distance: np.ndarray
    query: np.ndarray

    def columns(self) -> dict[str, float]:
        """Means over the objects as ``metrics.csv`` names them: ``inside_1`` .. ``inside_L``, ``inside_even``, ``entropy_1`` ..,
        ``distance_1`` ..; what was measured on no object is left out."""
        layers = range(1, len(self.inside) + 1)
        values = {f"inside_{i}": row for i, row in zip(layers, self.inside, strict=True)} | {"inside_even": self.even}
        values |= {f"entropy_{i}": row for i, row in zip(layers, self.entropy, strict=True)}
        values |= {f"distance_{i}": row for i, row in zip(layers, self.distance, strict=True)}
        known = {name: row[~np.isnan(row)] for name, row in values.items()}
        return {name: float(row.mean()) for name, row in known.items() if len(row)}

    def changes(self, before: Sequence[int]) -> float | None:
        """The share of the objects, 0..1, that another query finds than ``before``, which is the ``query`` of the same images at another
        time; None where there is nothing to compare."""
        if len(before) != len(self.query):
            return None
        found = (self.query >= 0) | (np.asarray(before) >= 0)
        return float((self.query != before)[found].mean()) if found.any() else None


def measure(out: Output, targets: Sequence[dict], matches: Sequence[tuple[Tensor, Tensor]]) -> Alignment:
    """The alignment of a batch of B images, whose objects stand one image after the other.

    Args:
        out: of ``model(images, mask, trace="decoder")``.
        targets: per image ``{"boxes": [N, 4] cxcywh in [0, 1] of the unpadded extent, ...}``.
        matches: the last layer's, ``model.match(out, targets)[-1]``: per image (query indices, target indices).
    """
    assert out.trace is not None
    layers = out.trace.layers
    parts = [
        _of_image(layers, image, target["boxes"], query.cpu(), chosen.cpu())
        for image, (target, (query, chosen)) in enumerate(zip(targets, matches, strict=True))
    ]
    return _joined(parts, len(layers))


@torch.no_grad()
def measure_split(
    detector: Detector, split: Split, *, only: Sequence[int] | None = None, cached: DetectionDataset | None = None
) -> Alignment:
    """The alignment of a detector on images of a split whose labels are positions in its classes, one image at a time.

    Args:
        only: positions in the split; None: all.
        cached: a data set over this split that keeps decoded images.

    Draws no random number, and leaves the model in the mode (training or evaluation) that it was in.
    """
    model, device = detector.transformer, detector.device
    dataset = cached or DetectionDataset(split, detector.transform)
    training, parts = model.training, []
    model.eval()
    for position in range(len(split)) if only is None else only:
        batch = collate([dataset[position]]).to(device)
        out = model(batch.images, batch.mask, trace="decoder", last_only=True)
        parts.append(measure(out, batch.targets, model.match(out, batch.targets)[-1]))
    model.train(training)
    return _joined(parts, len(model.layers))


def with_objects(split: Split, count: int) -> list[int]:
    """Positions of at most ``count`` images of a split that hold objects, spread evenly over it; always the same ones."""
    full = [i for i, record in enumerate(split) if not record.ignore.all()]
    count = min(count, len(full))
    return [full[(2 * i + 1) * len(full) // (2 * count)] for i in range(count)]


def _of_image(layers: list[LayerTrace], image: int, boxes: Tensor, query: Tensor, chosen: Tensor) -> Alignment:
    boxes = boxes.detach().cpu().double()
    objects, boxes = len(boxes), cxcywh_to_xyxy(boxes[chosen]).clamp(0, 1)
    found = torch.full((objects,), -1, dtype=torch.int64)
    found[chosen] = query

    def of_objects(values: Tensor) -> np.ndarray:
        """[..., matched] -> [..., objects]."""
        every = torch.full((*values.shape[:-1], objects), torch.nan, dtype=torch.float64)
        every[..., chosen] = values
        return every.numpy()

    readings = [_reading(layer, image, query, boxes) for layer in layers]
    return Alignment(
        inside=of_objects(torch.stack([inside for inside, _ in readings])),
        even=of_objects((boxes[:, 2:] - boxes[:, :2]).prod(-1)),
        entropy=of_objects(torch.stack([entropy for _, entropy in readings])),
        distance=of_objects(torch.stack([_distance(layer, image, query, boxes) for layer in layers])),
        query=found.numpy(),
    )


def _reading(layer: LayerTrace, image: int, query: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Share inside the box, and entropy against even, [M] each; boxes [M, 4] xyxy."""
    inside, cells = torch.zeros(len(query), dtype=torch.float64), []
    for level, (h, w) in enumerate(layer.memory.shapes):
        mass = layer.masses(level, query, image, heads=False)
        columns, rows = (layer.memory.valid_ratios[image, level].cpu().double() * torch.tensor([w, h])).round().long().tolist()
        mass = mass[:, :rows, :columns]
        across, down = _covered(columns, boxes[:, 0::2]), _covered(rows, boxes[:, 1::2])
        inside = inside + torch.einsum("mhw,mh,mw->m", mass, down, across)
        cells.append(mass.flatten(1))
    mass = torch.cat(cells, 1)
    share = mass / mass.sum(1, keepdim=True)
    return inside, torch.special.entr(share).sum(1) / torch.log(torch.tensor(share.shape[1], dtype=torch.float64))


def _covered(cells: int, sides: Tensor) -> Tensor:
    """[M, cells]: the part of each of the cells along one axis of the unpadded image that an object from and to ``sides`` [M, 2] covers."""
    edges = torch.arange(cells + 1, dtype=torch.float64)
    low, high = torch.maximum(edges[:-1], sides[:, :1] * cells), torch.minimum(edges[1:], sides[:, 1:] * cells)
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
