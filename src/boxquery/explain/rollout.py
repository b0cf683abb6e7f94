"""Attention rollout: from what a query attends to in the decoder, through the last encoder layer, to the image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from boxquery.parts.memory import Memory
from boxquery.parts.trace import Heatmap, LayerTrace, Trace

#: attention weights (of token and cell) that are processed at once
_AT_ONCE = 2**22


@dataclass(frozen=True)
class Cell:
    """A cell of the memory that a query attends to.

    Attributes:
        token: its index among the tokens of all levels, as a query of an encoder layer.
        level, row, column: where it is.
        share: of the query's attention, 0..1, mean over heads.
        box: xyxy in pixels of the image, the rectangle of the cell (its features come from further away, see ``Explanation.origin``).
    """

    token: int
    level: int
    row: int
    column: int
    share: float
    box: tuple[float, float, float, float]

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def shares(trace: Trace, queries: Sequence[int], layer: int = -1) -> Tensor:
    """float64 [n, S]: the share of each query's attention in a decoder layer on each token of the memory; mean over heads."""
    record = trace.layers[layer]
    parts = torch.cat([record.masses(level, queries, heads=False).flatten(1) for level in range(len(record.memory.shapes))], 1)
    shapes = _memory(trace, layer).shapes
    if record.memory.shapes == shapes:
        return parts
    # this layer attends to one level of several
    level = shapes.index(record.memory.shapes[0])
    before = sum(h * w for h, w in shapes[:level])
    out = torch.zeros(len(parts), sum(h * w for h, w in shapes), dtype=torch.float64)
    out[:, before : before + parts.shape[1]] = parts
    return out


def cells(trace: Trace, query: int, layer: int, most: int, size: tuple[int, int]) -> list[Cell]:
    """The ``most`` cells with the largest share of the query's attention in a decoder layer; ``size`` is the image's (height, width)."""
    share, memory = shares(trace, [query], layer)[0], _memory(trace, layer)
    best = share.topk(min(most, len(share)))
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [_cell(memory, token, value, size) for token, value in found if value > 0]


def attention_rollout(trace: Trace, queries: Sequence[int], layers: Sequence[int], size: tuple[int, int]) -> Heatmap:
    """Rolled out attention of n queries in each of the decoder layers: ``map`` [layers, n, h, w] and ``lost`` [layers, n].

    A map is the sum over all cells of the query's share of the cell times the attention map of the cell's token in the last encoder layer,
    which the trace must have, scaled to sum to one. ``lost`` is the query's attention outside the image, or on tokens that attend to
    nothing inside it.
    """
    share, last = torch.cat([shares(trace, queries, layer) for layer in layers]), trace.encoder[-1]
    sums = [torch.zeros(len(share), h * w, dtype=torch.float64) for h, w in last.memory.shapes]
    for tokens in share.any(0).nonzero()[:, 0].split(max(1, _AT_ONCE // share.shape[1])):
        kept = 1 - last.heatmaps(tokens, (1, 1)).lost
        factor = torch.where(kept > 0, share[:, tokens] / kept.clamp(min=torch.finfo(kept.dtype).tiny), 0.0)
        rows = factor.any(1).nonzero()[:, 0]
        for level, total in enumerate(sums):
            total[rows] += factor[rows] @ last.masses(level, tokens, heads=False).flatten(1)
    # as one head, with the rows as queries
    maps = tuple(total.view(1, 1, -1, *shape) for total, shape in zip(sums, last.memory.shapes, strict=True))
    found = LayerTrace(memory=last.memory, attention=maps).heatmaps(range(len(share)), size)
    return Heatmap(found.map.unflatten(0, (len(layers), -1)), found.lost.unflatten(0, (len(layers), -1)))


def _memory(trace: Trace, layer: int) -> Memory:
    """All levels that a decoder layer may attend to."""
    return trace.encoder[-1].memory if trace.encoder else trace.layers[layer].memory


def _cell(memory: Memory, token: int, share: float, size: tuple[int, int]) -> Cell:
    level, place = 0, token
    while place >= (count := memory.shapes[level][0] * memory.shapes[level][1]):
        level, place = level + 1, place - count
    h, w = memory.shapes[level]
    row, column = divmod(place, w)
    across, down = (n / float(r) for n, r in zip((size[1] / w, size[0] / h), memory.valid_ratios[0, level], strict=True))
    left, top = column * across, row * down
    # of a cell that is in part on the image, that part
    sides = ((left, across, size[1]), (top, down, size[0]))
    right, bottom = (min(start + step, side) if start < side else start + step for start, step, side in sides)
    return Cell(token, level, row, column, share, (left, top, right, bottom))
