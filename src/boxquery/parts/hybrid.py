"""Attention on the coarsest level, convolutions between levels (RT-DETR, Zhao et al. 2024, arXiv:2304.08069, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from boxquery.parts.geometry import QueryGeometry
from boxquery.parts.layers import Encoder
from boxquery.parts.memory import Memory
from boxquery.parts.trace import NoTrace, Trace


class CellNorm(nn.LayerNorm):
    """A layer norm over the features of each cell, [B, D, h, w]: other images and padding do not change it, as they would in batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Fusion(nn.Module):
    """Two maps of one size -> one: the sum of a 1 x 1 convolution of both and of another followed by 3 x 3 convolutions.

    The paper's blocks are RepVGG's and its norm is batch norm; here each is one convolution, and the norm is ``CellNorm``.

    Args:
        blocks: number of 3 x 3 convolutions.
        expansion: their width, as a factor on ``dim``; another than 1 needs one more 1 x 1 convolution back to ``dim``.
    """

    def __init__(self, dim: int, blocks: int, expansion: float):
        super().__init__()
        width = round(dim * expansion)
        self.beside, self.enter = _block(2 * dim, width, 1), _block(2 * dim, width, 1)
        self.blocks = nn.ModuleList(_block(width, width, 3) for _ in range(blocks))
        self.leave = nn.Identity() if width == dim else _block(width, dim, 1)

    def forward(self, one: Tensor, other: Tensor, padding: Tensor | None) -> Tensor:
        """[B, D, h, w] twice and [B, 1, h, w] bool (True = padding)."""
        both = torch.cat((one, other), 1)
        x = self.enter(both)
        for block in self.blocks:
            x = block(_zero_padding(x, padding))
        return _zero_padding(self.leave(x + self.beside(both)), padding)


class HybridEncoder(Encoder):
    """Self-attention on the coarsest level alone, then convolutions that fuse levels top down and bottom up.

    Levels must halve in size from one to the next (a rounding cell more or less is allowed). Padding is zero before every convolution, as
    beyond the map's edge. A trace of its attention is not kept, since most tokens have none.

    Args:
        layers: of the coarsest level, each with dense attention.
        levels: how many the memory has, at least two.
        blocks, expansion: of each ``Fusion``; 3 and 1 for RT-DETR's R50, 3 and .5 for its R18.
    """

    def __init__(self, layers: Sequence[nn.Module], dim: int, levels: int, blocks: int = 3, expansion: float = 1.0):
        super().__init__(layers)
        self.lateral = nn.ModuleList(_block(dim, dim, 1) for _ in range(levels - 1))
        self.top_down = nn.ModuleList(Fusion(dim, blocks, expansion) for _ in range(levels - 1))
        self.shrink = nn.ModuleList(_block(dim, dim, 3, stride=2) for _ in range(levels - 1))
        self.bottom_up = nn.ModuleList(Fusion(dim, blocks, expansion) for _ in range(levels - 1))

    def forward(self, memory: Memory, trace: Trace = NoTrace()) -> Memory:  # noqa: B008
        last = len(memory.shapes) - 1
        coarsest = memory.level(last)
        for layer in self.layers:
            coarsest = layer(coarsest, QueryGeometry(position=coarsest.position))
        paddings = [None] * (last + 1) if memory.mask is None else [m[:, None] for m in memory.maps(memory.mask)]
        maps = [cells.permute(0, 3, 1, 2) for cells in memory.maps(memory.tokens)]
        maps[last] = coarsest.maps(coarsest.tokens)[0].permute(0, 3, 1, 2)
        maps = [_zero_padding(cells, padding) for cells, padding in zip(maps, paddings, strict=True)]
        for coarse, fine in pairwise(reversed(range(last + 1))):
            maps[coarse] = _zero_padding(self.lateral[fine](maps[coarse]), paddings[coarse])
            maps[fine] = self.top_down[fine](_upsampled(maps[coarse], maps[fine]), maps[fine], paddings[fine])
        for fine, coarse in pairwise(range(last + 1)):
            h, w = maps[coarse].shape[-2:]
            maps[coarse] = self.bottom_up[fine](self.shrink[fine](maps[fine])[..., :h, :w], maps[coarse], paddings[coarse])
        return memory.with_tokens(torch.cat([cells.flatten(2).transpose(1, 2) for cells in maps], 1))


def _block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2), CellNorm(outputs), nn.SiLU())


def _zero_padding(cells: Tensor, padding: Tensor | None) -> Tensor:
    return cells if padding is None else cells.masked_fill(padding, 0.0)


def _upsampled(coarse: Tensor, fine: Tensor) -> Tensor:
    """Each cell as four, cut to the size of ``fine``; not interpolated to it, which would shift cells with the padding."""
    rows, columns = (
        (torch.arange(n, device=fine.device) // 2).clamp(max=m - 1) for n, m in zip(fine.shape[-2:], coarse.shape[-2:], strict=True)
    )
    return coarse[..., rows[:, None], columns]
