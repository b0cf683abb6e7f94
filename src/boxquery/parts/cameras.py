"""The pinhole cameras of a scene: where points of space are in their views, and where in space cells of the views may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: depth in metres below which a point is not in front of a camera (DETR3D)
NEAR = 1e-5


@dataclass(frozen=True)
class Cameras:
    """Shapes: B scenes, V views of one size.

    Attributes:
        lidar2img: [B, V, 4, 4], from the frame of the vehicle to pixels: (u * depth, v * depth, depth, 1); an image reaches from 0 to its
            width and height. The last row is (0, 0, 0, 1).
        size: (height, width) of every view in pixels.
        area: x, y, z at least and at most of the space in which objects are, in metres.
    """

    lidar2img: Tensor
    size: tuple[int, int]
    area: tuple[float, ...]

    @property
    def count(self) -> int:
        """V."""
        return self.lidar2img.shape[1]

    def metres(self, points: Tensor) -> Tensor:
        """[..., 3] in [0, 1] of the space -> metres."""
        low, high = limits(self.area, points)
        return points * (high - low) + low

    def project(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Q, 3] in metres -> where they are in each view, [B, V, Q, 2] (x, y) in [0, 1] of its width and height, and whether they are
        inside it and in front of the camera, bool [B, V, Q]."""
        places, depth = self.seen(points)
        return places, (depth > NEAR) & ((places > 0) & (places < 1)).all(-1)

    def seen(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """[B, Q, 3] in metres -> the same places, and depths [B, V, Q] in metres along each camera's axis."""
        matrix = self.lidar2img.to(points.dtype)
        seen = times(matrix[..., :3, :3], points[:, None]) + matrix[..., None, :3, 3]
        return seen[..., :2] / seen[..., 2:].clamp(min=NEAR) / tensor_of(self.size[::-1], points), seen[..., 2]

    def rays(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Places (x, y) [B, V, N, 2] in [0, 1] of each view -> where its rays start, [B, V, 1, 3] in metres, and directions [B, V, N, 3]:
        the point at a depth is start + depth * direction."""
        matrix = self.lidar2img.to(places.dtype)
        inverse = inverse_3x3(matrix[..., :3, :3])
        pixels = places * tensor_of(self.size[::-1], places)
        directions = times(inverse, torch.cat((pixels, torch.ones_like(pixels[..., :1])), -1))
        return -times(inverse, matrix[..., None, :3, 3]), directions

    def unproject(self, cells: tuple[int, int], depths: Tensor) -> Tensor:
        """Points [B, V, h, w, K, 3] in metres at K depths [K] on the ray of every cell's first pixel, cells being (h, w) per view."""
        (h, w), options = cells, {"device": depths.device, "dtype": depths.dtype}
        y, x = torch.arange(h, **options) / h, torch.arange(w, **options) / w
        places = torch.stack((x.expand(h, w), y[:, None].expand(h, w)), -1).flatten(0, 1)
        start, direction = self.rays(places.expand(*self.lidar2img.shape[:2], -1, -1))
        return (start[..., None, :] + depths[:, None] * direction[..., None, :]).unflatten(2, cells)


def times(matrix: Tensor, points: Tensor) -> Tensor:
    """Matrices [..., 3, 3] times each of the points [..., N, 3] that belong to them; without a matrix product, whose factors autocast and
    TF32 would round."""
    return (matrix[..., None, :, :] * points[..., None, :]).sum(-1)


def inverse_3x3(matrix: Tensor) -> Tensor:
    """Of [..., 3, 3], in closed form, which exported models can compute, too; inf or NaN where there is none."""
    first, second, third = matrix.unbind(-2)
    cofactors = torch.stack([torch.linalg.cross(a, b) for a, b in ((second, third), (third, first), (first, second))], -1)
    return cofactors / (first * cofactors[..., 0]).sum(-1)[..., None, None]


def tensor_of(values: Sequence[int], like: Tensor) -> Tensor:
    """A tensor [N], in the dtype and on the device of ``like``, which an exported model computes from the shapes of its input."""
    return torch.stack([like.new_full((), value) for value in values])


def limits(area: Sequence[float], like: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest corner [3] of an area."""
    low, high = like.new_tensor(area).chunk(2)
    return low, high
