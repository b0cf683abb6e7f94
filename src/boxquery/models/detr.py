"""DETR: object detection as direct set prediction, the base of the family.

Paper: Carion et al., "End-to-End Object Detection with Transformers", ECCV 2020, arXiv:2005.12872
Year: 2020
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- nothing: this is the sentence that the other files change
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import nn

from boxquery.matching.classification import Softmax
from boxquery.matching.loss import SetLoss
from boxquery.models.base import DetectionTransformer, State
from boxquery.models.options import NARROW_RESNET18, SMALL_DATA, TINY_DATA, Options, Preset, Recipe
from boxquery.parts.attention import DenseRead, SelfAttention
from boxquery.parts.backbone import Backbone, Neck
from boxquery.parts.heads import Head
from boxquery.parts.layers import DecoderLayer, Encoder, EncoderLayer, FeedForward, reset_transformer
from boxquery.parts.memory import Memory, Tokens
from boxquery.parts.positions import LearnedPosition, SinePosition


@dataclass(frozen=True)
class DETROptions(Options):
    """``position``: of the image's cells; ``pre_norm``: layer norms before instead of after each sublayer."""

    position: Literal["sine", "learned"] = "sine"
    pre_norm: bool = False


_SMALL = DETROptions(
    backbone="resnet18",
    backbone_options=NARROW_RESNET18,
    encoder_layers=2,
    decoder_layers=3,
    hidden_dim=128,
    ffn_dim=512,
    dropout=0.0,
    dilation=True,
)
PRESETS = {
    "paper": Preset(DETROptions(), Recipe()),
    "small": Preset(_SMALL, SMALL_DATA),
    "tiny": Preset(replace(_SMALL, num_queries=40), TINY_DATA),
}


class LearnedQueries(nn.Module):
    """Queries: content starts at zero; what tells them apart is a learned position, used in every layer (section 3.2)."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.position = nn.Parameter(torch.empty(count, dim).normal_())

    def forward(self, memory: Memory, targets: list[dict] | None) -> State:
        position = self.position.expand(len(memory.tokens), -1, -1)
        return State(content=torch.zeros_like(position, dtype=memory.tokens.dtype), position=position)


def build(classes: int, options: DETROptions, pretrained: bool) -> DetectionTransformer:
    o, dim = options, options.hidden_dim
    # the image: CNN features, one 1x1 convolution, positions
    backbone = Backbone(o.backbone, 1, pretrained, o.dilation, o.backbone_options)
    position = SinePosition(dim) if o.position == "sine" else LearnedPosition(dim)
    # queries
    queries = LearnedQueries(o.num_queries, dim)
    # encoder: every region reads every region
    encoder = Encoder(
        [EncoderLayer(DenseRead(dim, o.heads, o.dropout), _ffn(o), dim, o.dropout, o.pre_norm) for _ in range(o.encoder_layers)],
        norm=nn.LayerNorm(dim) if o.pre_norm and o.encoder_layers else None,
    )
    # place: the learned position; read: every query reads every region
    layers = [
        DecoderLayer(SelfAttention(dim, o.heads, o.dropout), DenseRead(dim, o.heads, o.dropout), _ffn(o), dim, o.dropout, o.pre_norm)
        for _ in range(o.decoder_layers)
    ]
    reset_transformer(encoder, *layers)
    # refine: nothing is; head: one for all layers, boxes from nowhere, and a class more for "no object"
    return DetectionTransformer(
        backbone=backbone,
        neck=Neck(backbone.channels, dim),
        tokens=Tokens(position, dim),
        encoder=encoder,
        queries=queries,
        layers=layers,
        norm=nn.LayerNorm(dim),
        heads=[Head(dim, classes + 1, focal=False, zero_boxes=False)],
        criterion=SetLoss(Softmax(), top_k=0),
    )


def _ffn(o: DETROptions) -> FeedForward:
    return FeedForward(o.hidden_dim, o.ffn_dim, o.dropout)
