"""Where the features that a query read came from: the cells of the memory, and what the encoder had put into them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from boxquery.parts.memory import Memory
from boxquery.parts.trace import Heatmap, LayerTrace, Trace

#: numbers of attention that are unfolded at once
_NUMBERS = 2**22


@dataclass(frozen=True)
class Cell:
    """A cell of the memory that a query read.

    Attributes:
        token: its place among the tokens of all levels, which is its number as a query of an encoder layer.
        level, row, column: where it is.
        share: of the query's reading, 0..1, heads counting alike.
        box: xyxy in pixels of the image, the square that the cell stands for (its features know more, see ``origin``).
    """

    token: int
    level: int
    row: int
    column: int
    share: float
    box: tuple[float, float, float, float]

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def shares(trace: Trace, query: int, layer: int = -1) -> Tensor:
    """float64 [S]: the share of the query's reading in a decoder layer on each token of the memory; heads count alike."""
    read = trace.layers[layer]
    parts = torch.cat([read.masses(level, [query], 0)[0].mean(0).flatten() for level in range(len(read.memory.shapes))])
    shapes = _memory(trace, layer).shapes
    if read.memory.shapes == shapes:
        return parts
    # this layer reads one level of several
    level = shapes.index(read.memory.shapes[0])
    before = sum(h * w for h, w in shapes[:level])
    out = torch.zeros(sum(h * w for h, w in shapes), dtype=torch.float64)
    out[before : before + len(parts)] = parts
    return out


def cells(trace: Trace, query: int, layer: int, most: int, size: tuple[int, int]) -> list[Cell]:
    """The ``most`` cells that the query read most in a decoder layer, best first; ``size`` is the image's (height, width)."""
    share, memory = shares(trace, query, layer), _memory(trace, layer)
    best = share.topk(min(most, len(share)))
    found = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [_cell(memory, token, value, size) for token, value in found if value > 0]


def origin(trace: Trace, query: int, layer: int, size: tuple[int, int]) -> Heatmap:
    """The effective region: over all cells, the query's share of the cell times the heat map of what the cell's token read in the last
    encoder layer; the sum is scaled to one. Without an encoder it is what the query itself read.

    ``lost`` is the share of the query's reading that fell outside the image, or on tokens that read nothing inside it.
    """
    if not trace.encoder:
        return trace.layers[layer].heatmap(query, size)
    share, last = shares(trace, query, layer), trace.encoder[-1]
    sums = [torch.zeros(shape, dtype=torch.float64) for shape in last.memory.shapes]
    step = max(1, _NUMBERS // (_heads(last) * len(share)))
    for tokens in share.nonzero()[:, 0].split(step):
        kept = 1 - last.heatmaps(tokens, (1, 1)).lost
        factor = torch.where(kept > 0, share[tokens] / kept.clamp(min=torch.finfo(kept.dtype).tiny), 0.0)
        for level, total in enumerate(sums):
            total += torch.einsum("n,nhw->hw", factor, last.masses(level, tokens, 0).mean(1))
    return LayerTrace(memory=last.memory, attention=tuple(total[None, None, None] for total in sums)).heatmap(0, size)


def _memory(trace: Trace, layer: int) -> Memory:
    """All that a decoder layer could read."""
    return trace.encoder[-1].memory if trace.encoder else trace.layers[layer].memory


def _heads(layer: LayerTrace) -> int:
    if layer.weights is not None:
        return layer.weights.shape[2]
    assert layer.attention is not None
    first = layer.attention[0]
    return (first if isinstance(first, Tensor) else first[0]).shape[1]


def _cell(memory: Memory, token: int, share: float, size: tuple[int, int]) -> Cell:
    level, place = 0, token
    while place >= (count := memory.shapes[level][0] * memory.shapes[level][1]):
        level, place = level + 1, place - count
    h, w = memory.shapes[level]
    row, column = divmod(place, w)
    across, down = (n / float(r) for n, r in zip((size[1] / w, size[0] / h), memory.valid_ratios[0, level], strict=True))
    return Cell(token, level, row, column, share, (column * across, row * down, (column + 1) * across, (row + 1) * down))
