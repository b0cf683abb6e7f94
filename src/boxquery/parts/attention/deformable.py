"""Deformable attention: a few sampled points per head and level (Deformable DETR, Zhu et al. 2021, arXiv:2010.04159).

Shape suffixes as in ``boxquery.parts.attention.dense``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.parts.geometry import QueryGeometry, reject_bias, require, with_pos
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1, eq. 3): each query attends to a few bilinear samples around
    its reference.

    A point reference takes offsets in cells of each level; a box reference takes them in halves of its size over the number of points.
    One softmax runs over all levels and points of a head. At initialisation the points of head h lie in the h-th of ``heads`` directions,
    point p at a distance of p cells (appendix A.4).
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def init_weights(self) -> None:
        """The paper's initialisation; called after the pass that makes every matrix Xavier-uniform."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        nn.init.zeros_(self.value_proj.bias)
        nn.init.zeros_(self.out_proj.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angles.cos(), angles.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)
        start = direction[:, None, None] * steps[None, None, :, None]
        self.sampling_offsets.bias.copy_(start.expand(-1, self.levels, -1, -1).flatten())

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        reject_bias(geometry, "DeformableAttention")
        reference = require(geometry.reference, "DeformableAttention", "QueryGeometry.reference")
        query = with_pos(content, geometry.position)
        value = self.value_proj(memory.tokens)
        if memory.mask is not None:
            value = value.masked_fill(memory.mask[..., None], 0.0)
        shape = (self.heads, self.levels, self.points)
        offsets = self.sampling_offsets(query).unflatten(-1, (*shape, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1).unflatten(-1, shape[1:])
        # [B, Q, 1, L, 1, 2 or 4]: the reference in each level's padded map
        ratios = memory.valid_ratios[:, None]
        reference = reference[:, :, None] * (ratios if reference.shape[-1] == 2 else torch.cat((ratios, ratios), -1))
        reference = reference[:, :, None, :, None]
        if reference.shape[-1] == 2:
            cells = reference.new_tensor([(w, h) for h, w in memory.shapes])
            locations = reference + offsets / cells[:, None]
        else:
            locations = reference[..., :2] + offsets * (0.5 / self.points) * reference[..., 2:]
        if trace is not None:
            trace.locations, trace.weights = locations, weights
        return self.out_proj(multi_scale_sample(value.unflatten(-1, (self.heads, -1)), memory.shapes, locations, weights))


def multi_scale_sample(value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of bilinear samples: all of multi-scale deformable attention except its linear maps.

    Args:
        value: [B, S, H, K], S = all cells of all levels.
        shapes: (height, width) of each level.
        locations: [B, Q, H, L, P, 2], (x, y) in [0, 1] of each level's map, cell centres at (i + 0.5) / size; zero outside.
        weights: [B, Q, H, L, P].

    Returns [B, Q, H * K].
    """
    batch, queries, heads, levels, points = weights.shape
    # [L, B * H, P, Q, 2]: points as rows, so that the sum over them runs over whole rows of queries
    grid = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5).reshape(levels, batch * heads, points, queries, 2).to(value.dtype)
    weight = weights.permute(3, 0, 2, 4, 1).reshape(levels, batch * heads, 1, points, queries).to(value.dtype)
    maps = value.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], -1)
    out = None
    for level, shape in enumerate(shapes):
        sampled = F.grid_sample(maps[level].unflatten(-1, shape), grid[level], align_corners=False)
        sampled = (sampled * weight[level]).sum(-2)
        out = sampled if out is None else out + sampled
    assert out is not None
    return out.reshape(batch, -1, queries).transpose(1, 2)
