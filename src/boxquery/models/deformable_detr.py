"""Deformable DETR: a query attends to a few sampled points around its reference, on every level of the image.

Paper: Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021, arXiv:2010.04159
Year: 2021
Queries: learned content and position, a reference point; or the encoder's proposals
Encoder: samples around each cell, 4 levels
Cross-attention: a few samples around the reference, 4 levels
Refinement: optional, box by box, detached
Matching: one to one; sigmoid focal
Published: 44.5 AP in 50 epochs; 46.2 refined, 46.9 two-stage (Deformable-DETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: learned content as well as position; a reference point made from the position; with `two_stage`, all from the best proposals
- encoder: multi-scale, each cell samples a few points around itself on every level
- locate: at a reference point, or at a box once refined
- cross-attention: a few bilinear samples around the reference instead of every cell
- refine: with `box_refine`, each layer's box is the next layer's reference
- head: sigmoid focal classes without "no object"; boxes measured from the reference; one head per layer when refined
"""

from dataclasses import dataclass
from typing import Literal

from boxquery.errors import UserError
from boxquery.models.base import DetectionTransformer, keep_reference
from boxquery.models.builders import decoder, denoising, encoder, focal, image, refine_detached
from boxquery.models.options import Options, check_least, check_normed, check_share
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.attention.dense import SelfAttention
from boxquery.parts.heads import Head
from boxquery.parts.layers import at_centres, reset_transformer
from boxquery.parts.positions import SinePosition
from boxquery.parts.queries import PROPOSAL_SIZE, ProposalQueries, ReferencePointQueries
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class DeformableOptions(Options):
    """``levels``: the backbone's last 1 to 3 maps, and strided convolutions for more (4: strides 8 to 64, with ``dilation`` 8, 16, 16, 32).
    ``points``: samples per head and level.
    ``box_refine``: boxes are refined layer by layer; ``two_stage``: queries start from the encoder's proposals (needs ``box_refine``).
    ``proposal_size``: first width of proposals on the finest level, doubled on each next one, as a share of the image; 0: such that those
    of the middle level are as large as the median object of the training images.
    ``proposals``: those with the best scores, or first those that none of their neighbours exceeds, which are of distinct objects.
    """

    num_queries: int | list[int] = 300
    ffn_dim: int = 1024
    levels: int = 4
    points: int = 4
    box_refine: bool = False
    two_stage: bool = False
    proposals: Literal["best", "peaks"] = "best"
    proposal_size: float = PROPOSAL_SIZE

    def check(self) -> None:
        if self.two_stage and self.query_position == "learned":
            raise UserError("query_position='learned' needs two_stage=False: proposals of each image have no learned position")
        super().check()
        if self.two_stage and not self.box_refine:
            raise UserError("two_stage=True needs box_refine=True: proposals are boxes, which only refinement uses")
        if self.proposals != "best" and not self.two_stage:
            raise UserError(f"proposals={self.proposals!r} needs two_stage=True: there are no proposals without it")
        check_share(proposal_size=self.proposal_size)
        check_least(1, levels=self.levels, points=self.points)
        check_normed(self.hidden_dim)


PRESETS = presets(
    DeformableOptions(),
    Recipe(epochs=50, lr=2e-4, backbone_lr=2e-5, decay_at=0.8),
    **{"dilation": False, "encoder_layers": 1, "heads": 4, "levels": 3, "points": 2, "valid_ratios": "exact"},
    **{"box_refine": True, "two_stage": True, "matching": "denoising", "denoising": 60},
)


def build(classes: int, options: DeformableOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim

    def cross_attn(layer: int = 0) -> DeformableAttention:
        return DeformableAttention(dim, o.heads, o.levels, o.points)

    # queries
    if o.two_stage:
        further = {"size": o.proposal_size, "peaks": o.proposals == "peaks", "valid_first": o.valid_ratios == "exact"}
        queries = ProposalQueries(o.queries, dim, Head(dim, classes), denoising=denoising(classes, o), **further)
    else:
        queries = ReferencePointQueries(o.queries, dim, "learned")
    # encoder: every cell attends to samples around itself
    regions = encoder(o, cross_attn, locate=at_centres)
    # locate: at the reference; cross-attention: samples around it
    layers = decoder(o, lambda: SelfAttention(dim, o.heads, o.dropout), cross_attn)
    reset_transformer(regions, *layers)
    # head: boxes start at their reference, and small: by the bias of the first layer
    heads = [
        Head(dim, classes, size_bias=0.0 if layer or o.two_stage else -2.0) for layer in range(o.decoder_layers if o.box_refine else 1)
    ]
    return DetectionTransformer(
        # image: maps from stride 8 on, further levels by strided convolutions
        image=image(o, weights, SinePosition(dim, offset=0.5), o.levels, norm="group", level_embedding=True),
        encoder=regions,
        queries=queries,
        layers=layers,
        heads=heads,
        criterion=focal(),
        refine=refine_detached if o.box_refine else keep_reference,
        low_lr_patterns=("sampling_offsets", "reference_points"),
    )
