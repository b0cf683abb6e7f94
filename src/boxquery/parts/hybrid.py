"""Attention on the coarsest level, convolutions between levels (RT-DETR, Zhao et al. 2024, arXiv:2304.08069, section 4.2).

A block here is ``(map [B, D, h, w], padding [B, 1, h, w] bool or None) -> map``; padding is zero before every 3 x 3 convolution, as beyond
the map's edge, so that in inference a cell's result does not depend on what its image is padded with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from boxquery.parts.convolution import Convolution
from boxquery.parts.geometry import QueryGeometry
from boxquery.parts.layers import Encoder
from boxquery.parts.memory import Memory
from boxquery.parts.trace import NoTrace, Trace

#: makes a new block
MakeBlock = Callable[[], nn.Module]


class CellNorm(nn.LayerNorm):
    """A layer norm over the features of each cell, [B, D, h, w]: other images and padding do not change it, as they would in batch norm."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvBlock(nn.Sequential):
    """A convolution, a norm and an activation; without bias before batch norm, which has its own.

    Args:
        kernel: 1 or another odd number.
        norm: ``BatchNorm2d`` as published, or ``CellNorm``.
        activation: ``nn.Identity`` for none.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        groups: int = 1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        activation: MakeBlock = nn.SiLU,
    ):
        convolution = Convolution(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=norm is not nn.BatchNorm2d)
        super().__init__(convolution, norm(outputs), activation())
        self.kernel = kernel

    @property
    def convolution(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self[0])

    def forward(self, input: Tensor, padding: Tensor | None = None) -> Tensor:
        return super().forward(_zero_padding(input, padding) if self.kernel > 1 else input)


class RepVGGBlock(nn.Module):
    """A 3 x 3 and a 1 x 1 convolution, each with batch norm, added before the activation (RepVGG, Ding et al. 2021, arXiv:2101.03697)."""

    def __init__(self, dim: int, activation: MakeBlock = nn.SiLU):
        super().__init__()
        self.wide, self.narrow = (ConvBlock(dim, dim, kernel, activation=nn.Identity) for kernel in (3, 1))
        self.activation = activation()

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.activation(self.wide(x, padding) + self.narrow(x))


class CrossStage(nn.Module):
    """The sum of a 1 x 1 convolution and of another followed by 3 x 3 blocks (CSPNet, arXiv:1911.11929; RT-DETR, figure 4).

    Args:
        width: of the blocks; another than ``outputs`` needs one more 1 x 1 convolution.
        blocks, block: how many, and what makes each, ``width`` -> ``width``.
        norm: of the 1 x 1 convolutions.
    """

    def __init__(
        self, inputs: int, outputs: int, width: int, blocks: int, block: MakeBlock, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ):
        super().__init__()
        self.beside, self.enter = ConvBlock(inputs, width, 1, norm=norm), ConvBlock(inputs, width, 1, norm=norm)
        self.blocks = nn.ModuleList(block() for _ in range(blocks))
        self.leave = nn.Identity() if width == outputs else ConvBlock(width, outputs, 1, norm=norm)

    def forward(self, both: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.enter(both)
        for block in self.blocks:
            x = block(x, padding)
        return self.leave(x + self.beside(both))


class HybridEncoder(Encoder):
    """Self-attention on the coarsest level alone, then convolutions that fuse levels top down and bottom up.

    Levels must halve in size from one to the next (a rounding cell more or less is allowed). A trace of its attention is not kept, since
    most tokens have none.

    Args:
        layers: of the coarsest level, each with dense attention.
        levels: how many the memory has, at least two.
        lateral: makes what a coarser map passes before it is enlarged, D -> D.
        fusion: makes what joins two maps of one size, 2 D -> D.
        shrink: makes what halves a map, D -> D.
        project: makes what every level passes at the end, to the decoder's width; None: nothing.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        levels: int,
        *,
        lateral: MakeBlock,
        fusion: MakeBlock,
        shrink: MakeBlock,
        project: MakeBlock | None = None,
    ):
        super().__init__(layers)
        self.lateral = nn.ModuleList(lateral() for _ in range(levels - 1))
        self.top_down = nn.ModuleList(fusion() for _ in range(levels - 1))
        self.shrink = nn.ModuleList(shrink() for _ in range(levels - 1))
        self.bottom_up = nn.ModuleList(fusion() for _ in range(levels - 1))
        self.project = None if project is None else nn.ModuleList(project() for _ in range(levels))

    def forward(self, memory: Memory, trace: Trace = NoTrace()) -> Memory:  # noqa: B008
        last = len(memory.shapes) - 1
        coarsest = memory.level(last)
        for layer in self.layers:
            coarsest = layer(coarsest, QueryGeometry(position=coarsest.position))
        paddings = [None] * (last + 1) if memory.mask is None else [m[:, None] for m in memory.maps(memory.mask)]
        maps = [cells.permute(0, 3, 1, 2) for cells in memory.maps(memory.tokens)]
        maps[last] = coarsest.maps(coarsest.tokens)[0].permute(0, 3, 1, 2)
        for coarse, fine in pairwise(reversed(range(last + 1))):
            maps[coarse] = _zero_padding(self.lateral[fine](maps[coarse], paddings[coarse]), paddings[coarse])
            maps[fine] = self.top_down[fine](torch.cat((_upsampled(maps[coarse], maps[fine]), maps[fine]), 1), paddings[fine])
        for fine, coarse in pairwise(range(last + 1)):
            h, w = maps[coarse].shape[-2:]
            small = self.shrink[fine](maps[fine], paddings[fine])[..., :h, :w]
            maps[coarse] = self.bottom_up[fine](torch.cat((small, maps[coarse]), 1), paddings[coarse])
        if self.project is not None:
            memory = replace(memory, position=None)  # of the encoder's width
            maps = [project(cells) for project, cells in zip(self.project, maps, strict=True)]
        maps = [_zero_padding(cells, padding) for cells, padding in zip(maps, paddings, strict=True)]
        return memory.with_tokens(torch.cat([cells.flatten(2).transpose(1, 2) for cells in maps], 1))


def _zero_padding(cells: Tensor, padding: Tensor | None) -> Tensor:
    return cells if padding is None else cells.masked_fill(padding, 0.0)


def _upsampled(coarse: Tensor, fine: Tensor) -> Tensor:
    """Each cell as four, cut to the size of ``fine``; not interpolated to it, which would shift cells with the padding."""
    rows, columns = (
        (torch.arange(n, device=fine.device) // 2).clamp(max=m - 1) for n, m in zip(fine.shape[-2:], coarse.shape[-2:], strict=True)
    )
    return coarse[..., rows[:, None], columns]
