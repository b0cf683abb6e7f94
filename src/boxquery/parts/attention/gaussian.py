"""Cross-attention modulated by Gaussians over the image's cells (SMCA-DETR, Gao et al. 2021, arXiv:2101.07448, sections 3.2 and 3.3).

Shape suffixes as in ``boxquery.parts.attention.dense``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from boxquery.parts.geometry import Locate, QueryGeometry, require, with_pos
from boxquery.parts.heads import MLP
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory
from boxquery.parts.state import QueryState

#: widths of a Gaussian: none, one per head, one per axis, and one more for both axes together
DynamicScale = Literal["type1", "type2", "type3", "type4"]
SCALES: dict[str, int] = {"type1": 0, "type2": 1, "type3": 2, "type4": 3}


def log_gaussian(centre: Tensor, squares: tuple[Tensor, Tensor, Tensor | None], memory: Memory, steps: tuple[float, ...]) -> Tensor:
    """The exponent of every head's Gaussian: -(a dx^2 + b dy^2 + c dx^2 dy^2) (section 3.2).

    Args:
        centre: [B, H, Q, 2], (x, y) in cells; distances are measured from the cells' indices, not their centres.
        squares: a, b and c, [B, H, Q] each or broadcastable; c may be None.
        steps: width of each level's cells, in the cells in which the centre is measured.

    Returns [B, H, Q, S].
    """
    (a, b, c), out = squares, []
    for (h, w), step in zip(memory.shapes, steps, strict=True):
        x, y = (torch.arange(n, device=centre.device, dtype=centre.dtype) * step for n in (w, h))
        dx, dy = (x - centre[..., :1]) ** 2, (y - centre[..., 1:]) ** 2
        across, down = (a[..., None] * dx)[..., None, :], (b[..., None] * dy)[..., None]
        exponent = across + down
        if c is not None:
            exponent = exponent + (c[..., None] * dx)[..., None, :] * dy[..., None]
        out.append(exponent.flatten(-2))
    return -torch.cat(out, -1)


class GaussianLocate(nn.Module):
    """Locate: a Gaussian per head around the query's centre, with its own offset and widths in every layer (section 3.2).

    Queries without a reference get one in the first layer, predicted from content and position; it is kept, with its gradient, as
    reference and as anchor of the boxes. Queries that have a reference (points, or the centres of boxes) keep theirs.

    Args:
        locate: gives the ``QueryGeometry`` to which the Gaussians are added. Offsets and widths are predicted from content plus the
            position used in self-attention.
        layers: decoder layers.
        kind: number of scales per head (see ``SCALES``); their squares multiply squared distances (large is narrow), and start at 1.
        smooth: divides the exponent (the paper's beta).
        stride: pixels per cell in which centres, offsets and widths are measured.
        steps: width of each level's cells in such cells: one Gaussian in the image serves all levels.
        predicts: queries have no reference; the first layer predicts it.
    """

    def __init__(
        self,
        locate: Locate,
        dim: int,
        heads: int,
        layers: int,
        *,
        kind: DynamicScale = "type3",
        smooth: float = 8.0,
        stride: int = 32,
        steps: tuple[float, ...] = (1.0,),
        predicts: bool = True,
    ):
        super().__init__()
        self.place = locate
        self.heads, self.kind, self.smooth, self.stride, self.steps = heads, kind, smooth, stride, steps
        self.centre = MLP(dim, dim, 2, 3) if predicts else None
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(layers))
        self.offsets = nn.ModuleList(Linear(dim, 2 * heads) for _ in range(layers))
        self.scales = nn.ModuleList(Linear(dim, SCALES[kind] * heads) for _ in range(layers if SCALES[kind] else 0))

    def init_weights(self) -> None:
        """All Gaussians start equally wide; called after the pass that makes every matrix Xavier-uniform."""
        for layer in self.scales:
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.ones_(layer.bias)

    def forward(self, state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
        state, geometry = self.place(state, memory, layer)
        query = self.norms[layer](with_pos(state.content, geometry.own_position))
        exact = torch.promote_types(query.dtype, torch.float32)
        if state.reference is None:
            predict = require(self.centre, "GaussianLocate(predicts=False)", "QueryState.reference")
            logits = predict(query).to(exact)
            state = replace(state, reference=logits, box_anchor=logits)
        reference = geometry.reference
        if reference is None:
            assert state.reference is not None
            reference = state.reference.sigmoid()
        # [B, H, Q, 2]: a centre per head, in cells
        centre = (reference[..., :2] * memory.extents[:, None] / self.stride)[:, None]
        centre = centre + self._by_head(self.offsets[layer](query)).to(exact)
        bias = log_gaussian(centre, self._squares(query, layer), memory, self.steps) / self.smooth
        return state, replace(geometry, reference=reference, bias=bias)

    def _squares(self, query: Tensor, layer: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Factors of the squared distances in x and in y, and of their product: the squared scales, [B, H, Q] or broadcastable."""
        if self.kind == "type1":
            one = query.new_ones(1, 1, 1, dtype=torch.promote_types(query.dtype, torch.float32))
            return one, one, None
        scales = self._by_head(self.scales[layer](query))
        squares = scales.to(torch.promote_types(scales.dtype, torch.float32)).square().unbind(-1)
        return squares[0], squares[min(1, len(squares) - 1)], squares[2] if len(squares) > 2 else None

    def _by_head(self, values: Tensor) -> Tensor:
        """[B, Q, H * n] -> [B, H, Q, n]."""
        return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)
