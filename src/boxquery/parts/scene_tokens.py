"""Feature maps of a scene's views -> ``Memory``, and the position of every cell in space."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from boxquery.boxes3d import widened
from boxquery.parts.boxes import inverse_sigmoid
from boxquery.parts.cameras import Cameras, limits, tensor_of
from boxquery.parts.heads import MLP
from boxquery.parts.memory import Memory
from boxquery.parts.positions import sine


class SceneTokens(nn.Module):
    """Maps of all views -> ``Memory``, one view below the other in the map of each level.

    Args:
        position: ``(cameras, cells) -> [B, V, h, w, D]`` of a level with so many cells (h, w) per view; None: cells have no position.
        norm: of the tokens [B, S, D], position not included; None: as the maps are.
    """

    def __init__(self, position: nn.Module | None = None, norm: nn.Module | None = None):
        super().__init__()
        self.position, self.norm = position, norm

    def forward(self, maps: Sequence[Tensor], cameras: Cameras) -> Memory:
        """maps [B * V, D, h, w] of each level, a scene's views one after the other."""
        batch, views = cameras.lidar2img.shape[:2]
        cells = [(m.shape[-2], m.shape[-1]) for m in maps]
        tokens = torch.cat([m.unflatten(0, (batch, views)).permute(0, 1, 3, 4, 2).flatten(1, 3) for m in maps], 1)
        if self.norm is not None:
            tokens = self.norm(tokens)
        position = None if self.position is None else torch.cat([self.position(cameras, each).flatten(1, 3) for each in cells], 1)
        exact = torch.promote_types(tokens.dtype, torch.float32)
        height, width = cameras.size
        return Memory(
            tokens=tokens,
            position=position,
            mask=None,
            shapes=tuple((views * h, w) for h, w in cells),
            valid_ratios=tokens.new_ones(batch, len(maps), 2, dtype=exact),
            extents=tensor_of((width, height), cameras.lidar2img.to(exact)).expand(batch, -1),
            cameras=cameras,
        )


class RayPosition(nn.Module):
    """Where a cell may be in space, and which cell of which view it is, each through an MLP, added (PETR, section 3.2, and its code).

    Space: ``depths`` points on the ray of the cell, from 1 m to the end of the widened area at distances that grow linearly; each as logits
    of its place in that area. View: sines of the numbers of camera, row and column.

    Args:
        norm: a layer norm of the sum.
    """

    #: metres; and how far from 0 and 1 a place's logit is kept
    FIRST, EPS = 1.0, 1e-5

    def __init__(self, dim: int, area: Sequence[float], depths: int, norm: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.dim, self.area = dim, widened(area)
        self.ray, self.view = MLP(3 * depths, 4 * dim, dim, 2), MLP(3 * dim // 2, 4 * dim, dim, 2)
        self.depths = [self.FIRST + (self.area[3] - self.FIRST) * k * (k + 1) / (depths * (depths + 1)) for k in range(depths)]

    def forward(self, cameras: Cameras, cells: tuple[int, int]) -> Tensor:
        """[B, V, h, w, D], float32 at least."""
        weight = next(self.ray.parameters())
        depths = torch.tensor(self.depths, device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32))
        low, high = limits(self.area, depths)
        places = (cameras.unproject(cells, depths) - low) / (high - low)
        ray = self.ray(inverse_sigmoid(places.clamp(0, 1), self.EPS).flatten(-2))
        counts = (cameras.count, *cells)
        numbers = [torch.arange(1, n + 1, device=depths.device, dtype=depths.dtype) / (n + 1e-6) for n in counts]
        grid = torch.stack(torch.meshgrid(*numbers, indexing="ij"), -1)
        return self.norm(ray + self.view(sine(grid, self.dim // 2)))
