"""SAM-DETR's cross-attention: queries are features re-sampled from the memory (Zhang et al. 2022, arXiv:2203.06883, section 3).

Shape suffixes as in ``boxquery.parts.attention.dense``; every head has one salient point.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import roi_align

from boxquery.parts.attention.dense import dense_attention
from boxquery.parts.attention.gaussian import log_gaussian
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.geometry import QueryGeometry, reject_bias, require, require_boxes
from boxquery.parts.heads import MLP
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory, map_sizes
from boxquery.parts.positions import sine
from boxquery.parts.trace import LayerTrace

#: side of the crop of a query's box, in cells
CROP = 7


class SemanticAlignedAttention(nn.Module):
    """Region-object, semantically aligned: queries and keys are compared in the same space because queries are made from the memory.

    The box's region is cropped to 7 x 7 cells (RoIAlign), ``heads`` salient points are found in it, and the features at each point,
    re-weighted from the content, become the query of one head. The points are trained through these features
    (and the Gaussians), not through their positions, which carry no gradient. Every head compares all ``dim`` features with the
    same keys and has its own ``dim / heads`` values. Padding is masked in the attention, but a crop that extends into it includes it, as
    published.

    Args:
        level: of the memory, the only one attended to.
        gaussian: a Gaussian around each head's salient point is added to its logits (from SMCA).
        attention: False: the memory is not attended. Each head takes its values from its own salient features, which is what attention
            would return if it fell on the salient point alone; positions are not used then.
    """

    def __init__(self, dim: int, heads: int, dropout: float = 0.0, *, level: int = 0, gaussian: bool = False, attention: bool = True):
        super().__init__()
        self.heads, self.dropout, self.level, self.gaussian, self.attention = heads, dropout, level, gaussian, attention
        squeezed, outputs = dim // 4, heads * (4 if gaussian else 2)
        self.squeeze = nn.Conv2d(dim, squeezed, 1)
        last = Linear(2 * dim, outputs)
        nn.init.zeros_(last.bias)
        self.points = nn.Sequential(
            Linear(CROP * CROP * squeezed, dim), nn.ReLU(),
            Linear(dim, 2 * dim), nn.ReLU(),
            Linear(2 * dim, 2 * dim), nn.ReLU(),
            last,
        )  # fmt: skip
        self.feature_weights = Linear(dim, heads * dim)
        self.value = Linear(dim, dim)
        if attention:
            self.position_weights = Linear(dim, heads * dim)
            self.query_content, self.query_position = Linear(dim, dim), MLP(dim, dim, dim, 2)
            self.key_content, self.key_position = Linear(dim, dim), MLP(dim, dim, dim, 2)
        self.out_proj = Linear(dim, dim)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, content: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None = None) -> Tensor:
        reject_bias(geometry, "SemanticAlignedAttention")
        memory = memory.level(self.level)
        box = require_boxes(geometry.reference, "SemanticAlignedAttention", "QueryGeometry.reference").detach()
        crops = crop(memory, box)
        predicted = self.points(self.squeeze(crops.to(content.dtype)).relu().flatten(1)).to(box.dtype)
        predicted = predicted.view(*box.shape[:2], -1, self.heads, 2)
        # within the crop, [B, Q, H, 2] in [-1, 1]; and in [0, 1] of the unpadded extent
        inside = predicted[:, :, 0].tanh()
        points = box[..., None, :2] + 0.5 * box[..., None, 2:] * inside
        features = F.grid_sample(crops, inside.flatten(0, 1)[:, None].to(crops.dtype), align_corners=False)[:, :, 0]
        features = features.transpose(1, 2).unflatten(0, box.shape[:2]).to(content.dtype)
        features = features * self.feature_weights(content).sigmoid().unflatten(-1, (self.heads, -1))
        if trace is not None:
            trace.memory, trace.salient_points = memory, points
        if not self.attention:
            if trace is not None:
                locations = (points * memory.valid_ratios[:, :, None])[:, :, :, None, None]
                trace.locations, trace.weights = locations, torch.ones_like(locations[..., 0])
            return self.out_proj(self._values_at(features))
        if self.gaussian:
            geometry = replace(geometry, bias=gaussian(points, predicted[:, :, 1], memory))
        return self.out_proj(self._attended(content, features, points, geometry, memory, trace))

    def _attended(
        self, content: Tensor, features: Tensor, points: Tensor, geometry: QueryGeometry, memory: Memory, trace: LayerTrace | None
    ) -> Tensor:
        """Features [B, Q, H, D] at points [B, Q, H, 2] -> the values they attend to, [B, Q, D]."""
        key_position = require(memory.position, "SemanticAlignedAttention", "Memory.position")
        query_position = sine(points.detach().flip(-1), content.shape[-1] // 2).to(content.dtype)
        query_position = query_position * self.position_weights(content).sigmoid().unflatten(-1, (self.heads, -1))
        q = self.query_content(features) + self.query_position(query_position)
        k = self.key_content(memory.tokens) + self.key_position(key_position.to(content.dtype))
        v = self.value(memory.tokens).unflatten(-1, (self.heads, -1))
        k = k[:, None].expand(-1, self.heads, -1, -1)
        return dense_attention(q.transpose(1, 2), k, v.transpose(1, 2), geometry, memory, self.dropout * self.training, trace)

    def _values_at(self, features: Tensor) -> Tensor:
        """[B, Q, H, D] -> [B, Q, D]: of each head's features the values that belong to the head."""
        weight = self.value.weight.unflatten(0, (self.heads, -1))
        return torch.einsum("bqhd,hkd->bqhk", features, weight).flatten(2) + self.value.bias


def crop(memory: Memory, box: Tensor) -> Tensor:
    """The features in each query's box, averaged into 7 x 7 cells by RoIAlign (He et al. 2017) with as many samples as the box has cells.

    Args:
        memory: of one level.
        box: [B, Q, 4] cxcywh in [0, 1] of the unpadded extent.

    Returns [B * Q, D, 7, 7], float32 at least. No gradient reaches the boxes.
    """
    batch, queries, _ = box.shape
    exact = torch.promote_types(memory.tokens.dtype, torch.float32)
    features = memory.maps(memory.tokens)[0].permute(0, 3, 1, 2).to(exact)
    corners = cxcywh_to_xyxy(box) * cells(memory).repeat(1, 1, 2)
    image = torch.arange(batch, device=box.device)[:, None, None].expand(-1, queries, -1)
    return roi_align(features, torch.cat((image, corners), -1).flatten(0, 1).to(exact), CROP, aligned=True)


def cells(memory: Memory) -> Tensor:
    """[B, 1, 2]: width and height of the unpadded image in cells of the only level."""
    return memory.valid_ratios * map_sizes(memory.shapes, memory.valid_ratios)


def gaussian(points: Tensor, scales: Tensor, memory: Memory) -> Tensor:
    """[B, H, Q, S] to add to logits: -(s_x^2 d_x^2 + s_y^2 d_y^2) / 8, d in cells from the point to the centre of each cell.

    Args:
        points: [B, Q, H, 2] (x, y) in [0, 1] of the unpadded extent.
        scales: [B, Q, H, 2].
        memory: of one level.
    """
    # a cell's centre is half a cell from its index
    centre = points * cells(memory)[:, :, None] - 0.5
    across, down = scales.square().transpose(1, 2).unbind(-1)
    return log_gaussian(centre.transpose(1, 2), (across, down, None), memory, (1.0,)) / 8
