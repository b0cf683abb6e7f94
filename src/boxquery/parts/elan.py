"""D-FINE's blocks of the hybrid encoder (Peng et al. 2025, arXiv:2410.13842): a deeper fusion, and a cheaper way to halve a map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from boxquery.parts.hybrid import ConvBlock, CrossStage, RepVGGBlock


class GELAN(nn.Module):
    """Two stages one after the other on half of the features, everything joined (GELAN, Wang et al. 2024, arXiv:2402.13616; "RepNCSPELAN4"
    in code).

    Args:
        dim: of each of the two maps that are fused, and of the result.
        width: of the stages.
        blocks: 3 x 3 blocks in each stage.
    """

    def __init__(self, dim: int, width: int, blocks: int):
        super().__init__()
        self.enter = ConvBlock(2 * dim, 2 * dim, 1)
        stages, wide = [], []
        for inputs in (dim, width):
            stages.append(CrossStage(inputs, width, width, blocks, lambda: RepVGGBlock(width)))
            wide.append(ConvBlock(width, width, 3))
        self.stages, self.wide = nn.ModuleList(stages), nn.ModuleList(wide)
        self.leave = ConvBlock(2 * dim + 2 * width, dim, 1)

    def forward(self, both: Tensor, padding: Tensor | None = None) -> Tensor:
        parts = list(self.enter(both).chunk(2, 1))
        for stage, wide in zip(self.stages, self.wide, strict=True):
            parts.append(wide(stage(parts[-1], padding), padding))
        return self.leave(torch.cat(parts, 1))


class SeparableShrink(nn.Module):
    """Half the size: a 1 x 1 convolution, and a 3 x 3 one of each feature alone (YOLOv10, Wang et al. 2024, arXiv:2405.14458; "SCDown")."""

    def __init__(self, dim: int):
        super().__init__()
        self.mix = ConvBlock(dim, dim, 1, activation=nn.Identity)
        self.halve = ConvBlock(dim, dim, 3, stride=2, groups=dim, activation=nn.Identity)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.halve(self.mix(x), padding)
