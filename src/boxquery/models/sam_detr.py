"""SAM-DETR: queries attend with features sampled from the image, so that queries and keys live in the same space.

Paper: Zhang et al., "Accelerating DETR Convergence via Semantic-Aligned Matching", CVPR 2022, arXiv:2203.06883
Year: 2022
Queries: 4-d boxes; zero content
Encoder: as DETR; `levels=3`: a few samples on every level
Cross-attention: every cell; queries are features re-sampled from the memory at 8 salient points of the box
Refinement: box by box; detached
Matching: one to one; sigmoid focal
Published: 39.8 AP in 50 epochs, 41.8 with SMCA; 33.1 and 36.0 in 12 (SAM-DETR README)
Licence: written from the paper; the authors' code (MIT) served as reference for numbers only

Differs from DETR in:
- queries: learned boxes; content is zero
- encoder: with `levels=3` (SAM-DETR++, arXiv:2207.14172), each cell samples a few points around itself on every level
- locate: the sine of the box's centre, in self-attention alone
- cross-attention: features sampled at salient points of the box are the queries, one point per head; with `levels=3` a layer attends to
  one level, the coarsest first
- refine: each layer moves the box for the next; no gradient passes from layer to layer
- head: sigmoid focal classes without "no object"; boxes measured from the reference; one head per layer
"""

from dataclasses import dataclass, replace

import torch

from boxquery.errors import UserError
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder, focal, image
from boxquery.models.options import Options, check_normed, check_share
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.attention.conditional import ConditionalSelfAttention
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.attention.semantic_aligned import SemanticAlignedAttention
from boxquery.parts.geometry import QueryGeometry, require
from boxquery.parts.heads import Head, Prediction
from boxquery.parts.layers import Encoder, at_centres, reset_transformer
from boxquery.parts.memory import Memory
from boxquery.parts.positions import SingleSinePosition, sine
from boxquery.parts.queries import BoxQueries
from boxquery.parts.state import QueryState
from boxquery.parts.weights import BackboneWeights

#: samples per head and level, in the encoder of several levels
POINTS = 4


@dataclass(frozen=True)
class SAMOptions(Options):
    """``levels``: 1, or 3 (strides 8, 16 and 32, with ``dilation`` 8, 16 and 16; SAM-DETR++), with feed-forward networks half as wide in
    the encoder.
    ``neck_norm``: group norm after the neck's convolution; the authors had it in schedules under 25 epochs. Several levels always have it.
    ``smca``: Gaussians around the salient points (from SMCA).
    ``anchor_size``: initial boxes evenly spread, about this share of the image wide; 0: as published.
    ``cross_attention``: False: no attention to the memory; a query gets the values of its re-sampled features.
    """

    query_positions = ("sine", "sine-mlp", "learned", "none")
    num_queries: int | list[int] = 300
    levels: int = 1
    neck_norm: bool = False
    smca: bool = False
    cross_attention: bool = True
    anchor_size: float = 0.0

    def check(self) -> None:
        super().check()
        check_share(anchor_size=self.anchor_size)
        if self.levels not in (1, 3):
            raise UserError(f"levels={self.levels}: must be 1 (stride 32) or 3 (strides 8, 16 and 32); 16 instead of 32 with dilation")
        if self.smca and not self.cross_attention:
            raise UserError("smca=True needs cross_attention=True: its Gaussians modulate that attention")
        if self.neck_norm or self.levels > 1:
            check_normed(self.hidden_dim)


PRESETS = presets(SAMOptions(), Recipe(epochs=50, decay_at=0.8), anchor_size=0.15)


def locate(state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
    """At the box; self-attention uses the sine of its centre, which takes no gradient."""
    box = require(state.reference, "SAM-DETR's locate", "QueryState.reference").sigmoid()
    centre = sine(box[..., :2].detach().flip(-1), state.content.shape[-1] // 2)
    return state, QueryGeometry(self_position=centre, reference=box, self_mask=state.self_mask)


def refine(state: QueryState, prediction: Prediction, head: Head) -> QueryState:
    """Offsets are added to the reference itself, not to the clamped copy of predictions; no gradient passes from layer to layer."""
    assert state.reference is not None
    with torch.no_grad():
        reference = state.reference + head.boxes(state.content)
    return replace(state, reference=reference, box_anchor=reference)


def sampled_encoder(o: SAMOptions) -> Encoder:
    """Deformable DETR's, on three levels; the authors halve its feed-forward networks to save memory (55 M parameters in all)."""
    half = replace(o, ffn_dim=max(o.ffn_dim // 2, 1))
    return encoder(half, lambda: DeformableAttention(o.hidden_dim, o.heads, o.levels, POINTS), locate=at_centres)


def build(classes: int, options: SAMOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim

    def cross_attn(layer: int) -> SemanticAlignedAttention:
        level = o.levels - 1 - layer * o.levels // o.decoder_layers
        return SemanticAlignedAttention(dim, o.heads, o.dropout, level=level, gaussian=o.smca, attention=o.cross_attention)

    # encoder: dense on one level, sampled on several
    several = o.levels > 1
    regions = sampled_encoder(o) if several else encoder(o)
    # locate: at the box; cross-attention: through its salient points
    layers = decoder(o, lambda: ConditionalSelfAttention(dim, o.heads, o.dropout), cross_attn)
    reset_transformer(regions, *layers)
    return DetectionTransformer(
        # image: with several levels, each has a norm and an embedding
        image=image(
            o, weights, SingleSinePosition(dim), o.levels, norm="group" if o.neck_norm or several else None, level_embedding=several
        ),
        encoder=regions,
        queries=BoxQueries(o.queries, dim, size=o.anchor_size),
        locate=locate,
        layers=layers,
        refine=refine,
        # head: one per layer
        heads=[Head(dim, classes) for _ in range(o.decoder_layers)],
        criterion=focal(),
    )
