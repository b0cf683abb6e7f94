"""DAB-Deformable-DETR: anchor boxes as queries, on deformable attention.

Paper: Liu et al., "DAB-DETR: Dynamic Anchor Boxes are Better Queries for DETR", ICLR 2022, arXiv:2201.12329
Year: 2022
Queries: 4-d anchor boxes with learned content
Encoder: as Deformable DETR
Cross-attention: as Deformable DETR, around the box
Refinement: box by box, detached
Matching: one to one; sigmoid focal
Published: 48.1 AP in 50 epochs (DAB-DETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: learned 4-d anchor boxes, and a learned content for each
- encoder: multi-scale, each cell samples a few points around itself on every level (from Deformable DETR)
- locate: an MLP of the box's sine, scaled by content, recomputed in every layer
- cross-attention: a few bilinear samples inside and around the box instead of every cell (from Deformable DETR)
- refine: each layer's box is the next layer's anchor
- head: sigmoid focal classes without "no object"; boxes measured from the anchor; one head per layer
"""

from dataclasses import dataclass

from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder, focal, image, refine_detached
from boxquery.models.options import Options, check_least, check_normed, check_share
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.attention.dense import SelfAttention
from boxquery.parts.box_locate import BoxLocate
from boxquery.parts.boxes import EPS_OF_ANCHORS
from boxquery.parts.heads import Head
from boxquery.parts.layers import at_centres, reset_transformer
from boxquery.parts.positions import SinePosition
from boxquery.parts.queries import BoxQueries
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class DABDeformableOptions(Options):
    """``levels``: the backbone's last 1 to 3 maps, and strided convolutions for more (4: strides 8 to 64, with ``dilation`` 8, 16, 16, 32).
    ``points``: samples per head and level. ``fixed_xy``: centres are drawn once and not trained.
    ``anchor_size``: initial boxes evenly spread, about this share of the image wide; 0: as published.
    """

    query_positions = ("sine-mlp", "learned", "sine", "none")
    num_queries: int | list[int] = 300
    dropout: float = 0.0
    levels: int = 4
    points: int = 4
    fixed_xy: bool = False
    anchor_size: float = 0.0

    def check(self) -> None:
        super().check()
        check_share(anchor_size=self.anchor_size)
        check_least(1, levels=self.levels, points=self.points)
        check_normed(self.hidden_dim)


PRESETS = presets(
    DABDeformableOptions(),
    Recipe(epochs=50, decay_at=0.8),
    **{"dilation": False, "encoder_layers": 1, "heads": 4, "levels": 3, "points": 2, "anchor_size": 0.15, "valid_ratios": "exact"},
)


def build(classes: int, options: DABDeformableOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim

    def cross_attn(layer: int = 0) -> DeformableAttention:
        return DeformableAttention(dim, o.heads, o.levels, o.points)

    regions, locate = encoder(o, cross_attn, locate=at_centres), BoxLocate(dim)
    layers = decoder(o, lambda: SelfAttention(dim, o.heads, o.dropout), cross_attn)
    reset_transformer(regions, locate, *layers)
    return DetectionTransformer(
        image=image(o, weights, SinePosition(dim, offset=0.5), o.levels, norm="group", level_embedding=True),
        encoder=regions,
        queries=BoxQueries(o.queries, dim, "learned", o.fixed_xy, o.anchor_size),
        locate=locate,
        layers=layers,
        refine=refine_detached,
        heads=[Head(dim, classes, size_bias=0.0 if layer else -2.0, eps=EPS_OF_ANCHORS) for layer in range(o.decoder_layers)],
        criterion=focal(weight=1.0),
        top_k=300,
        low_lr_patterns=("sampling_offsets",),
    )
