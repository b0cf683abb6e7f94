"""Boxes in space that the cells of every view propose, and queries at the best of them (BEVFormer v2, Yang et al. 2022, arXiv:2211.10439,
section 3.2 and 3.4; the cells as in FCOS3D, Wang et al. 2021, arXiv:2104.10956).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.parts.box_coder_3d import turned
from boxquery.parts.boxes import at_least_float32, chosen_rows, inverse_sigmoid
from boxquery.parts.cameras import limits, tensor_of
from boxquery.parts.heads import MLP
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory
from boxquery.parts.output import PerspectivePredictions
from boxquery.parts.positions import sine
from boxquery.parts.queries import Queries, before_others
from boxquery.parts.state import QueryState


class PerspectiveHead(nn.Module):
    """Classes and a box for every cell of the finest level, by an MLP of its token and of how its ray meets the plane that the vehicle
    stands on.

    A box is the place in the view where its foot is (the middle of its lower face) and how much nearer or further that is than the plane,
    its size, and heading and velocity as seen from the camera. The plane is where a box begins, and no rule: depths are learned.

    Args:
        area: x, y, z at least and at most of the space that boxes are in.
    """

    #: numbers of a cell: foot right and below of its centre, in cells; log of the depth as a share of the plane's; logs of w, l, h; sine
    #: and cosine of the heading against the ray; velocity along the ray and to its left
    NUMBERS = 10

    def __init__(self, dim: int, classes: int, area: Sequence[float]):
        super().__init__()
        self.area = tuple(area)
        #: metres, the depth of the plane at the horizon
        self.far = math.hypot(*(max(abs(low), abs(high)) for low, high in zip(area[:2], area[3:5], strict=True)))
        self.norm, self.ray = nn.LayerNorm(dim), Linear(2, dim)
        self.hidden = nn.Sequential(Linear(dim, dim), nn.ReLU())
        self.classes, self.boxes = Linear(dim, classes), MLP(dim, dim, self.NUMBERS, 2)
        nn.init.constant_(self.classes.bias, -math.log(99))
        last = self.boxes.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        with torch.no_grad():
            last.bias[3:6] = 1.0
            last.bias[7] = 1.0

    def forward(self, memory: Memory) -> tuple[Tensor, PerspectivePredictions]:
        """The hidden features [B, S, D] of the cells, and what they propose."""
        cameras = memory.cameras
        assert cameras is not None
        views, (rows, w) = cameras.count, memory.shapes[0]
        cells = (rows // views, w)
        tokens = memory.tokens[:, : rows * w]
        centres = memory.level(0).centres()[:1, : cells[0] * w] * tensor_of((1, views), memory.extents)
        centres = centres[:, None].expand(tokens.shape[0], views, -1, -1)
        start, direction = cameras.rays(centres)
        ray = torch.stack((self.plane(start, direction).log().flatten(1) - 3, direction[..., 2].flatten(1)), -1)
        hidden = self.hidden(self.norm(tokens) + self.ray(ray.to(tokens.dtype)))
        logits, numbers = self.classes(hidden), at_least_float32(self.boxes(hidden))[0]
        shift, share, size, heading, velocity = numbers.split((2, 1, 3, 2, 2), -1)
        places = centres + shift.unflatten(1, (views, -1)) / tensor_of(cells[::-1], shift)
        start, direction = cameras.rays(places)
        depths = self.plane(start, direction) * share.unflatten(1, (views, -1))[..., 0].clamp(-3, 3).exp()
        feet = (start + depths[..., None] * direction).flatten(1, 2)
        along = F.normalize(direction[..., :2], dim=-1).flatten(1, 2)
        heading, velocity = turned(heading.flip(-1), along), turned(velocity, along)
        height = size[..., 2:].clamp(max=5)
        codes = torch.cat((feet[..., :2], size[..., :2], feet[..., 2:] + height.exp() / 2, height, heading.flip(-1), velocity), -1)
        return hidden, PerspectivePredictions(logits, codes, places.flatten(1, 2), depths.flatten(1), cells, cameras)

    def plane(self, start: Tensor, direction: Tensor) -> Tensor:
        """Depth [B, V, N] at which rays meet the plane z = 0, at most ``far``."""
        height = start[..., 2].clamp(min=0.5)
        return height / (-direction[..., 2]).clamp(min=height / self.far)


class PerspectiveQueries(Queries):
    """Queries at the best of what the cells propose: points where these boxes are.

    Where cells have positions (PETR), a query has that of its cell beside that of its point, so that it finds its cell again.

    Cells that score at least as high as their eight neighbours come before all others, since neighbours mostly propose the same object.

    Args:
        count: of queries; fewer where there are fewer cells.
        cell_content: content from the cells; False: zeros.
        norm: a layer norm of the positions.
    """

    #: how far from 0 and 1 a point's logit is kept
    EPS = 1e-5

    def __init__(self, count: int, dim: int, head: PerspectiveHead, *, cell_content: bool = True, norm: bool = False):
        super().__init__()
        self.count, self.dim, self.head = count, dim, head
        self.content = nn.Sequential(Linear(dim, dim), nn.LayerNorm(dim)) if cell_content else None
        self.position = MLP(3 * dim // 2, dim, dim, 2)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def ordinary(self, memory: Memory) -> QueryState:
        hidden, proposed = self.head(memory)
        scores = at_least_float32(proposed.logits.detach().amax(-1))[0]
        maps = scores.unflatten(1, (-1, *proposed.cells)).flatten(0, 1)
        peaks = (maps >= F.max_pool2d(maps[:, None], 3, 1, 1)[:, 0]).view_as(scores)
        best = before_others(scores, peaks).topk(torch.sym_min(self.count, scores.shape[1]), 1).indices
        low, high = limits(self.head.area, proposed.codes)
        centres = chosen_rows(proposed.codes[..., (0, 1, 4)].detach(), best)
        points = ((centres - low) / (high - low)).clamp(0, 1)
        position = self.position(sine(points[..., [1, 0, 2]], self.dim // 2))
        if memory.position is not None:
            position = position + chosen_rows(memory.position, best)
        reference = inverse_sigmoid(points, self.EPS)
        position, rows = self.norm(position), chosen_rows(hidden, best)
        content = torch.zeros_like(rows) if self.content is None else self.content(rows)
        return QueryState(content=content, position=position, reference=reference, box_anchor=reference, proposed=proposed)
