"""Conditional DETR: cross-attention compares positions with positions and content with content.

Paper: Meng et al., "Conditional DETR for Fast Training Convergence", ICCV 2021, arXiv:2108.06152
Year: 2021
Queries: learned positions, a reference point from each
Encoder: as DETR
Cross-attention: every cell, content and position side by side
Refinement: none: boxes from the reference point
Matching: one to one; sigmoid focal
Published: 41.0 AP in 50 epochs (ConditionalDETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: a reference point made from the learned position
- locate: the sine of the reference point, scaled by an MLP of the content
- cross-attention: content and position are concatenated in queries and keys, not added
- head: sigmoid focal classes without "no object"; boxes measured from the reference point
"""

from dataclasses import dataclass

from torch import nn

from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder, focal, image
from boxquery.models.options import Options
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.attention.conditional import ConditionalCrossAttention, ConditionalSelfAttention
from boxquery.parts.geometry import QueryGeometry, require
from boxquery.parts.heads import MLP, Head
from boxquery.parts.layers import reset_transformer
from boxquery.parts.memory import Memory
from boxquery.parts.positions import SinePosition, sine
from boxquery.parts.queries import ReferencePointQueries
from boxquery.parts.state import QueryState
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class ConditionalOptions(Options):
    num_queries: int | list[int] = 300


PRESETS = presets(ConditionalOptions(), Recipe(epochs=50, decay_at=0.8))


class ConditionalLocate(nn.Module):
    """The sine of the reference point, times an MLP of the content after the first layer (eq. 5)."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim, self.scale = dim, MLP(dim, dim, dim, 2)

    def forward(self, state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
        point = require(state.reference, "ConditionalLocate", "QueryState.reference").sigmoid()
        position = sine(point.flip(-1), self.dim // 2)
        if layer:
            position = position * self.scale(state.content)
        return state, QueryGeometry(position=position, self_position=state.position, reference=point, self_mask=state.self_mask)


def build(classes: int, options: ConditionalOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim
    queries, locate, regions = ReferencePointQueries(o.queries, dim), ConditionalLocate(dim), encoder(o)
    layers = decoder(
        o,
        lambda: ConditionalSelfAttention(dim, o.heads, o.dropout),
        lambda layer: ConditionalCrossAttention(dim, o.heads, o.dropout, first=layer == 0),
    )
    reset_transformer(regions, queries.reference, locate, *layers)
    return DetectionTransformer(
        image=image(o, weights, SinePosition(dim)),
        encoder=regions,
        queries=queries,
        locate=locate,
        layers=layers,
        norm=nn.LayerNorm(dim),
        heads=[Head(dim, classes)],
        criterion=focal(),
    )
