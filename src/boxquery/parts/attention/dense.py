"""Ways to read: every attention of the family is ``(content, look, memory) -> content``.

Shape suffixes: B batch, Q queries, S memory tokens, H heads, K features a head, L levels, P points a level and head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.errors import UserError
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace


@dataclass(frozen=True)
class QueryGeometry:
    """Where queries are and may look in one layer; a paper fills what its attentions read.

    Attributes:
        position: [B or 1, Q, D], what the read asks with beside content.
        self_position: [B or 1, Q, D], the same among queries; None: ``position``.
        axes: two [B or 1, Q, D], the positions across and down, for those who read rows and columns.
        reference: [B, Q, 2 or 4] point or box in [0, 1] of the unpadded extent.
        bias: [B or 1, H or 1, Q, S], added to the attention logits of the read; only to reads that have ``takes_bias``.
        self_mask: [Q, Q] or [B, Q, Q] bool, True = may not see.
    """

    position: Tensor | None = None
    self_position: Tensor | None = None
    axes: tuple[Tensor, Tensor] | None = None
    reference: Tensor | None = None
    bias: Tensor | None = None
    self_mask: Tensor | None = None


T = TypeVar("T")


def require(value: T | None, part: str, what: str) -> T:
    """What a part needs of the parts beside it. Raises ``UserError`` where they do not give it."""
    if value is None:
        raise UserError(f"{part} needs {what}, which the parts beside it do not give; docs/mixing.md says which fit")
    return value


def require_boxes(value: Tensor | None, part: str, what: str) -> Tensor:
    """``given`` for [..., 4]: points will not do."""
    return require(None if value is None or value.shape[-1] != 4 else value, part, f"{what} of four numbers")


def reject_bias(geometry: QueryGeometry, part: str) -> None:
    """Raises ``UserError`` where a place gives Gaussians to a part that would ignore them."""
    if geometry.bias is not None:
        raise UserError(f"{part} cannot use the QueryGeometry.bias (Gaussians) that the place gives; docs/mixing.md says which parts fit")


def with_pos(content: Tensor, position: Tensor | None) -> Tensor:
    return content if position is None else content + position.to(content.dtype)


class Attention(nn.Module):
    """Multi-head dot-product attention with one packed in-projection (q, k, v), as ``nn.MultiheadAttention`` has it."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """query [B, Q, D], key and value [B, S, D], bias broadcastable to [B, H, Q, S] (bool: True = may be read).

        Returns [B, Q, D] and, with ``weights``, the attention [B, H, Q, S].
        """
        dim = query.shape[-1]
        w, b = self.in_proj.weight, self.in_proj.bias
        if query is key:
            q, k = F.linear(query, w[: 2 * dim], b[: 2 * dim]).chunk(2, -1)
        else:
            q, k = F.linear(query, w[:dim], b[:dim]), F.linear(key, w[dim : 2 * dim], b[dim : 2 * dim])
        v = F.linear(value, w[2 * dim :], b[2 * dim :])
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out, attention = attend(q, k, v, bias, self.dropout * self.training, weights)
        return self.out_proj(out), attention


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, weights: bool) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention on [B, H, Q, K], [B, H, S, K], [B, H, S, any] -> [B, Q, H * any] and the weights if asked."""
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    attention = None
    if weights:
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if bias is not None:
            logits = logits.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else logits + bias
        attention = logits.softmax(-1)
    return out.transpose(1, 2).flatten(2), attention


def self_attention_bias(geometry: QueryGeometry) -> Tensor | None:
    """Which queries may read which, as ``attend`` wants it: broadcastable to [B, H, Q, Q], True = may be read."""
    mask = geometry.self_mask
    return None if mask is None else ~mask if mask.dim() == 2 else ~mask[:, None]


def cross_attention_bias(geometry: QueryGeometry, memory: Memory) -> Tensor | None:
    """What is added to the logits of a read, or which tokens may be read: broadcastable to [B, H, Q, S]."""
    if memory.mask is None:
        return geometry.bias
    seen = ~memory.mask[:, None, None]
    return seen if geometry.bias is None else geometry.bias.masked_fill(~seen, -math.inf)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, geometry: QueryGeometry, memory: Memory, dropout: float, trace: LayerTrace | None
) -> Tensor:
    """Every token is read: [B, H, Q, K], [B, H, S, K], [B, H, S, any] -> [B, Q, H * any]; what was read stays in the trace."""
    out, weights = attend(q, k, v, cross_attention_bias(geometry, memory), dropout, trace is not None)
    if trace is not None and weights is not None:
        record_attention(trace, weights, geometry, memory)
    return out


def record_attention(trace: LayerTrace, weights: Tensor, geometry: QueryGeometry, memory: Memory) -> None:
    """What a dense read leaves in the trace: its weights [B, H, Q, S], and the Gaussian under which it looked, if there was one."""
    trace.attention = by_level(weights, memory)
    if geometry.bias is not None:
        trace.gaussian = by_level(geometry.bias.exp(), memory)


def by_level(weights: Tensor, memory: Memory) -> tuple[Tensor, ...]:
    """[B, H, Q, S] -> per level [B, H, Q, h, w]."""
    return tuple(m.permute(0, 3, 4, 1, 2) for m in memory.maps(weights.permute(0, 3, 1, 2)))


class SelfAttention(nn.Module):
    """Object-object: queries exchange information; positions on queries and keys, not on values."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.attention = Attention(dim, heads, dropout)

    def forward(self, content: Tensor, geometry: QueryGeometry, trace: LayerTrace | None = None) -> Tensor:
        asked = with_pos(content, geometry.position if geometry.self_position is None else geometry.self_position)
        out, weights = self.attention(asked, asked, content, self_attention_bias(geometry), weights=trace is not None)
        if trace is not None:
            trace.self_attention = weights
        return out


class DenseAttention(nn.Module):
    """Everything is read: region-region in the encoder (where the content is the memory itself), region-object in the decoder."""

    takes_bias = True

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.attention = Attention(dim, heads, dropout)

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        query = with_pos(content, geometry.position)
        key = query if content is memory.tokens else with_pos(memory.tokens, memory.position)
        out, weights = self.attention(query, key, memory.tokens, cross_attention_bias(geometry, memory), weights=trace is not None)
        if trace is not None and weights is not None:
            record_attention(trace, weights, geometry, memory)
        return out


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention (Deformable DETR, section 4.1, eq. 3): each query reads a few bilinear samples around its reference.

    A point reference takes offsets in cells of each level; a box reference takes them in halves of its size over the number of points.
    One softmax runs over all levels and points of a head. At the start head h looks in the h-th of ``heads`` directions, point p at p
    cells (appendix A.4).
    """

    def __init__(self, dim: int, heads: int, levels: int, points: int):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def init_weights(self) -> None:
        """The paper's; called after the pass that makes every matrix Xavier-uniform."""
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
        return self.out_proj(sample(value.unflatten(-1, (self.heads, -1)), memory.shapes, locations, weights))


def sample(value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> Tensor:
    """The weighted sum of bilinear samples: the whole of multi-scale deformable attention that is not a linear map.

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
        read = F.grid_sample(maps[level].unflatten(-1, shape), grid[level], align_corners=False)
        read = (read * weight[level]).sum(-2)
        out = read if out is None else out + read
    assert out is not None
    return out.reshape(batch, -1, queries).transpose(1, 2)
