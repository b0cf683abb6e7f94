"""DAB-DETR: queries are anchor boxes that every layer refines and that modulate cross-attention by their size.

Paper: Liu et al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR", ICLR 2022, arXiv:2201.12329
Year: 2022
Queries: 4-d anchor boxes; zero content or patterns
Encoder: as DETR, positions scaled by content
Cross-attention: every cell, content and position side by side, modulated by width and height
Refinement: box by box; references detached, predictions not
Matching: one to one; sigmoid focal
Published: 42.2 AP in 50 epochs, 42.6 with 3 patterns (DAB-DETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: learned 4-d anchor boxes; content is zero, or a few patterns at every anchor
- encoder: positions are scaled by each cell's content; PReLU; temperature 20
- locate: an MLP of the box's sine for self-attention; for cross-attention its centre's sine, scaled by content and modulated by width
  and height
- cross-attention: content and position are concatenated in queries and keys (from Conditional DETR)
- refine: each layer updates the box; the update carries no gradient into the next layer's reference
- head: sigmoid focal classes without "no object"; boxes measured from the refined anchor
"""

from dataclasses import dataclass

from boxquery.errors import UserError
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import dab_model
from boxquery.models.options import Options, check_share
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.queries import BoxQueries
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class DABOptions(Options):
    """``patterns``: content vectors, each combined with every anchor; 0: zero content. ``num_queries``: anchors.
    ``fixed_xy``: centres are drawn once and not trained (the authors' flag draws them, but trains on).
    ``anchor_size``: initial boxes evenly spread, about this share of the image wide; 0: as published.
    """

    query_positions = ("sine-mlp", "learned", "sine", "none")
    num_queries: int | list[int] = 300
    dropout: float = 0.0
    patterns: int = 0
    fixed_xy: bool = False
    anchor_size: float = 0.0

    def check(self) -> None:
        super().check()
        check_share(anchor_size=self.anchor_size)
        if self.patterns < 0:
            raise UserError(f"patterns={self.patterns}: must be 0 (zero content) or more")


PRESETS = presets(DABOptions(), Recipe(epochs=50, decay_at=0.8), anchor_size=0.15)


def build(classes: int, options: DABOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o = options
    return dab_model(classes, o, weights, lambda: BoxQueries(o.queries, o.hidden_dim, o.patterns or "zero", o.fixed_xy, o.anchor_size))
