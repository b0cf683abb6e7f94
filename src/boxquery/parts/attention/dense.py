"""Attentions: every one of the family is ``(content, geometry, memory) -> content``.

Shape suffixes: B batch, Q queries, S memory tokens, H heads, K features per head, L levels, P points per level and head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.parts.boxes import at_least_float32
from boxquery.parts.geometry import QueryGeometry, with_pos
from boxquery.parts.linear import Linear, linear
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace

#: pairs of a query and a key up to which a CPU trains attention in float32: in bfloat16 torch takes three times as long for a hundred of
#: each, as long for 400, and less for a thousand (benchmarks/attention.py)
SMALL = 512 * 512


class QueryKeyNorm(nn.Module):
    """Queries and keys of each head scaled to length 1, and a learned factor for each head: logits are at most as large as it (Henry et al.
    2020, "Query-Key Normalization for Transformers", arXiv:2010.04245), so that no growth of weights makes a softmax of a single key."""

    #: the factor at first; the paper has log2(n^2 - n) for n keys, 20 for a thousand
    FACTOR = 30.0

    def __init__(self, heads: int):
        super().__init__()
        self.log_factor = nn.Parameter(torch.full((heads,), math.log(self.FACTOR)))

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, Q, K] and [B, H, S, K], for attention that divides by the square root of K."""
        factor = self.log_factor.exp()[:, None, None] * math.sqrt(q.shape[-1])
        exact_q, exact_k = at_least_float32(q, k)
        return (F.normalize(exact_q, dim=-1) * factor).to(q.dtype), F.normalize(exact_k, dim=-1).to(k.dtype)


class Attention(nn.Module):
    """Multi-head dot-product attention with one packed in-projection (q, k, v), as ``nn.MultiheadAttention`` has it.

    Args:
        qk_norm: with ``QueryKeyNorm``; keys are then mapped as queries are at first, so that what is alike attends to each other.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, qk_norm: bool = False):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj = Linear(dim, 3 * dim)
        self.out_proj = Linear(dim, dim)
        self.norm = QueryKeyNorm(heads) if qk_norm else None
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)
        with torch.no_grad():
            self.init_weights()

    def init_weights(self) -> None:
        """With ``qk_norm`` the maps of keys and queries are the same at first."""
        if self.norm is not None:
            q, k, _ = self.in_proj.weight.chunk(3)
            k.copy_(q)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, weights: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """query [B, Q, D], key and value [B, S, D], bias broadcastable to [B, H, Q, S] (bool: True = may attend).

        Returns [B, Q, D] and, with ``weights``, the attention [B, H, Q, S].
        """
        dim = query.shape[-1]
        w, b = self.in_proj.weight, self.in_proj.bias
        if query is key:
            q, k = linear(query, w[: 2 * dim], b[: 2 * dim]).chunk(2, -1)
        else:
            q, k = linear(query, w[:dim], b[:dim]), linear(key, w[dim : 2 * dim], b[dim : 2 * dim])
        v = linear(value, w[2 * dim :], b[2 * dim :])
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        if self.norm is not None:
            q, k = self.norm(q, k)
        out, attention = attend(q, k, v, bias, self.dropout * self.training, weights)
        return self.out_proj(out), attention


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, weights: bool) -> tuple[Tensor, Tensor | None]:
    """Scaled dot-product attention on [B, H, Q, K], [B, H, S, K], [B, H, S, any] -> [B, Q, H * any], and the attention with ``weights``."""
    if bias is not None and bias.dtype != torch.bool:
        bias = bias.to(q.dtype)
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and q.shape[-2] * k.shape[-2] <= SMALL:
        with torch.autocast("cpu", enabled=False):
            bias = bias if bias is None or bias.dtype == torch.bool else bias.float()
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=bias, dropout_p=dropout).to(q.dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout)
    attention = None
    if weights:
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if bias is not None:
            logits = logits.masked_fill(~bias, -math.inf) if bias.dtype == torch.bool else logits + bias
        attention = logits.softmax(-1)
    return out.transpose(1, 2).flatten(2), attention


def self_attention_bias(geometry: QueryGeometry) -> Tensor | None:
    """Which queries may attend to which, as ``attend`` takes it: broadcastable to [B, H, Q, Q], True = may attend."""
    mask = geometry.self_mask
    return None if mask is None else ~mask if mask.dim() == 2 else ~mask[:, None]


def cross_attention_bias(geometry: QueryGeometry, memory: Memory) -> Tensor | None:
    """What is added to the logits, or which tokens may be attended to: broadcastable to [B, H, Q, S]."""
    if memory.mask is None:
        return geometry.bias
    valid = ~memory.mask[:, None, None]
    return valid if geometry.bias is None else geometry.bias.masked_fill(~valid, -math.inf)


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, geometry: QueryGeometry, memory: Memory, dropout: float, trace: LayerTrace | None
) -> Tensor:
    """Attention to every token: [B, H, Q, K], [B, H, S, K], [B, H, S, any] -> [B, Q, H * any]; its weights go to the trace."""
    out, weights = attend(q, k, v, cross_attention_bias(geometry, memory), dropout, trace is not None)
    if trace is not None and weights is not None:
        record_attention(trace, weights, geometry, memory)
    return out


def record_attention(trace: LayerTrace, weights: Tensor, geometry: QueryGeometry, memory: Memory) -> None:
    """Keep dense attention in the trace: its weights [B, H, Q, S], and the Gaussian that modulated them, if there was one."""
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
        query = with_pos(content, geometry.own_position)
        out, weights = self.attention(query, query, content, self_attention_bias(geometry), weights=trace is not None)
        if trace is not None:
            trace.self_attention = weights
        return out


class DenseAttention(nn.Module):
    """Attends to every token: region-region in the encoder (where the content is the memory itself), region-object in the decoder."""

    takes_bias = True

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, qk_norm: bool = False):
        super().__init__()
        self.attention = Attention(dim, heads, dropout, qk_norm)

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        query = with_pos(content, geometry.position)
        key = query if content is memory.tokens else with_pos(memory.tokens, memory.position)
        out, weights = self.attention(query, key, memory.tokens, cross_attention_bias(geometry, memory), weights=trace is not None)
        if trace is not None and weights is not None:
            record_attention(trace, weights, geometry, memory)
        return out
