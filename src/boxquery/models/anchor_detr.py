"""Anchor DETR: a query is an anchor point with a pattern; several patterns share every point.

Paper: Wang et al., "Anchor DETR: Query Design for Transformer-Based Detector", AAAI 2022, arXiv:2109.07107
Year: 2022
Queries: learned points or a grid, each with every pattern
Encoder: rows and columns separately
Cross-attention: rows and columns separately
Refinement: none: boxes from the point
Matching: one to one; sigmoid focal
Published: 44.3 AP in 50 epochs with DC5, the default here; 42.1 without (AnchorDETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: every one of a few learned patterns (content) at every one of many points in the image
- encoder: each region attends to rows and columns separately instead of all cells (`attention="rcda"`)
- locate: the sine of the point, through the same two small MLPs that encode the image's cells
- cross-attention: rows and columns separately, as in the encoder
- head: sigmoid focal classes without "no object"; boxes measured from the point
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boxquery.errors import UserError
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder, focal, image
from boxquery.models.options import Options, check_normed
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.attention.dense import DenseAttention, SelfAttention
from boxquery.parts.attention.rcda import RowColumnDecoupledAttention, at_axes, reset_packed
from boxquery.parts.heads import MLP, Head
from boxquery.parts.layers import at_position
from boxquery.parts.memory import Memory
from boxquery.parts.positions import sine
from boxquery.parts.queries import Queries, each_anchor, each_pattern
from boxquery.parts.state import QueryState
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class AnchorOptions(Options):
    """``patterns``: learned contents at each point; the model has ``num_queries`` x ``patterns`` queries.
    ``spatial_prior``: points are "learned", or form a "grid" of round(sqrt(num_queries)) squared.
    ``attention``: to rows and columns separately ("rcda") or to every cell ("dense").
    """

    query_positions = ("sine-mlp", "learned", "sine", "none")
    num_queries: int | list[int] = 300
    ffn_dim: int = 1024
    dropout: float = 0.0
    dilation: bool = True
    patterns: int = 3
    spatial_prior: Literal["learned", "grid"] = "learned"
    attention: Literal["rcda", "dense"] = "rcda"

    @property
    def queries(self) -> int:
        count = super().queries
        return round(count**0.5) ** 2 if self.spatial_prior == "grid" else count

    def check(self) -> None:
        super().check()
        if self.patterns < 1:
            raise UserError(f"patterns={self.patterns}: must be at least 1, since a query's content is its pattern")
        if self.position != "paper" and self.attention == "rcda":
            raise UserError(f"position={self.position!r} is for cells, not for rows and columns: use attention='dense' or position='paper'")
        check_normed(self.hidden_dim)


PRESETS = presets(AnchorOptions(), Recipe(epochs=50, decay_at=0.8))


class PatternQueries(Queries):
    """Each pattern at each point, pattern by pattern ("Multiple Predictions for Each Anchor Point").

    The points are (x, y) in [0, 1] of the unpadded extent, not logits, trained through the boxes measured from them and their positions.

    Args:
        encode: points [..., 2] -> their positions [..., dim], and those of x and y for row-column attention: ``Positions.of_points``, a
            method, since the parameters belong to the tokens.
        learned: False: points form a grid, column by column.
    """

    def __init__(
        self,
        count: int,
        patterns: int,
        dim: int,
        encode: Callable[[Tensor], tuple[Tensor, tuple[Tensor, Tensor] | None]],
        learned: bool = True,
    ):
        super().__init__()
        self.encode = encode
        self.points = self.draw(count)["points"] if learned else None
        self.side = round(count**0.5)
        self.patterns = nn.Parameter(torch.empty(patterns, dim).normal_())

    def draw(self, count: int) -> dict[str, Tensor]:
        return {"points": nn.Parameter(torch.rand(count, 2))}

    def make(self, memory: Memory, rows: Any, parts: int) -> QueryState:
        points = self.grid(memory.extents) if rows.points is None else rows.points
        images, patterns = memory.tokens.shape[0], len(self.patterns)

        def each(values: Tensor) -> Tensor:
            """One per point [N, D] -> one per query [1, Q, D]."""
            return each_pattern(values, patterns, parts)[None]

        content = each_anchor(self.patterns, len(points), parts).expand(images, -1, -1)
        position, axes = self.encode(points)
        # far below the head's clamp, which is the paper's; here only so that a point on the edge has a finite logit
        box_anchor = each(points.logit(eps=1e-7)).expand(images, -1, -1)
        axes = None if axes is None else (each(axes[0]), each(axes[1]))
        return QueryState(content=content, position=each(position), axes=axes, reference=box_anchor, box_anchor=box_anchor)

    def embed(self, logits: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        return logits, *self.encode(logits.sigmoid())

    def grid(self, like: Tensor) -> Tensor:
        centres = (torch.arange(self.side, device=like.device, dtype=like.dtype) + 0.5) / self.side
        return torch.cartesian_prod(centres, centres)


class Positions(nn.Module):
    """Positions of image and queries by the same two MLPs of sine features ("Anchor Points"): of a point, and of x or y alone.

    As ``position`` of ``Tokens`` it encodes cell centres of the valid area, counted along the mask's first row and column; ``of_points``
    serves the queries. Without ``axes`` (dense attention) only points are encoded.
    """

    def __init__(self, dim: int, axes: bool):
        super().__init__()
        self.dim = dim
        self.point = MLP(dim, dim, dim, 2)
        self.axis = MLP(dim, dim, dim, 2) if axes else None

    def forward(self, padding: Tensor, like: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """[B, h, w] bool (True = padding) -> positions of columns [B, w, dim] and rows [B, h, dim], or of all cells [B, h, w, dim]."""
        valid = (~padding).to(torch.promote_types(like.dtype, torch.float32))
        x, y = ((count - 0.5) / count[:, -1:] for count in (valid[:, 0].cumsum(-1), valid[:, :, 0].cumsum(-1)))
        if self.axis is not None:
            return self.axis(sine(x[..., None], self.dim)), self.axis(sine(y[..., None], self.dim))
        h, w = padding.shape[1:]
        yx = torch.stack((y[:, :, None].expand(-1, -1, w), x[:, None].expand(-1, h, -1)), -1)
        return self.point(sine(yx, self.dim // 2))

    def of_points(self, points: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """[..., 2] (x, y) -> [..., dim], and the same of x and of y alone for row-column attention."""
        position = self.point(sine(points.flip(-1), self.dim // 2))
        if self.axis is None:
            return position, None
        x, y = self.axis(sine(points[..., None], self.dim)).unbind(-2)
        return position, (x, y)


def build(classes: int, options: AnchorOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim
    rows_and_columns = o.attention == "rcda"

    def cross_attn(layer: int = 0) -> RowColumnDecoupledAttention | DenseAttention:
        return RowColumnDecoupledAttention(dim, o.heads, o.dropout) if rows_and_columns else DenseAttention(dim, o.heads, o.dropout)

    # image: cells and queries share the MLPs of positions
    positions = Positions(dim, axes=rows_and_columns)
    # queries
    queries = PatternQueries(o.queries, o.patterns, dim, positions.of_points, learned=o.spatial_prior == "learned")
    if o.position != "paper":  # the image has a table of its own; register the MLPs here
        queries.positions = positions
    # encoder: every region attends to rows and columns separately
    regions = encoder(o, cross_attn, locate=at_axes if rows_and_columns else at_position)
    # locate: at the point; cross-attention: rows and columns separately
    layers = decoder(o, lambda: SelfAttention(dim, o.heads, o.dropout), cross_attn)
    reset_packed(regions, *layers)
    # head: one for all layers, boxes start small, at their point
    return DetectionTransformer(
        image=image(o, weights, positions, norm="group"),
        encoder=regions,
        queries=queries,
        layers=layers,
        heads=[Head(dim, classes, size_bias=-2.0)],
        criterion=focal(),
    )
