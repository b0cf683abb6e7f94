"""DETR: object detection as direct set prediction, the base of the family.

Paper: Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, arXiv:2005.12872
Year: 2020
Queries: 100 learned positions, content from zero
Encoder: every cell attends to every cell
Cross-attention: every cell, content and position added
Refinement: none: boxes without a reference
Matching: one to one; softmax with no object
Published: 42.0 AP in 500 epochs (Deformable-DETR README), 34.8 in 50 (ConditionalDETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- nothing: this is the model that the other files change
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from boxquery.matching.classification import Softmax
from boxquery.matching.criterion import SetCriterion
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder, image
from boxquery.models.options import Options
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.attention.dense import DenseAttention, SelfAttention
from boxquery.parts.heads import Head
from boxquery.parts.layers import reset_transformer
from boxquery.parts.positions import SinePosition
from boxquery.parts.queries import LearnedQueries
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class DETROptions(Options):
    """``position``: of the image's cells; ``pre_norm``: layer norms before instead of after each sublayer."""

    query_positions = ("learned",)
    position: Literal["sine", "learned", "none"] = "sine"
    pre_norm: bool = False


PRESETS = presets(DETROptions(), Recipe())


def build(classes: int, options: DETROptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim
    # queries
    queries = LearnedQueries(o.queries, dim)
    # encoder: every region attends to every region
    regions = encoder(o, norm=nn.LayerNorm(dim) if o.pre_norm and o.encoder_layers else None, pre_norm=o.pre_norm)
    # locate: the learned position; cross-attention: every query attends to every region
    layers = decoder(
        o,
        lambda: SelfAttention(dim, o.heads, o.dropout),
        lambda layer: DenseAttention(dim, o.heads, o.dropout),
        pre_norm=o.pre_norm,
    )
    reset_transformer(regions, *layers)
    # refine: nothing is; head: one for all layers, boxes without an anchor, and one more class for "no object"
    return DetectionTransformer(
        # image: CNN features, one 1x1 convolution, positions
        image=image(o, weights, SinePosition(dim)),
        encoder=regions,
        queries=queries,
        layers=layers,
        norm=nn.LayerNorm(dim),
        heads=[Head(dim, classes + 1, focal=False, zero_boxes=False)],
        criterion=SetCriterion(Softmax()),
        top_k=0,
    )
