"""What most papers build alike from their options."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from boxquery.models.base import State
from boxquery.models.options import Options
from boxquery.parts.attention import DenseRead, Look
from boxquery.parts.backbone import Backbone, Neck
from boxquery.parts.layers import DecoderLayer, Encoder, EncoderLayer, FeedForward, at_position
from boxquery.parts.memory import Memory, Tokens

Image = tuple[Backbone, Neck, Tokens]


class LearnedQueries(nn.Module):
    """Queries: content starts at zero; what tells them apart is a learned position, used in every layer (section 3.2)."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.position = nn.Parameter(torch.empty(count, dim).normal_())

    def forward(self, memory: Memory, targets: list[dict] | None) -> State:
        position = self.position.expand(len(memory.tokens), -1, -1)
        return State(content=torch.zeros_like(position, dtype=memory.tokens.dtype), position=position)


def image(
    o: Options, pretrained: bool, position: nn.Module, levels: int = 1, maps: int = 3, norm: bool = False, level_embedding: bool = False
) -> Image:
    """Backbone, neck and tokens: ``levels`` maps; up to ``maps`` are the backbone's last ones, strided convolutions make the rest."""
    backbone = Backbone(o.backbone, min(levels, maps), pretrained, o.dilation, o.backbone_options)
    neck = Neck(backbone.channels, o.hidden_dim, extra=max(levels - maps, 0), norm=norm)
    return backbone, neck, Tokens(position, o.hidden_dim, levels, level_embedding)


def encoder(
    o: Options,
    read: Callable[[], nn.Module] | None = None,
    *,
    norm: nn.Module | None = None,
    pre_norm: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
    place: Callable[[Memory], Look] = at_position,
) -> Encoder:
    """``encoder_layers`` layers in which every region reads every region, or ``read()``."""
    layers = [
        EncoderLayer(
            DenseRead(o.hidden_dim, o.heads, o.dropout) if read is None else read(), ffn(o, activation), o.hidden_dim, o.dropout, pre_norm
        )
        for _ in range(o.encoder_layers)
    ]
    return Encoder(layers, norm, place)


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


def ffn(o: Options, activation: Callable[[], nn.Module] = nn.ReLU) -> FeedForward:
    return FeedForward(o.hidden_dim, o.ffn_dim, o.dropout, activation)
