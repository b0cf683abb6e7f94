"""What each query attended to and predicted, kept on request: ordinary outputs, no hooks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from boxquery.errors import UserError
from boxquery.parts.memory import Memory


@dataclass
class LayerTrace:
    """One decoder layer (or encoder layer: a query there is a token, and it has neither box nor score).

    Attributes:
        memory: what was attended to; one level of it where the layer attends to no other.
        boxes: [B, Q, 4] cxcywh in [0, 1] of the unpadded extent, as this layer predicts them.
        scores: [B, Q], the best class probability.
        reference: [B, Q, 2 or 4] in [0, 1] of the unpadded extent, from which the layer was located; None for DETR.
        self_attention: [B, heads, Q, Q].
        attention: per level [B, heads, Q, h, w], or its two factors [B, heads, Q, w] and [B, heads, Q, h] (row-column attention); None
            where points are sampled.
        gaussian: per level [B, heads, Q, h, w], what multiplied the attention before it was normalised: in [0, 1] where it is a
            Gaussian, any positive number with ``relative_bias``; None where there is neither.
        locations, weights: [B, Q, heads, levels, points, 2] in [0, 1] of the padded map, and [B, Q, heads, levels, points].
            Of a scene of V views, whose maps lie below each other, points are in [0, 1] of their own view, in equal parts for each view.
        salient_points: [B, Q, heads, 2] (x, y) in [0, 1] of the unpadded extent, where SAM-DETR's heads sampled their query features.
        alive: [B, Q] bool where queries were pruned before this layer; None: all were here. Row q is query q in every layer; a
            pruned one keeps its last box and reference, and zeros for everything else.
    """

    memory: Memory = field(repr=False)
    boxes: Tensor | None = None
    scores: Tensor | None = None
    reference: Tensor | None = None
    self_attention: Tensor | None = None
    attention: tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor]] | None = None
    gaussian: tuple[Tensor, ...] | None = None
    locations: Tensor | None = None
    weights: Tensor | None = None
    salient_points: Tensor | None = None
    alive: Tensor | None = None

    def fill(self, query_index: Tensor | None, queries: int, before: Sequence[LayerTrace]) -> None:
        """Give every query of the first layer its row again: those kept here are ``query_index`` [B, K] of them; None: all."""
        if query_index is None:
            return
        expand = partial(_scattered, rows=query_index, queries=queries)
        if self.reference is not None:
            last = before[-1].reference
            full = expand(self.reference, 1)
            gone = None if last is None else F.pad(last, (0, full.shape[-1] - last.shape[-1]))
            kept = expand(torch.ones_like(query_index, dtype=torch.bool), 1)[..., None]
            self.reference = full if gone is None else torch.where(kept, full, gone)
        if self.self_attention is not None:
            self.self_attention = expand(expand(self.self_attention, 2), 3)
        if self.attention is not None:
            factors: Any = tuple(expand(m, 2) if isinstance(m, Tensor) else (expand(m[0], 2), expand(m[1], 2)) for m in self.attention)
            self.attention = factors
        if self.gaussian is not None:
            self.gaussian = tuple(expand(level, 2) for level in self.gaussian)
        for name in ("locations", "weights", "salient_points"):
            if (values := getattr(self, name)) is not None:
                setattr(self, name, expand(values, 1))
        self.alive = expand(torch.ones_like(query_index, dtype=torch.bool), 1)

    def heatmap(self, query: int, size: tuple[int, int], image: int = 0) -> Heatmap:
        """Where ``query`` of ``image`` attended, as one map [h, w] over the unpadded image that sums to one; the mean of the heads.

        A dense cell spreads its weight evenly over the pixels of the map that it covers; a sampled point gives its weight to the cells
        from which it was interpolated. What lies outside the image or on padding is dropped, and its share is ``.lost``. Of a scene the
        map is [V, h, w], over all views, and ``size`` that of each. Raises ``UserError`` for a query that was pruned before this layer.
        """
        if self.alive is not None and not self.alive[image, query]:
            raise UserError(f"query {query} was pruned before this layer and attended to nothing; choose an earlier layer")
        found = self.heatmaps([query], size, image)
        return Heatmap(found.map[0], float(found.lost))

    def heatmaps(self, queries: Sequence[int] | Tensor, size: tuple[int, int], image: int = 0, heads: bool = False) -> Heatmap:
        """The same for n queries at once: ``map`` [n, h, w] and ``lost`` [n]; with ``heads`` [n, heads, h, w] and [n, heads].

        A query that was pruned before this layer has a map of zeros, all of it lost.
        """
        total, views = torch.zeros((), dtype=torch.float64), self.memory.views
        for level, (h, w) in enumerate(self.memory.shapes):
            mass = self.masses(level, queries, image, heads).unflatten(-2, (views, h // views))
            ratio = self.memory.valid_ratios[image, level].detach().cpu().double()
            rows, columns = _cover(h // views, float(ratio[1]), size[0]), _cover(w, float(ratio[0]), size[1])
            total = total + rows.T @ mass @ columns
        kept = total.sum((-3, -2, -1))
        share = total / kept.clamp(min=torch.finfo(kept.dtype).tiny)[..., None, None, None]
        return Heatmap((share[..., 0, :, :] if self.memory.cameras is None else share).float(), lost=(1 - kept).clamp(0, 1))

    def masses(self, level: int, queries: Sequence[int] | Tensor, image: int = 0, heads: bool = True) -> Tensor:
        """float64 [n, heads, h, w] on the CPU: the share of each head's attention that falls on each cell of the level; without
        ``heads`` [n, h, w], their mean.

        Over all levels a head's shares sum to one, less what sampled points lose beyond the map's edges. Cells on padding are included.
        Of a scene of V views h is V times that of each.
        """
        chosen = torch.as_tensor(queries, dtype=torch.long)
        if self.attention is not None:
            weights = self.attention[level]
            if isinstance(weights, Tensor):
                mass = weights[image][:, chosen].detach().cpu().double().transpose(0, 1)
            else:
                row, column = (factor[image][:, chosen].detach().cpu().double().transpose(0, 1) for factor in weights)
                mass = column[..., None] * row[..., None, :]
            return mass if heads else mass.mean(1)
        assert self.locations is not None
        assert self.weights is not None
        h, w = self.memory.shapes[level]
        points = self.locations[image, chosen, :, level].detach().cpu().double()
        weight = self.weights[image, chosen, :, level].detach().cpu().double()
        own = h // self.memory.views
        first = (torch.arange(points.shape[-2]) // (points.shape[-2] // self.memory.views) * own).expand(weight.shape)
        if not heads:
            points, first, weight = (
                points.flatten(1, 2)[:, None],
                first.flatten(1)[:, None],
                weight.flatten(1, 2)[:, None] / weight.shape[1],
            )
        cell = points * torch.tensor([w, own], dtype=torch.float64) - 0.5
        low = cell.floor()
        mass = torch.zeros(*weight.shape[:2], h * w, dtype=torch.float64)
        for dx in (0, 1):
            for dy in (0, 1):
                x, y = (low[..., 0] + dx).long(), (low[..., 1] + dy).long()
                share = weight * (1 - (cell[..., 0] - x).abs()) * (1 - (cell[..., 1] - y).abs())
                inside = (x >= 0) & (x < w) & (y >= 0) & (y < own)
                mass.scatter_add_(-1, torch.where(inside, (first + y) * w + x, 0), torch.where(inside, share, 0.0))
        mass = mass.unflatten(-1, (h, w))
        return mass if heads else mass[:, 0]


@dataclass(frozen=True)
class Heatmap:
    """``map`` [..., h, w] sums to one (all zero where everything was lost); ``lost`` [...] is the share that fell outside the image."""

    map: Tensor
    lost: Any


@dataclass
class Trace:
    """A record per layer: ``layers[i]`` of the decoder, ``encoder[i]`` of the encoder (none with ``decoder_only``)."""

    layers: list[LayerTrace] = field(default_factory=list)
    encoder: list[LayerTrace] = field(default_factory=list)
    decoder_only: bool = False

    def encoder_layer(self, memory: Memory) -> LayerTrace | None:
        """The record for the next encoder layer to fill in."""
        return None if self.decoder_only else _added(self.encoder, LayerTrace(memory))

    def decoder_layer(self, memory: Memory, reference: Tensor | None) -> LayerTrace | None:
        """The record for the next decoder layer to fill in."""
        return _added(self.layers, LayerTrace(memory, reference=reference))

    def complete(self, indices: Sequence[Tensor | None], boxes: Sequence[Tensor], scores: Sequence[Tensor]) -> Trace | None:
        """Add what each layer predicted, for every query of the first layer; ``indices``: which of them a layer had (None: all)."""
        for i, (layer, index) in enumerate(zip(self.layers, indices, strict=True)):
            layer.fill(index, boxes[i].shape[1], self.layers[:i])
            layer.boxes, layer.scores = boxes[i], scores[i]
        return self


class NoTrace(Trace):
    """Nothing is kept."""

    def encoder_layer(self, memory: Memory) -> LayerTrace | None:
        return None

    def decoder_layer(self, memory: Memory, reference: Tensor | None) -> LayerTrace | None:
        return None

    def complete(self, indices: Sequence[Tensor | None], boxes: Sequence[Tensor], scores: Sequence[Tensor]) -> Trace | None:
        return None


def _added(records: list[LayerTrace], record: LayerTrace) -> LayerTrace:
    records.append(record)
    return record


def _scattered(values: Tensor, dim: int, rows: Tensor, queries: int) -> Tensor:
    """``values`` with K entries along ``dim`` -> ``queries`` entries, the K at the indices ``rows`` [B, K], zero elsewhere."""
    index = rows.view(len(rows), *(rows.shape[1] if d == dim else 1 for d in range(1, values.dim()))).expand_as(values)
    shape = [queries if d == dim else n for d, n in enumerate(values.shape)]
    return values.new_zeros(shape).scatter(dim, index, values)


def _cover(cells: int, ratio: float, pixels: int) -> Tensor:
    """[cells, pixels] float64: the share of each cell that each pixel of the unpadded image receives; a cell on padding gives nothing, and
    one that is in part on the image all to that part."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / (cells * ratio) * pixels
    partial = (edges[:-1] < pixels - 1e-4) & (edges[1:] > pixels + 1e-4)
    sizes = torch.where(partial, pixels - edges[:-1], edges[1:] - edges[:-1])
    low = torch.maximum(edges[:-1, None], torch.arange(pixels, dtype=torch.float64))
    high = torch.minimum(edges[1:, None], torch.arange(1, pixels + 1, dtype=torch.float64))
    return (high - low).clamp(min=0) / sizes[:, None]
