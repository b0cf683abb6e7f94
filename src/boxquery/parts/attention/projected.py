"""Reading where a point of space is in the views of several cameras (DETR3D, Wang et al. 2021, arXiv:2110.06922, section 3.2).

Shape suffixes as in ``boxquery.parts.attention.dense``; V views.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.errors import UserError
from boxquery.parts.boxes import inverse_sigmoid
from boxquery.parts.geometry import QueryGeometry, reject_bias, require, with_pos
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory
from boxquery.parts.trace import LayerTrace


class ProjectedAttention(nn.Module):
    """Region-object without a softmax: the reference point in every view that sees it, one bilinear sample per level, weighed by sigmoids
    of the content. The point itself, through a small network, is added.

    A trace has the samples as points, of one head, the views one after the other; their weights are those sigmoids as shares of their sum.
    A query whose point no view sees reads nothing, and has weights of zero.

    Args:
        views: V; there is a weight for each.
        dropout: of what was read, not of the point.
        eps: how far from 0 and 1 the point's logits are kept.
    """

    def __init__(self, dim: int, views: int, levels: int, dropout: float = 0.0, eps: float = 1e-5):
        super().__init__()
        self.views, self.levels, self.eps = views, levels, eps
        self.attention_weights = Linear(dim, views * levels)
        self.output_proj = Linear(dim, dim)
        self.position_encoder = nn.Sequential(Linear(3, dim), nn.LayerNorm(dim), nn.ReLU(), Linear(dim, dim), nn.LayerNorm(dim), nn.ReLU())
        self.dropout = nn.Dropout(dropout)

    def init_weights(self) -> None:
        """All weights are one half at first."""
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        nn.init.zeros_(self.output_proj.bias)

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        reject_bias(geometry, "ProjectedAttention")
        point = require(geometry.reference, "ProjectedAttention", "QueryGeometry.reference")
        cameras = require(memory.cameras, "ProjectedAttention", "Memory.cameras")
        if cameras.count != self.views:
            raise UserError(
                f"scenes of {cameras.count} cameras: this model has weights for {self.views}; create it with cameras={cameras.count}"
            )
        places, visible = cameras.project(cameras.metres(point))
        places = places.clamp(-1, 2)  # of points behind a camera
        weights = self.attention_weights(with_pos(content, geometry.position)).sigmoid().unflatten(-1, (self.views, self.levels))
        weights = weights * visible.transpose(1, 2)[..., None]
        read = torch.zeros((), device=content.device)
        for level, tokens in enumerate(memory.maps(memory.tokens)):
            maps = tokens.unflatten(1, (self.views, -1)).flatten(0, 1).permute(0, 3, 1, 2)
            grid = (2 * places - 1).flatten(0, 1)[:, :, None]
            values = F.grid_sample(maps.to(grid.dtype), grid, align_corners=False)[..., 0].unflatten(0, (-1, self.views))
            read = read + torch.einsum("bvdq,bqv->bqd", values, weights[..., level].to(values.dtype))
        if trace is not None:
            _record(trace, places, weights)
        return self.dropout(self.output_proj(read.to(content.dtype))) + self.position_encoder(
            inverse_sigmoid(point, self.eps).to(content.dtype)
        )


@torch.no_grad()
def _record(trace: LayerTrace, places: Tensor, weights: Tensor) -> None:
    """Of places [B, V, Q, 2] and weights [B, Q, V, L]."""
    total = weights.sum((2, 3), keepdim=True)
    share = torch.where(total > 0, weights / total, 0.0)
    trace.weights = share.transpose(2, 3)[:, :, None]
    trace.locations = places.transpose(1, 2)[:, :, None, None].expand(-1, -1, -1, weights.shape[-1], -1, -1)
