"""Positions of queries and limits of their attention, made by ``locate``; and two options that wrap any paper's ``locate``.

Shape suffixes as in ``boxquery.parts.attention.dense``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.errors import UserError
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.heads import MLP
from boxquery.parts.memory import Memory
from boxquery.parts.positions import box_sine, sine
from boxquery.parts.state import QueryState


@dataclass(frozen=True)
class QueryGeometry:
    """Positions of the queries and limits of their attention in one layer; a paper fills what its attentions use.

    Attributes:
        position: [B or 1, Q, D], added to content in cross-attention, or compared separately.
        self_position: [B or 1, Q, D], the same in self-attention; None: ``position``.
        axes: two [B or 1, Q, D], positions in x and in y, for row-column attention.
        reference: [B, Q, 2 or 4] point or box in [0, 1] of the unpadded extent; of scenes the point [B, Q, 3] in [0, 1] of the space.
        bias: [B or 1, H or 1, Q, S], added to the logits of cross-attention; only for attentions that have ``takes_bias``.
        self_mask: [Q, Q] or [B, Q, Q] bool, True = may not attend.
    """

    position: Tensor | None = None
    self_position: Tensor | None = None
    axes: tuple[Tensor, Tensor] | None = None
    reference: Tensor | None = None
    bias: Tensor | None = None
    self_mask: Tensor | None = None

    @property
    def own_position(self) -> Tensor | None:
        """The position used in self-attention."""
        return self.position if self.self_position is None else self.self_position


#: ``(state, memory, layer) -> (state, geometry)``: redone for every layer from the layer's input
Locate = Callable[[QueryState, Memory, int], tuple[QueryState, QueryGeometry]]
T = TypeVar("T")


def require(value: T | None, part: str, what: str) -> T:
    """The value, or a ``UserError`` where the other parts do not provide it to ``part``."""
    if value is None:
        raise UserError(f"{part} needs {what}, which the other parts do not provide; docs/mixing.md says which fit")
    return value


def require_boxes(value: Tensor | None, part: str, what: str) -> Tensor:
    """``require`` for boxes [..., 4]; points are refused."""
    return require(None if value is None or value.shape[-1] != 4 else value, part, f"{what} of four numbers")


def reject_bias(geometry: QueryGeometry, part: str) -> None:
    """Raises ``UserError`` where ``locate`` gives Gaussians to an attention that would ignore them."""
    if geometry.bias is not None:
        raise UserError(f"{part} cannot use the QueryGeometry.bias (Gaussians) that locate gives; docs/mixing.md says which parts fit")


def with_pos(content: Tensor, position: Tensor | None) -> Tensor:
    return content if position is None else content + position.to(content.dtype)


def locate_at_position(state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
    """DETR: the query's own position (and reference, if it has one), without a limit on cross-attention."""
    reference = None if state.reference is None else state.reference.sigmoid()
    return state, QueryGeometry(position=state.position, axes=state.axes, reference=reference, self_mask=state.self_mask)


class OtherPosition(nn.Module):
    """Locate: another position than the paper's in self-attention, and in cross-attention too where the paper adds the same one.

    A position that cross-attention compares separately (``position`` with a ``self_position``: Conditional DETR, DAB) stays the paper's.

    Args:
        locate: the paper's, whose position is replaced.
        kind: "learned", a vector per query; "sine" of the reference's centre (as SAM-DETR); "sine-mlp", an MLP of the sine of the reference
            box (DAB-DETR, eq. 3), where a point is a box without size; "none", zeros.
        queries: ordinary queries of the first layer, for "learned".
    """

    def __init__(self, locate: Locate, kind: Literal["learned", "sine", "sine-mlp", "none"], dim: int, queries: int):
        super().__init__()
        self.place, self.kind, self.dim = locate, kind, dim
        self.table = nn.Parameter(torch.empty(queries, dim).normal_()) if kind == "learned" else None
        self.mlp = MLP(2 * dim, dim, dim, 2) if kind == "sine-mlp" else None

    def forward(self, state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
        state, geometry = self.place(state, memory, layer)
        position, own = self.position(state, geometry), geometry.own_position
        if own is not None and own.requires_grad:
            # every process needs a gradient of every parameter, also of those that made the paper's own position
            position = position + 0 * own.mean()
        name = "position" if geometry.self_position is None else "self_position"
        return state, replace(geometry, **{name: position})

    def position(self, state: QueryState, geometry: QueryGeometry) -> Tensor:
        """[B or 1, Q, D]."""
        if self.table is not None:
            return self.table[None] if state.query_index is None else self.table[state.query_index]
        if self.kind == "none":
            return state.content.new_zeros(1, 1, self.dim)
        reference = require(geometry.reference, f"query_position={self.kind!r}", "QueryGeometry.reference")
        if self.mlp is None:
            return sine(reference[..., :2].flip(-1), self.dim // 2)
        return self.mlp(box_sine(F.pad(reference, (0, 4 - reference.shape[-1])), self.dim // 2))


class RelativeBias(nn.Module):
    """Locate: a bias per head on the logits of cross-attention, from a cell's distances to the sides of the query's box.

    Box-to-pixel relative position bias (Lin et al. 2023, arXiv:2308.01904, section 4.1), decomposed by axis: one small MLP takes the
    distances of a column's centre from the left and right side, another those of a row's from top and bottom, and the two are added.
    Distances are signed, in shares of the unpadded image. The last linear maps start at zero, so that the model starts without a bias.

    The box is the reference; where that is a point, or there is none, it is the previous layer's prediction (without gradient), and in
    the first layer a box without size at the point, or the whole image.
    """

    def __init__(self, locate: Locate, dim: int, heads: int, layers: int):
        super().__init__()
        self.place = locate
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
        if state.previous is not None:
            return state.previous.boxes.detach()
        if geometry.reference is not None:
            return F.pad(geometry.reference, (0, 2))
        whole = memory.valid_ratios.new_tensor((0.5, 0.5, 1.0, 1.0))
        return whole.expand(*state.content.shape[:2], -1)


def _distances(centres: Tensor, sides: Tensor) -> Tensor:
    """[B, n] and [B, Q, 2] -> [B, Q, n, 2]: from the near side to the centre, and from the centre to the far side; negative outside."""
    centres, near, far = centres[:, None], sides[..., :1], sides[..., 1:]
    return torch.stack((centres - near, far - centres), -1)
