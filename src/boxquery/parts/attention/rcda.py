"""Row-column attention: one softmax over columns and one over rows instead of one over all cells (Anchor DETR).

Shape suffixes as in ``boxquery.parts.attention.dense``; h and w are the rows and columns of the map.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.parts.geometry import QueryGeometry, reject_bias, require, with_pos
from boxquery.parts.linear import Linear, linear
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace


def at_axes(memory: Memory) -> QueryGeometry:
    """A token has the positions of its column and of its row."""
    ((h, w),) = memory.shapes
    ((across, down),) = memory.axes
    return QueryGeometry(axes=(across[:, None].expand(-1, h, -1, -1).flatten(1, 2), down[:, :, None].expand(-1, -1, w, -1).flatten(1, 2)))


class RowColumnDecoupledAttention(nn.Module):
    """A cell's weight is its column's times its row's, from two small softmaxes ("Row-Column Decoupled Attention").

    The key of a column is the mean of the map over its rows plus the column's position, and that of a row likewise; values are the cells
    themselves. One level only. The means include padding, as in the authors' code: it changes the keys, though no weight falls on it.
    The packed in-projection holds queries in x and y, keys in x and y, and values.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj = Linear(dim, 5 * dim)
        self.out_proj = Linear(dim, dim)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        reject_bias(geometry, "RowColumnDecoupledAttention")
        position_x, position_y = require(geometry.axes, "RowColumnDecoupledAttention", "QueryGeometry.axes")
        query_x, query_y, key_x, key_y, value = zip(self.in_proj.weight.chunk(5), self.in_proj.bias.chunk(5), strict=True)
        ((across, down),) = require(
            memory.axes if len(memory.axes) == 1 else None, "RowColumnDecoupledAttention", "Memory.axes of one level"
        )
        columns, rows = self.means(memory)
        (mask,) = (None,) if memory.mask is None else memory.maps(memory.mask)
        # a linear map of a mean is the mean of the linear map, for a fraction of the work
        row = self._weights(
            linear(with_pos(content, position_x), *query_x),
            linear(with_pos(columns, across), *key_x),
            None if mask is None else mask[:, 0],
        )
        column = self._weights(
            linear(with_pos(content, position_y), *query_y),
            linear(with_pos(rows, down), *key_y),
            None if mask is None else mask[:, :, 0],
        )
        if trace is not None:
            trace.attention = ((row, column),)
        row, column = (F.dropout(weights, self.dropout, self.training) for weights in (row, column))
        (values,) = memory.maps(linear(memory.tokens, *value).unflatten(-1, (self.heads, -1)))
        return self.out_proj(weigh_rows_and_columns(row, column, values))

    def means(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Mean features of each column [B, w, D] and of each row [B, h, D]."""
        (cells,) = memory.maps(memory.tokens)
        return cells.mean(1), cells.mean(2)

    def _weights(self, query: Tensor, key: Tensor, padding: Tensor | None) -> Tensor:
        """[B, Q, D], [B, n, D] and [B, n] bool (True = padding) -> [B, H, Q, n]."""
        q, k = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key))
        logits = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
        if padding is not None:
            logits = logits.masked_fill(padding[:, None, None], -math.inf)
        return logits.softmax(-1)


def weigh_rows_and_columns(row: Tensor, column: Tensor, value: Tensor) -> Tensor:
    """The sum over cells of row weight times column weight times value, without a weight for every cell.

    Args:
        row: [B, H, Q, w], a weight for each column of the map.
        column: [B, H, Q, h], a weight for each row of it.
        value: [B, h, w, H, K].

    Returns [B, Q, H * K]. The longer side is summed first: the intermediate result has a vector per query and cell of the shorter one.
    """
    wide = torch.compiler.is_exporting() or row.shape[-1] >= column.shape[-1]  # one graph serves all shapes
    cells = value.permute(0, 3, 2, 1, 4) if wide else value.permute(0, 3, 1, 2, 4)
    first, second = (row, column) if wide else (column, row)
    between = (first @ cells.flatten(3)).unflatten(-1, (second.shape[-1], -1))
    return (second[..., None, :] @ between).squeeze(-2).transpose(1, 2).flatten(2)


@torch.no_grad()
def reset_packed(*modules: nn.Module) -> None:
    """Anchor DETR's initialisation: packed in-projections Xavier-uniform as one matrix; all else as torch has it."""
    for module in modules:
        for name, parameter in module.named_parameters():
            if name.endswith("in_proj.weight"):
                nn.init.xavier_uniform_(parameter)
