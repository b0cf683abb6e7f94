"""Attention with separate projections of content and position (Conditional DETR, Meng et al. 2021, arXiv:2108.06152; DAB, SAM).

Shape suffixes as in ``boxquery.parts.attention.dense``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boxquery.parts.attention.dense import attend, dense_attention, self_attention_bias
from boxquery.parts.geometry import QueryGeometry, require
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace


class ConditionalSelfAttention(nn.Module):
    """Object-object: content and position are projected separately and added; values are content alone."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_content, self.query_position = Linear(dim, dim), Linear(dim, dim)
        self.key_content, self.key_position = Linear(dim, dim), Linear(dim, dim)
        self.value = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, content: Tensor, geometry: QueryGeometry, trace: LayerTrace | None = None) -> Tensor:
        position = geometry.own_position
        position = require(position, "ConditionalSelfAttention", "QueryGeometry.position or QueryGeometry.self_position").to(content.dtype)
        q = self.query_content(content) + self.query_position(position)
        k = self.key_content(content) + self.key_position(position)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, self.value(content)))
        out, weights = attend(q, k, v, self_attention_bias(geometry), self.dropout * self.training, trace is not None)
        if trace is not None:
            trace.self_attention = weights
        return self.out_proj(out)


class ConditionalCrossAttention(nn.Module):
    """Region-object: each head compares content with content and position with position, side by side (Conditional DETR, eq. 2).

    Content and position fill one half of a head's query and key each, so their products add up without mixing. The query's position is
    ``geometry.position``. In the ``first`` layer, where content is not informative yet, both sides' positions are added to content too
    (the query's is ``geometry.self_position``).
    """

    takes_bias = True

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, first: bool = False):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_content, self.query_place = Linear(dim, dim), Linear(dim, dim)
        self.key_content, self.key_place = Linear(dim, dim), Linear(dim, dim)
        self.query_position = Linear(dim, dim) if first else None
        self.value = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        query_position = require(geometry.position, "ConditionalCrossAttention", "QueryGeometry.position")
        key_position = require(memory.position, "ConditionalCrossAttention", "Memory.position")
        q, k = self.query_content(content), self.key_content(memory.tokens)
        key_position = self.key_place(key_position.to(content.dtype)).expand_as(k)
        if self.query_position is not None:
            self_position = require(geometry.self_position, "ConditionalCrossAttention(first=True)", "QueryGeometry.self_position")
            q, k = q + self.query_position(self_position.to(content.dtype)), k + key_position
        q = self._concat(q, self.query_place(query_position.to(content.dtype)).expand_as(q))
        v = self.value(memory.tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out_proj(dense_attention(q, self._concat(k, key_position), v, geometry, memory, self.dropout * self.training, trace))

    def _concat(self, content: Tensor, position: Tensor) -> Tensor:
        """Two [B, N, D] -> [B, H, N, 2 K]."""
        return torch.cat([t.unflatten(-1, (self.heads, -1)) for t in (content, position)], -1).transpose(1, 2)
