"""Position encodings: sine and learned tables for the image, sine of points and boxes for queries."""

import math

import torch
from torch import Tensor, nn


def sine(coordinates: Tensor, features: int, temperature: float = 10000.0) -> Tensor:
    """[..., n] numbers in [0, 1] -> [..., n * features]: sine and cosine, interleaved, of 2 pi times each number.

    Pair i has frequency ``temperature ** (-2 i / features)`` (DETR, appendix A.4). The blocks keep the order of the coordinates; most
    of the family puts y first, so callers write ``sine(xy.flip(-1), ...)``.
    """
    pairs = torch.arange(features // 2, device=coordinates.device, dtype=coordinates.dtype)
    angles = (2 * math.pi * coordinates)[..., None] / temperature ** (2 * pairs / features)
    return torch.stack((angles.sin(), angles.cos()), -1).flatten(-3)


def box_sine(boxes: Tensor, features: int) -> Tensor:
    """[..., 4] cxcywh in [0, 1] -> [..., 4 * features] in the order y, x, w, h (DAB-DETR, eq. 3)."""
    return sine(torch.cat((boxes[..., :2].flip(-1), boxes[..., 2:]), -1), features)


class SinePosition(nn.Module):
    """The fixed table of DETR: a cell's number in the valid area divided by the valid size, through ``sine``; y half, then x half.

    Args:
        dim: features; half for each axis.
        temperature: of the frequencies (DETR 10000, DAB-DETR 20).
        offset: subtracted from the cell's number, which starts at 1: 0 in DETR, 0.5 (cell centres) in Deformable DETR.
    """

    def __init__(self, dim: int, temperature: float = 10000.0, offset: float = 0.0):
        super().__init__()
        self.dim, self.temperature, self.offset = dim, temperature, offset

    def forward(self, padding: Tensor, like: Tensor) -> Tensor:
        """[B, h, w] bool (True = padding) -> [B, h, w, dim] in the dtype of ``like``, float32 at least."""
        valid = (~padding).to(torch.promote_types(like.dtype, torch.float32))
        y, x = valid.cumsum(1), valid.cumsum(2)
        y = (y - self.offset) / (y[:, -1:] + 1e-6)
        x = (x - self.offset) / (x[:, :, -1:] + 1e-6)
        return sine(torch.stack((y, x), -1), self.dim // 2, self.temperature)


class CellSinePosition(nn.Module):
    """Sines and cosines of a cell's row and column, counted from 0 and not divided by a size (RT-DETR).

    Frequency i is ``temperature ** (-4 i / dim)``; first all sines of y, then its cosines, then both of x. (The authors' code counts
    columns first: the same on square maps, and another order of cells on all others.)
    """

    def __init__(self, dim: int, temperature: float = 10000.0):
        super().__init__()
        self.dim, self.temperature = dim, temperature

    def forward(self, padding: Tensor, like: Tensor) -> Tensor:
        """[B, h, w] bool -> [1, h, w, dim] in the dtype of ``like``, float32 at least."""
        h, w = padding.shape[1:]
        options = {"device": like.device, "dtype": torch.promote_types(like.dtype, torch.float32)}
        frequencies = self.temperature ** -(torch.arange(self.dim // 4, **options) / (self.dim // 4))
        y, x = (torch.arange(n, **options)[:, None] * frequencies for n in (h, w))
        rows, columns = (torch.cat((angles.sin(), angles.cos()), -1) for angles in (y, x))
        return torch.cat((rows[:, None].expand(-1, w, -1), columns.expand(h, -1, -1)), -1)[None]


class SingleSinePosition(nn.Module):
    """``SinePosition(dim, offset=0.5)`` in single precision whatever the model's, with SAM-DETR's order of operations.

    On the image the two agree to rounding. Where a whole row or column is padding the divisor is 1e-6 and the angle near 3e6, so that
    every rounding shows; only SAM-DETR's RoIAlign uses those cells, and its weights were trained with these values.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, padding: Tensor, like: Tensor) -> Tensor:
        """[B, h, w] bool (True = padding) -> [B, h, w, dim] in the dtype of ``like``, float32 at least."""
        valid = (~padding).float()
        y, x = valid.cumsum(1) - 0.5, valid.cumsum(2) - 0.5
        y = y / (y[:, -1:] + 1e-6 + 0.5)
        x = x / (x[:, :, -1:] + 1e-6 + 0.5)
        return sine(torch.stack((y, x), -1), self.dim // 2).to(torch.promote_types(like.dtype, torch.float32))


class LearnedPosition(nn.Module):
    """DETR's learned table: a vector per column and a vector per row (x half first, unlike the sine table), uniform in [0, 1) at the start.

    The published table ends at 50 cells; for a larger map it is interpolated linearly.
    """

    def __init__(self, dim: int, cells: int = 50):
        super().__init__()
        self.column = nn.Parameter(torch.rand(cells, dim // 2))
        self.row = nn.Parameter(torch.rand(cells, dim // 2))

    def forward(self, padding: Tensor, like: Tensor) -> Tensor:
        """[B, h, w] -> [1, h, w, dim]; the mask is not used (the paper's table counts from the corner)."""
        h, w = padding.shape[1:]
        x = _first(self.column, w)[None].expand(h, -1, -1)
        y = _first(self.row, h)[:, None].expand(-1, w, -1)
        return torch.cat((x, y), -1)[None].to(torch.promote_types(like.dtype, torch.float32))


class NoPosition(nn.Module):
    """No position: zeros, which every attention accepts."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, padding: Tensor, like: Tensor) -> Tensor:
        """[B, h, w] -> [1, h, w, dim]."""
        return like.new_zeros((1, *padding.shape[1:], self.dim), dtype=torch.promote_types(like.dtype, torch.float32))


def _first(table: Tensor, count: int) -> Tensor:
    if count <= len(table):
        return table[:count]
    return nn.functional.interpolate(table.T[None], size=count, mode="linear", align_corners=True)[0].T
