"""Reading the region of a query's box: RoIAlign on a pyramid, and a convolution whose weights the query makes (Sparse R-CNN, Sun et al.
2021, arXiv:2011.12450, section 3.3).

Shape suffixes as in ``boxquery.parts.attention.dense``; a region has ``SIDE`` x ``SIDE`` cells, the mean of ``SAMPLES`` x ``SAMPLES``
bilinear samples each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.parts.geometry import QueryGeometry, reject_bias, require_boxes
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace

SIDE, SAMPLES = 7, 2
CELLS, STEPS = SIDE * SIDE, SIDE * SAMPLES
#: a box of this size in pixels is read at stride 2^CANONICAL_LEVEL, one of half the size at half of that (FPN, arXiv:1612.03144, eq. 1)
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 4


class DynamicConvolution(nn.Module):
    """Region-object without a softmax: each query reads the box's region through two linear maps that are made from its content.

    The region's cells pass the maps one by one, D -> hidden -> D, each with a layer norm and a ReLU; all of them together, flattened, are
    mapped to the result. Cells on padding and beyond the map are read as they are, the latter as zeros. No gradient reaches the boxes.

    A trace has the samples of RoIAlign as points, of one head. A cell weighs as much as the norm of what it adds to the result, before
    the last layer norm, relative to all 49 (as the norms of weighted values in Kobayashi et al. 2020, arXiv:2004.10102); its samples share
    that equally.

    Args:
        dim: D, features of content and tokens.
        hidden: width between the two maps.
        strides: of the memory's levels, in pixels, each twice the one before.
    """

    def __init__(self, dim: int, hidden: int, strides: Sequence[int]):
        super().__init__()
        self.hidden, self.strides = hidden, tuple(strides)
        self.dynamic_layer = Linear(dim, 2 * dim * hidden)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(hidden), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.out_layer = Linear(CELLS * dim, dim)

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        reject_bias(geometry, "DynamicConvolution")
        box = require_boxes(geometry.reference, "DynamicConvolution", "QueryGeometry.reference").detach()
        samples = region_samples(memory, box, self.strides)
        cells = read_samples(memory, samples).to(content.dtype)
        into, back = self.dynamic_layer(content).chunk(2, -1)
        cells = self.norm1(cells @ into.unflatten(-1, (-1, self.hidden))).relu()
        cells = self.norm2(cells @ back.unflatten(-1, (self.hidden, -1))).relu()
        if trace is not None:
            self._record(trace, cells, samples, memory)
        return self.norm3(self.out_layer(cells.flatten(2))).relu()

    @torch.no_grad()
    def _record(self, trace: LayerTrace, cells: Tensor, samples: RegionSamples, memory: Memory) -> None:
        """Points and weights of cells [B, Q, 49, D] before the last map."""
        weight = self.out_layer.weight.unflatten(1, (CELLS, -1))
        added = torch.einsum("bqkd,okd->bqko", cells.to(weight.dtype), weight).norm(dim=-1)
        total = added.sum(-1, keepdim=True)
        share = torch.where(total > 0, added / total, 1 / CELLS)
        levels = torch.arange(len(memory.shapes), device=share.device)
        at_level = samples.level[..., None, None] == levels[:, None]
        points = samples.points()[:, :, None, None]
        share = share.repeat_interleave(SAMPLES**2, -1)[:, :, None] / SAMPLES**2
        trace.locations = points.expand(-1, -1, -1, len(levels), -1, -1)
        trace.weights = torch.where(at_level, share, 0.0)[:, :, None]


@dataclass(frozen=True)
class RegionSamples:
    """Where RoIAlign reads, each of ``STEPS`` columns and rows of a box.

    Attributes:
        level: int64 [B, Q], the only one that a box is read at.
        size: int64 [B, Q, 2], that level's width and height in cells.
        start: int64 [B, Q], its first token, counted over all images.
        position: [B, Q, 2, STEPS] in x and in y, in cells from the centre of the first cell.
        inside: [B, Q, 2, STEPS] bool, whether a sample is at most a cell from the outermost centre, where it is taken; else it is zero.
    """

    level: Tensor
    size: Tensor
    start: Tensor
    position: Tensor
    inside: Tensor

    def points(self) -> Tensor:
        """[B, Q, 49 * SAMPLES^2, 2] (x, y) in [0, 1] of the padded map, cell by cell, row by row; what is zero lies outside."""
        last = self.size[..., None].to(self.position.dtype)
        taken = torch.where(self.inside, torch.minimum(self.position.clamp(min=0), last - 1), self.position)
        x, y = ((taken + 0.5) / last).unflatten(-1, (SIDE, SAMPLES)).unbind(2)
        grid = (x[:, :, None, :, None, :], y[:, :, :, None, :, None])
        return torch.stack(torch.broadcast_tensors(*grid), -1).flatten(2, 5)

    def corners(self) -> tuple[Tensor, Tensor]:
        """Tokens, counted over all images, and their weights, [B, Q, 49, (2 SAMPLES)^2]: a cell of the region is their weighted sum."""
        last = self.size[..., None] - 1
        at = torch.minimum(self.position.clamp(min=0), last.to(self.position.dtype))
        low = at.detach().nan_to_num().long()
        share = at - low
        number = torch.stack((low, torch.minimum(low + 1, last)), -1)
        weight = torch.stack((1 - share, share), -1) * self.inside[..., None] / SAMPLES
        (column, row), (across, down) = (each.flatten(-2).unflatten(-1, (SIDE, 2 * SAMPLES)).unbind(2) for each in (number, weight))
        row = row * self.size[..., :1, None] + self.start[..., None, None]
        index = row[:, :, :, None, :, None] + column[:, :, None, :, None, :]
        weight = down[:, :, :, None, :, None] * across[:, :, None, :, None, :]
        return index.flatten(4).flatten(2, 3), weight.flatten(4).flatten(2, 3)


def region_samples(memory: Memory, box: Tensor, strides: Sequence[int]) -> RegionSamples:
    """Of boxes [B, Q, 4] cxcywh in [0, 1] of the unpadded extent, read at the level that fits their size."""
    pixels = memory.extents[:, None]
    size = box[..., 2:] * pixels
    level = CANONICAL_LEVEL - math.log2(strides[0]) + (size.prod(-1).sqrt() / CANONICAL_SIZE + 1e-8).log2()
    level = level.floor().nan_to_num().clamp(0, len(strides) - 1).long()
    shapes = torch.tensor([(w, h) for h, w in memory.shapes], device=box.device)
    cells = shapes.prod(-1)
    first = (cells.cumsum(0) - cells)[level] + torch.arange(box.shape[0], device=box.device)[:, None] * memory.tokens.shape[1]
    stride = box.new_tensor(strides)[level][..., None]
    low = (box[..., :2] * pixels - size / 2) / stride - 0.5
    steps = (torch.arange(STEPS, device=box.device, dtype=box.dtype) + 0.5) / STEPS
    position = low[..., None] + (size / stride)[..., None] * steps
    own = shapes[level]
    return RegionSamples(level, own, first, position, (position >= -1) & (position <= own[..., None]))


def read_samples(memory: Memory, samples: RegionSamples) -> Tensor:
    """RoIAlign (He et al. 2017, arXiv:1703.06870, section 3): the regions of all boxes, [B, Q, 49, D] row by row, float32 at least.

    All levels at once, as weighted sums of rows of the tokens: several times faster on a CPU than torchvision's, which takes a map at a
    time (benchmarks/regions.py).
    """
    tokens = memory.tokens.to(torch.promote_types(memory.tokens.dtype, torch.float32)).flatten(0, 1)
    index, weight = samples.corners()
    weight = weight.to(tokens.dtype)
    if torch.compiler.is_exporting():  # ONNX would have a loop over the sums
        return (weight[..., None, :] @ tokens[index]).squeeze(-2)
    return F.embedding_bag(index.flatten(0, 2), tokens, per_sample_weights=weight.flatten(0, 2), mode="sum").view(*index.shape[:3], -1)
