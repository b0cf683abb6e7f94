"""What most papers build alike from their options."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from boxquery.matching.classification import Focal
from boxquery.matching.criterion import SetCriterion
from boxquery.models.options import Options
from boxquery.parts.attention.dense import DenseAttention, QueryGeometry
from boxquery.parts.backbone import Backbone, Neck
from boxquery.parts.heads import Head
from boxquery.parts.hybrid import HybridEncoder
from boxquery.parts.layers import ConvolutionalFeedForward, DecoderLayer, Encoder, EncoderLayer, FeedForward, at_position
from boxquery.parts.memory import Memory, Tokens
from boxquery.parts.positions import LearnedPosition, NoPosition, SinePosition
from boxquery.parts.state import QueryState

Image = tuple[Backbone, Neck, Tokens]


class LearnedQueries(nn.Module):
    """Queries: content starts at zero; what tells them apart is a learned position, used in every layer (section 3.2)."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.position = nn.Parameter(torch.empty(count, dim).normal_())

    def forward(self, memory: Memory, targets: list[dict] | None) -> QueryState:
        position = self.position.expand(len(memory.tokens), -1, -1)
        return QueryState(content=torch.zeros_like(position, dtype=memory.tokens.dtype), position=position)


class BoxQueries(nn.Module):
    """Queries are 4-d anchor boxes (DAB-DETR, section 4): learned logits; content is zero, or a learned vector for each pattern or query.

    Args:
        content: "zero", "learned" (a vector a query), or the number of patterns (vectors that every anchor is asked with).
        fixed_xy: centres are drawn evenly over the image and stay.
        size: first widths and heights, about this share of the image, with centres drawn evenly; 0: as published, all logits from a
            normal distribution, which gathers large boxes in the middle. Few steps do not move them far from where they start.

    The order is pattern by pattern: all anchors with pattern 0 first.
    """

    def __init__(self, count: int, dim: int, content: Literal["zero", "learned"] | int = "zero", fixed_xy: bool = False, size: float = 0.0):
        super().__init__()
        self.centres: Tensor
        self.dim, self.patterns = dim, content if isinstance(content, int) else 1
        if fixed_xy:
            self.register_buffer("centres", torch.rand(count, 2).logit(1e-3))
        self.anchors = nn.Parameter(torch.empty(count, 2 if fixed_xy else 4).normal_())
        if size:
            with torch.no_grad():
                self.anchors[:, -2:] *= 0.3
                self.anchors[:, -2:] += math.log(size / (1 - size))
                if not fixed_xy:
                    self.anchors[:, :2] = torch.rand(count, 2).logit(1e-3)
        rows = content if isinstance(content, int) else count if content == "learned" else 0
        self.content = nn.Parameter(torch.empty(rows, dim).normal_()) if rows else None

    def forward(self, memory: Memory, targets: list[dict] | None) -> QueryState:
        batch, tokens = len(memory.tokens), memory.tokens
        anchors = self.anchors if self.anchors.shape[1] == 4 else torch.cat((self.centres, self.anchors), -1)
        reference = anchors.repeat(self.patterns, 1).expand(batch, -1, -1)
        if self.content is None:
            content = tokens.new_zeros(1, 1, self.dim)
        else:
            content = self.content.repeat_interleave(reference.shape[1] // len(self.content), 0).to(tokens.dtype)
        return QueryState(content=content.expand(batch, reference.shape[1], -1), reference=reference, box_anchor=reference)


def refine_detached(state: QueryState, box_logits: Tensor, head: Head) -> QueryState:
    """The box of this layer is the next one's reference; no gradient passes from layer to layer (Deformable DETR, appendix A.4)."""
    reference = box_logits.detach()
    return replace(state, reference=reference, box_anchor=reference)


def image(
    o: Options, pretrained: bool, position: nn.Module, levels: int = 1, maps: int = 3, norm: bool = False, level_embedding: bool = False
) -> Image:
    """Backbone, neck and tokens: ``levels`` maps; up to ``maps`` are the backbone's last, strided convolutions make the rest."""
    backbone = Backbone(o.backbone, min(levels, maps), pretrained, o.dilation, o.backbone_options)
    neck = Neck(backbone.channels, o.hidden_dim, extra=max(levels - maps, 0), norm=norm)
    chosen = {"sine": SinePosition, "learned": LearnedPosition, "none": NoPosition}.get(o.position)
    return backbone, neck, Tokens(position if chosen is None else chosen(o.hidden_dim), o.hidden_dim, levels, level_embedding)


def encoder(
    o: Options,
    read: Callable[[], nn.Module] | None = None,
    *,
    norm: nn.Module | None = None,
    pre_norm: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
    place: Callable[[Memory], QueryGeometry] = at_position,
) -> Encoder:
    """``encoder_layers`` layers in which every region reads every region, or ``read()``; unless the hybrid encoder is asked for."""
    hybrid = o.encoder == "hybrid"
    layers = [
        EncoderLayer(
            DenseAttention(o.hidden_dim, o.heads, o.dropout) if read is None or hybrid else read(),
            region_ffn(o, activation),
            o.hidden_dim,
            o.dropout,
            pre_norm,
        )
        for _ in range(o.encoder_layers)
    ]
    return HybridEncoder(layers, o.hidden_dim, vars(o)["levels"]) if hybrid else Encoder(layers, norm, place)


def decoder(
    o: Options,
    among: Callable[[], nn.Module],
    read: Callable[[int], nn.Module],
    *,
    pre_norm: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> list[DecoderLayer]:
    """``decoder_layers`` layers of self-attention ``among()`` the queries, ``read(layer)`` of the image, and a feed-forward network."""
    return [DecoderLayer(among(), read(i), ffn(o, activation), o.hidden_dim, o.dropout, pre_norm) for i in range(o.decoder_layers)]


def focal(weight: float = 2.0, top_k: int = 100) -> SetCriterion:
    """The set loss of all papers after DETR: sigmoid focal classes without "no object"; ``top_k`` answers an image, 0: one a query."""
    return SetCriterion(Focal(weight=weight), top_k=top_k)


def ffn(o: Options, activation: Callable[[], nn.Module] = nn.ReLU) -> FeedForward:
    return FeedForward(o.hidden_dim, o.ffn_dim, o.dropout, activation)


def region_ffn(o: Options, activation: Callable[[], nn.Module] = nn.ReLU) -> FeedForward:
    """The encoder's: each token alone, or with its neighbours."""
    kind = ConvolutionalFeedForward if o.encoder_ffn == "convolutional" else FeedForward
    return kind(o.hidden_dim, o.ffn_dim, o.dropout, activation)
