"""What the decoder reads: the image as tokens, with everything that says where each token is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Memory:
    """Tokens of all levels in one row, level by level, row by row.

    Shapes: B images, S tokens, L levels, D features.

    Attributes:
        tokens: [B, S, D].
        position: [B or 1, S, D], added to queries and keys, never to values.
        mask: [B, S] bool, True = padding; None where nothing is padded.
        shapes: (height, width) in cells of every level.
        valid_ratios: [B, L, 2], the share (of width, of height) of each level's map that is image and not padding.
    """

    tokens: Tensor
    position: Tensor
    mask: Tensor | None
    shapes: tuple[tuple[int, int], ...]
    valid_ratios: Tensor

    def with_tokens(self, tokens: Tensor) -> Memory:
        return replace(self, tokens=tokens)

    def maps(self, values: Tensor) -> list[Tensor]:
        """[B, S, ...] of any meaning -> per level [B, h, w, ...], without a copy."""
        parts = values.split([h * w for h, w in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def centres(self) -> Tensor:
        """[B, S, 2] (x, y) of every cell's centre, in [0, 1] of the image's unpadded extent (above 1 where padding is)."""
        options = {"device": self.tokens.device, "dtype": self.valid_ratios.dtype}
        grids = []
        for level, (h, w) in enumerate(self.shapes):
            y = (torch.arange(h, **options) + 0.5) / h
            x = (torch.arange(w, **options) + 0.5) / w
            grid = torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).flatten(0, 1)
            grids.append(grid / self.valid_ratios[:, level, None])
        return torch.cat(grids, 1)


class Tokens(nn.Module):
    """Feature maps -> ``Memory``: flattens, resizes the mask, adds nothing but a position table and, if asked, one vector a level.

    The pixel mask goes to each level's size by nearest neighbour, directly (DETR, all of the family).
    """

    def __init__(self, position: nn.Module, dim: int, levels: int = 1, level_embedding: bool = False):
        super().__init__()
        self.position = position
        self.level_embedding = nn.Parameter(torch.empty(levels, dim).normal_()) if level_embedding else None

    def forward(self, maps: Sequence[Tensor], mask: Tensor | None) -> Memory:
        tokens, positions, masks, ratios = [], [], [], []
        for level, features in enumerate(maps):
            size = features.shape[-2:]
            if mask is None:
                padding = features.new_zeros((1, *size), dtype=torch.bool)
            else:
                padding = F.interpolate(mask[:, None].to(torch.uint8), size=size)[:, 0].bool()
            position = self.position(padding, features).flatten(1, 2)
            if self.level_embedding is not None:
                position = position + self.level_embedding[level]
            valid = ~padding
            ratio = torch.stack((valid[:, 0].sum(-1) / size[1], valid[:, :, 0].sum(-1) / size[0]), -1)
            tokens.append(features.flatten(2).transpose(1, 2))
            positions.append(position)
            masks.append(padding.flatten(1))
            ratios.append(ratio)
        every = torch.cat(tokens, 1)
        # positions and ratios stay float32 at least, also under autocast
        return Memory(
            tokens=every,
            position=torch.cat(positions, 1),
            mask=None if mask is None else torch.cat(masks, 1),
            shapes=tuple((f.shape[-2], f.shape[-1]) for f in maps),
            valid_ratios=torch.stack(ratios, 1).to(positions[0].dtype).expand(len(every), -1, -1),
        )
