"""Dense attention on several levels (SMCA-DETR, Gao et al. 2021, arXiv:2101.07448, section 3.3).

Shape suffixes as in ``boxquery.parts.attention.dense``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.parts.attention.dense import dense_attention
from boxquery.parts.geometry import QueryGeometry, with_pos
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace


class IntraScaleAttention(nn.Module):
    """Region-region, intra-scale: a token attends to the tokens of its own level; one set of weights serves all levels.

    Args:
        attention: applied to each level on its own.
    """

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.read = attention

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        """``content`` is the memory's own tokens [B, S, D]."""
        sizes = [h * w for h, w in memory.shapes]
        positions = [None] * len(sizes) if geometry.position is None else geometry.position.split(sizes, 1)
        out, weights_by_level = [], []
        for level, position in enumerate(positions):
            part = memory.level(level)
            record = None if trace is None else LayerTrace(memory=part)
            out.append(self.read(part.tokens, replace(geometry, position=position), part, record))
            if record is not None and record.attention is not None:
                weights = record.attention[0]
                assert isinstance(weights, Tensor)
                # tokens of other levels do not attend to this one
                weights_by_level.append(F.pad(weights, (0, 0, 0, 0, sum(sizes[:level]), sum(sizes[level + 1 :]))))
        if trace is not None:
            trace.attention = tuple(weights_by_level)
        return torch.cat(out, 1)


class ScaleSelectionAttention(nn.Module):
    """Region-object on each level separately, with its own keys and values; the query weighs the levels.

    The weights are a softmax over the levels, the same for all heads (section 3.3).
    """

    takes_bias = True

    def __init__(self, dim: int, heads: int, levels: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = Linear(dim, dim)
        # a bias would be the same for all cells of a level, and vanish in its softmax
        self.keys = nn.ModuleList(Linear(dim, dim, bias=False) for _ in range(levels))
        self.values = nn.ModuleList(Linear(dim, dim) for _ in range(levels))
        self.selection = Linear(dim, levels)
        self.out_proj = Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        sizes = [h * w for h, w in memory.shapes]
        biases = [None] * len(sizes) if geometry.bias is None else geometry.bias.split(sizes, -1)
        query = with_pos(content, geometry.position)
        q, shares = self._by_head(self.query(query)), self.selection(query).softmax(-1)
        out, records = torch.zeros_like(content), []
        for level, (key, value, share) in enumerate(zip(self.keys, self.values, shares.unbind(-1), strict=True)):
            part = memory.level(level)
            k, v = self._by_head(key(with_pos(part.tokens, part.position))), self._by_head(value(part.tokens))
            record = None if trace is None else LayerTrace(memory=part)
            output = dense_attention(q, k, v, replace(geometry, bias=biases[level]), part, self.dropout * self.training, record)
            out = out + share[..., None] * output
            if record is not None:
                records.append((record, share[:, None, :, None, None]))
        if trace is not None:
            trace.attention = tuple(share * r.attention[0] for r, share in records)
            trace.gaussian = None if geometry.bias is None else tuple(r.gaussian[0] for r, _ in records)
        return self.out_proj(out)

    def _by_head(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, H, N, K]."""
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
