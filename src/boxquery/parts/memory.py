"""What the decoder attends to: the image as tokens, with their positions and layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.parts.cameras import Cameras


@dataclass(frozen=True)
class Memory:
    """Tokens of all levels in one row, level by level, row by row.

    Shapes: B images, S tokens, L levels, D features.

    Attributes:
        tokens: [B, S, D].
        position: [B or 1, S, D], added to queries and keys, never to values.
        mask: [B, S] bool, True = padding; None where nothing is padded.
        shapes: (height, width) in cells of every level.
        valid_ratios: [B, L, 2], the share (of width, of height) of each level's map that is image and not padding: of whole cells, or
            exact (``Tokens``).
        extents: [B, 2], (width, height) in pixels of the unpadded image.
        axes: for row-column attention, per level the positions of its columns [B, w, D] and of its rows [B, h, D].
        cameras: of a scene. A map is then that of all V views, one below the other: ``shapes`` are (V * h, w).
    """

    tokens: Tensor
    position: Tensor | None
    mask: Tensor | None
    shapes: tuple[tuple[int, int], ...]
    valid_ratios: Tensor
    extents: Tensor
    axes: tuple[tuple[Tensor, Tensor], ...] = ()
    cameras: Cameras | None = None

    def with_tokens(self, tokens: Tensor) -> Memory:
        return replace(self, tokens=tokens)

    def maps(self, values: Tensor) -> list[Tensor]:
        """[B, S, ...] of any meaning -> per level [B, h, w, ...], without a copy."""
        parts = values.split([h * w for h, w in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    @property
    def views(self) -> int:
        """How many views a map has below each other; 1 for an image."""
        return 1 if self.cameras is None else self.cameras.count

    def level(self, index: int) -> Memory:
        """One level alone."""
        sizes = [h * w for h, w in self.shapes]
        cells = slice(sum(sizes[:index]), sum(sizes[: index + 1]))
        return replace(
            self,
            tokens=self.tokens[:, cells],
            position=None if self.position is None else self.position[:, cells],
            mask=None if self.mask is None else self.mask[:, cells],
            shapes=self.shapes[index : index + 1],
            valid_ratios=self.valid_ratios[:, index : index + 1],
            axes=self.axes[index : index + 1],
        )

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

    def cells(self) -> Tensor:
        """[B, S, 2] (width, height) of every cell, in the unit of ``centres``."""
        options = {"device": self.tokens.device, "dtype": self.valid_ratios.dtype}
        sizes = [torch.tensor((1 / w, 1 / h), **options) / self.valid_ratios[:, level] for level, (h, w) in enumerate(self.shapes)]
        return torch.cat([size[:, None].expand(-1, h * w, -1) for size, (h, w) in zip(sizes, self.shapes, strict=True)], 1)


class Tokens(nn.Module):
    """Feature maps -> ``Memory``: flattened, with positions, the resized mask and, with ``level_embedding``, one vector per level.

    The pixel mask goes to each level's size by nearest neighbour, directly (DETR, all of the family).

    Args:
        position: ``(padding [B, h, w], features) -> [B or 1, h, w, dim]``, or the positions of columns and rows ([B, w, dim], [B, h, dim]).
        strides: pixels from one cell of each level to the next, for exact ``valid_ratios``. None: they are of whole cells, as published,
            which moves boxes of an image whose sides are no multiple of the strides: of 258 pixels in 33 cells of 8 the last is a quarter
            of a cell wide, and counts as one. A model learns by how much for the sizes that it is trained on, and is wrong for others.
    """

    def __init__(self, position: nn.Module, dim: int, levels: int = 1, level_embedding: bool = False, strides: Sequence[int] | None = None):
        super().__init__()
        self.position, self.strides = position, strides
        self.level_embedding = nn.Parameter(torch.empty(levels, dim).normal_()) if level_embedding else None

    def forward(self, maps: Sequence[Tensor], mask: Tensor | None, size: tuple[int, int]) -> Memory:
        """maps [B, dim, h, w] of each level, the pixel mask [B, H, W] or None, and the batch's (height, width) in pixels."""
        tokens, positions, axes, masks, ratios = [], [], [], [], []
        shapes = tuple((f.shape[-2], f.shape[-1]) for f in maps)
        for level, features in enumerate(maps):
            cells = features.shape[-2:]
            if mask is None:
                padding = features.new_zeros((1, *cells), dtype=torch.bool)
            else:
                padding = F.interpolate(mask[:, None].to(torch.uint8), size=cells)[:, 0].bool()
            position = self.position(padding, features)
            if isinstance(position, tuple):
                axes.append(position)
            else:
                position = position.flatten(1, 2)
                positions.append(position if self.level_embedding is None else position + self.level_embedding[level])
            tokens.append(features.flatten(2).transpose(1, 2))
            if self.strides is None:
                columns, rows = extent(padding)
                ratios.append(torch.stack((columns / cells[1], rows / cells[0]), -1))
            masks.append(padding.flatten(1))
        every = torch.cat(tokens, 1)
        # positions, ratios and extents stay float32 at least, also under autocast
        exact = torch.promote_types(every.dtype, torch.float32)
        width, height = (every.new_full((1,), n, dtype=exact) for n in (size[1], size[0])) if mask is None else extent(mask)
        extents = torch.stack((width, height), -1).to(exact)
        if self.strides is None:
            valid_ratios = torch.stack(ratios, 1).to(exact)
        else:
            valid_ratios = extents[:, None] / (map_sizes(shapes, extents) * map_sizes([(s, s) for s in self.strides], extents))
        return Memory(
            tokens=every,
            position=torch.cat(positions, 1) if positions else None,
            mask=None if mask is None else torch.cat(masks, 1),
            shapes=shapes,
            valid_ratios=valid_ratios.expand(every.shape[0], -1, -1),
            extents=extents.expand(every.shape[0], -1),
            axes=tuple(axes),
        )


def map_sizes(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(height, width) of maps -> [L, 2] (width, height), in the dtype and on the device of ``like``."""
    if torch.compiler.is_exporting():  # a tensor of numbers would be a constant of the graph
        return torch.stack([torch.full((), side, dtype=like.dtype) for h, w in shapes for side in (w, h)]).view(-1, 2)
    return like.new_tensor([(w, h) for h, w in shapes])


def extent(padding: Tensor) -> tuple[Tensor, Tensor]:
    """[B, h, w] bool, True = padding -> valid columns and rows, int64 [B] each."""
    return (~padding[:, 0]).sum(-1), (~padding[:, :, 0]).sum(-1)
