"""What can be laid around any paper's place: another position of the queries, and a bias from box to pixel.

Shape suffixes as in ``boxquery.parts.attention.dense``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.parts.attention.dense import QueryGeometry, require
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.heads import MLP
from boxquery.parts.memory import Memory
from boxquery.parts.positions import box_sine, sine
from boxquery.parts.state import QueryState

Place = Callable[[QueryState, Memory, int], tuple[QueryState, QueryGeometry]]


class OtherPosition(nn.Module):
    """Place: queries tell each other another position than the paper's, and the image too where the paper adds the same to the content.

    A place that the read compares by itself (``position`` beside a ``self_position``: Conditional DETR, DAB)
    stays the paper's.

    Args:
        place: says all else.
        kind: "learned", a vector a query; "sine" of the reference's centre (as SAM-DETR); "sine-mlp", an MLP of the sine of the reference
            box (DAB-DETR, eq. 3), where a point is a box without size; "none", zeros.
        queries: ordinary queries of the first layer, for "learned".
    """

    def __init__(self, place: Place, kind: Literal["learned", "sine", "sine-mlp", "none"], dim: int, queries: int):
        super().__init__()
        self.place, self.kind, self.dim = place, kind, dim
        self.table = nn.Parameter(torch.empty(queries, dim).normal_()) if kind == "learned" else None
        self.mlp = MLP(2 * dim, dim, dim, 2) if kind == "sine-mlp" else None

    def forward(self, state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
        state, geometry = self.place(state, memory, layer)
        position, own = self.position(state, geometry), geometry.position if geometry.self_position is None else geometry.self_position
        if own is not None and own.requires_grad:
            # processes that share gradients need one of every parameter, also of those that made the paper's own position
            position = position + 0 * own.mean()
        return state, replace(geometry, position=position) if geometry.self_position is None else replace(geometry, self_position=position)

    def position(self, state: QueryState, geometry: QueryGeometry) -> Tensor:
        """[B or 1, Q, D]."""
        if self.table is not None:
            return self.table[None] if state.rows is None else self.table[state.rows]
        if self.kind == "none":
            return state.content.new_zeros(1, 1, self.dim)
        reference = require(geometry.reference, f"query_position={self.kind!r}", "QueryGeometry.reference")
        if self.mlp is None:
            return sine(reference[..., :2].flip(-1), self.dim // 2)
        return self.mlp(box_sine(F.pad(reference, (0, 4 - reference.shape[-1])), self.dim // 2))


class RelativeBias(nn.Module):
    """Place: how far a cell is from the sides of a query's box is added to the logits of the read, in every layer and head of its own.

    Box-to-pixel relative position bias (Lin et al. 2023, arXiv:2308.01904, section 4.1), decomposed by axis: one small MLP reads the
    distances of a column's centre from the left and right side, another those of a row's from top and bottom, and the two are added.
    Distances are signed, in shares of the unpadded image. The last linear maps start at zero, so that the model starts without a bias.

    The box is the reference; where that is a point, or there is none, it is what the layer before predicted (without gradient), and in
    the first layer a box without size at the point, or the whole image.
    """

    def __init__(self, place: Place, dim: int, heads: int, layers: int):
        super().__init__()
        self.place = place
        self.across = nn.ModuleList(MLP(2, dim, heads, 2) for _ in range(layers))
        self.down = nn.ModuleList(MLP(2, dim, heads, 2) for _ in range(layers))
        for mlp in (*self.across, *self.down):
            assert isinstance(mlp, MLP)
            for parameter in mlp.layers[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
        state, geometry = self.place(state, memory, layer)
        sides = cxcywh_to_xyxy(self.box(state, geometry, memory))
        out = []
        for (h, w), ratio in zip(memory.shapes, memory.valid_ratios.unbind(1), strict=True):
            x, y = (
                (torch.arange(n, device=ratio.device, dtype=ratio.dtype) + 0.5) / n / ratio[:, axis, None] for axis, n in ((0, w), (1, h))
            )
            across, down = _distances(x, sides[..., 0::2]), _distances(y, sides[..., 1::2])
            columns, rows = self.across[layer](across), self.down[layer](down)
            out.append((rows[:, :, :, None] + columns[:, :, None]).flatten(2, 3))
        bias = torch.cat(out, 2).permute(0, 3, 1, 2)
        return state, replace(geometry, bias=bias if geometry.bias is None else geometry.bias + bias)

    def box(self, state: QueryState, geometry: QueryGeometry, memory: Memory) -> Tensor:
        """[B, Q, 4] cxcywh in [0, 1] of the unpadded extent."""
        if geometry.reference is not None and geometry.reference.shape[-1] == 4:
            return geometry.reference
        if state.predicted is not None:
            return state.predicted.sigmoid()
        if geometry.reference is not None:
            return F.pad(geometry.reference, (0, 2))
        whole = memory.valid_ratios.new_tensor((0.5, 0.5, 1.0, 1.0))
        return whole.expand(*state.content.shape[:2], -1)


def _distances(centres: Tensor, sides: Tensor) -> Tensor:
    """[B, n] and [B, Q, 2] -> [B, Q, n, 2]: from the near side to the centre, and from the centre to the far side; negative outside."""
    centres, near, far = centres[:, None], sides[..., :1], sides[..., 1:]
    return torch.stack((centres - near, far - centres), -1)
