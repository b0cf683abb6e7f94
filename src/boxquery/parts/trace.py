"""What each query did, kept on request: ordinary outputs, no hooks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from boxquery.parts.memory import Memory


@dataclass
class LayerTrace:
    """One decoder layer (or encoder layer: a query there is a token, and it has neither box nor score).

    Attributes:
        memory: what was read; one level of it where the layer reads no other.
        boxes: [B, Q, 4] cxcywh in [0, 1] of the unpadded extent, as this layer predicts them.
        scores: [B, Q], the best class probability.
        reference: [B, Q, 2 or 4] in [0, 1] of the unpadded extent, what the layer was placed at; None for DETR.
        self_attention: [B, heads, Q, Q].
        attention: per level [B, heads, Q, h, w], or its two factors [B, heads, Q, w] and [B, heads, Q, h] (row-column attention); None
            where points are sampled.
        gaussian: per level [B, heads, Q, h, w] in [0, 1]: what multiplied the attention before it was normalised; None where a paper has no
            Gaussian.
        locations, weights: [B, Q, heads, levels, points, 2] in [0, 1] of the padded map, and [B, Q, heads, levels, points].
        salient_points: [B, Q, heads, 2] (x, y) in [0, 1] of the unpadded extent, where SAM-DETR's heads took the features they ask with.
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

    def heatmap(self, query: int, size: tuple[int, int], image: int = 0) -> Heatmap:
        """What ``query`` of ``image`` read, as one map [h, w] over the unpadded image that sums to one; heads count alike.

        A dense cell spreads its weight evenly over the pixels of the map that it covers; a sampled point gives its weight to the cells
        from which it was interpolated. What lies outside the image or on padding is dropped, and its share is ``.lost``.
        """
        total = torch.zeros(size, dtype=torch.float64)
        for level, (h, w) in enumerate(self.memory.shapes):
            mass = self._mass(level, h, w, query, image)
            ratio = self.memory.valid_ratios[image, level].detach().cpu().double()
            rows, columns = _cover(h, float(ratio[1]), size[0]), _cover(w, float(ratio[0]), size[1])
            total += rows.T @ mass @ columns
        kept = float(total.sum())
        if kept > 0:
            total = total / kept
        return Heatmap(total.float(), lost=min(max(1.0 - kept, 0.0), 1.0))

    def _mass(self, level: int, h: int, w: int, query: int, image: int) -> Tensor:
        """float64 [h, w]: the share of the query's reading that falls on each cell of the level."""
        if self.attention is not None:
            weights = self.attention[level]
            if isinstance(weights, Tensor):
                return weights[image, :, query].detach().double().mean(0).cpu()
            row, column = (factor[image, :, query].detach().double() for factor in weights)
            return (column.T @ row / len(row)).cpu()
        assert self.locations is not None
        assert self.weights is not None
        at = self.locations[image, query, :, level].detach().double().cpu().flatten(0, 1)
        weight = self.weights[image, query, :, level].detach().double().cpu().flatten() / self.weights.shape[2]
        cell = at * torch.tensor([w, h], dtype=torch.float64) - 0.5
        low = cell.floor()
        mass = torch.zeros(h, w, dtype=torch.float64)
        for dx in (0, 1):
            for dy in (0, 1):
                x, y = (low[:, 0] + dx).long(), (low[:, 1] + dy).long()
                share = weight * (1 - (cell[:, 0] - x).abs()) * (1 - (cell[:, 1] - y).abs())
                inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
                mass.index_put_((y[inside], x[inside]), share[inside], accumulate=True)
        return mass


@dataclass(frozen=True)
class Heatmap:
    """``map`` [h, w] sums to one (all zero where everything was lost); ``lost`` is the share that fell outside the image."""

    map: Tensor
    lost: float


@dataclass
class Trace:
    """``layers[i]``: what decoder layer i did; ``encoder[i]`` likewise."""

    layers: list[LayerTrace] = field(default_factory=list)
    encoder: list[LayerTrace] = field(default_factory=list)


def _cover(cells: int, ratio: float, pixels: int) -> Tensor:
    """[cells, pixels] float64: the share of each cell that each pixel of the unpadded image receives; padding gives less than 1."""
    edges = torch.arange(cells + 1, dtype=torch.float64) / (cells * ratio) * pixels
    low = torch.maximum(edges[:-1, None], torch.arange(pixels, dtype=torch.float64))
    high = torch.minimum(edges[1:, None], torch.arange(1, pixels + 1, dtype=torch.float64))
    return (high - low).clamp(min=0) / (edges[1:] - edges[:-1])[:, None]
