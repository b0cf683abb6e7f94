"""Deformable attention: a few sampled points per head and level (Deformable DETR, Zhu et al. 2021, arXiv:2010.04159).

Shape suffixes as in ``boxquery.parts.attention.dense``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.parts.boxes import at_least_float32
from boxquery.parts.geometry import QueryGeometry, reject_bias, require, with_pos
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory, map_sizes
from boxquery.parts.trace import LayerTrace


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1, eq. 3): each query attends to a few bilinear samples around
    its reference.

    A point reference takes offsets in cells of each level; a box reference takes them in ``offset_scale`` of its size over the number of
    points. One softmax runs over all levels and points of a head. At initialisation the points of head h lie in the h-th of ``heads``
    directions, point p at a distance of p cells (appendix A.4).

    Args:
        points: per head and level; or one number per level (RT-DETRv2, arXiv:2407.17140, section 3.1).
        discrete: take the nearest cell in place of a bilinear sample, for runtimes that lack it; offsets then learn nothing (the same,
            section 3.2).
        project: values and results pass a linear map each; False: neither does (D-FINE).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        levels: int,
        points: int | Sequence[int],
        *,
        offset_scale: float = 0.5,
        discrete: bool = False,
        project: bool = True,
    ):
        super().__init__()
        self.heads, self.levels, self.offset_scale, self.discrete = heads, levels, offset_scale, discrete
        self.points = (points,) * levels if isinstance(points, int) else tuple(points)
        self.sampling_offsets = Linear(dim, heads * sum(self.points) * 2)
        self.attention_weights = Linear(dim, heads * sum(self.points))
        self.value_proj, self.out_proj = (Linear(dim, dim) if project else nn.Identity() for _ in range(2))
        self.sampling_offsets.requires_grad_(not discrete)

    def init_weights(self) -> None:
        """The paper's initialisation; called after the pass that makes every matrix Xavier-uniform."""
        for layer in (self.sampling_offsets, self.attention_weights):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for layer in (self.value_proj, self.out_proj):
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack((angles.cos(), angles.sin()), -1)
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.cat([torch.arange(1, points + 1) for points in self.points])
        self.sampling_offsets.bias.copy_((direction[:, None] * steps[:, None]).flatten())

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        reject_bias(geometry, "DeformableAttention")
        reference = require(geometry.reference, "DeformableAttention", "QueryGeometry.reference")
        query = with_pos(content, geometry.position)
        value = self.value_proj(memory.tokens)
        if memory.mask is not None:
            value = value.masked_fill(memory.mask[..., None], 0.0)
        # [B, Q, H, P of all levels]
        offsets = self.sampling_offsets(query).unflatten(-1, (self.heads, -1, 2))
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        # [B, Q, 1, P of all levels, 2 or 4]: the reference in each level's padded map
        ratios = memory.valid_ratios[:, None]
        reference = reference[:, :, None] * (ratios if reference.shape[-1] == 2 else torch.cat((ratios, ratios), -1))
        reference = _each_point(reference[:, :, None], self.points)
        if reference.shape[-1] == 2:
            locations = reference + offsets / _each_point(map_sizes(memory.shapes, reference), self.points)
        else:
            unit = _each_point(reference.new_tensor([[self.offset_scale / points] for points in self.points]), self.points)
            locations = reference[..., :2] + offsets * unit * reference[..., 2:]
        if trace is not None:
            trace.locations, trace.weights = _by_level(locations, self.points), _by_level(weights[..., None], self.points)[..., 0]
            if self.discrete:  # the centres of the cells that are read
                sizes = map_sizes(memory.shapes, locations)[:, None]
                trace.locations = (_nearest_cell(trace.locations, sizes) + 0.5) / sizes
        value = value.unflatten(-1, (self.heads, -1))
        return self.out_proj(multi_scale_sample(value, memory.shapes, locations, weights, self.points, self.discrete))


def multi_scale_sample(
    value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor, points: Sequence[int], discrete: bool = False
) -> Tensor:
    """The weighted sum of samples: all of multi-scale deformable attention except its linear maps.

    Args:
        value: [B, S, H, K], S = all cells of all levels.
        shapes: (height, width) of each level.
        locations: [B, Q, H, P, 2], (x, y) in [0, 1] of each level's map, cell centres at (i + 0.5) / size; P = all points of all levels.
        weights: [B, Q, H, P].
        points: how many each level has.
        discrete: samples are the cell with the nearest number to x times the width, in place of bilinear ones (zero outside).

    Returns [B, Q, H * K].
    """
    batch, queries = weights.shape[:2]
    # bf16 would move locations by up to a tenth of a cell where a map has 100, and mixed dtypes are slow
    features, locations, weights = at_least_float32(value, locations, weights)
    # [B * H, P, Q, 2]: points as rows, so that the sum over them runs over whole rows of queries
    locations = locations.permute(0, 2, 3, 1, 4).flatten(0, 1)
    weight = weights.permute(0, 2, 3, 1).flatten(0, 1)[:, None].split(list(points), 2)
    maps = features.permute(0, 2, 3, 1).flatten(0, 1).split([h * w for h, w in shapes], -1)
    out = None
    for level, (at, shape) in enumerate(zip(locations.split(list(points), 1), shapes, strict=True)):
        if discrete:
            sampled = _nearest(maps[level], shape, at)
        else:
            sampled = F.grid_sample(maps[level].unflatten(-1, shape), 2 * at - 1, align_corners=False)
        sampled = (sampled * weight[level]).sum(-2)
        out = sampled if out is None else out + sampled
    assert out is not None
    return out.reshape(batch, -1, queries).transpose(1, 2).to(value.dtype)


def _nearest(cells: Tensor, shape: tuple[int, int], locations: Tensor) -> Tensor:
    """Cells [N, K, h * w] at locations [N, P, Q, 2] -> [N, K, P, Q]; beyond the edge those at the edge."""
    column, row = _nearest_cell(locations, map_sizes((shape,), locations)).long().unbind(-1)
    index = (row * shape[1] + column).flatten(1)[:, None].expand(-1, cells.shape[1], -1)
    return cells.gather(2, index).unflatten(-1, locations.shape[1:3])


def _nearest_cell(locations: Tensor, sizes: Tensor) -> Tensor:
    """Column and row [..., 2] of the cells that are read, as whole floats; ``sizes``: width and height."""
    return torch.minimum((locations * sizes + 0.5).floor().clamp(min=0), sizes - 1)


def _each_point(values: Tensor, points: Sequence[int]) -> Tensor:
    """[..., L, n] -> [..., P of all levels, n]."""
    return torch.cat([one.expand(*one.shape[:-2], n, -1) for one, n in zip(values.split(1, -2), points, strict=True)], -2)


def _by_level(values: Tensor, points: Sequence[int]) -> Tensor:
    """[..., P of all levels, n] -> [..., L, P, n], with zeros where a level has fewer points than another."""
    return torch.stack([F.pad(one, (0, 0, 0, max(points) - n)) for one, n in zip(values.split(list(points), -2), points, strict=True)], -3)
