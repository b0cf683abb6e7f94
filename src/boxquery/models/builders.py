"""Parts that most papers build alike from their options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Literal

from torch import nn

from boxquery.errors import UserError
from boxquery.matching.classification import Focal
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.groups import Denoising, Noise
from boxquery.models.base import DetectionTransformer
from boxquery.models.options import Options
from boxquery.parts.attention.conditional import ConditionalCrossAttention, ConditionalSelfAttention
from boxquery.parts.attention.dense import DenseAttention
from boxquery.parts.backbone import Backbone, FeaturePyramid, Neck
from boxquery.parts.box_locate import DABLocate, ScaledPositions
from boxquery.parts.boxes import EPS_OF_ANCHORS
from boxquery.parts.geometry import QueryGeometry
from boxquery.parts.heads import Head, Prediction
from boxquery.parts.hybrid import CellNorm, ConvBlock, CrossStage, HybridEncoder, MakeBlock, RepVGGBlock
from boxquery.parts.layers import ConvolutionalFeedForward, DecoderLayer, Encoder, EncoderLayer, FeedForward, at_position, reset_transformer
from boxquery.parts.memory import Memory, Tokens
from boxquery.parts.positions import LearnedPosition, NoPosition, SinePosition
from boxquery.parts.queries import BoxQueries, ProposalQueries
from boxquery.parts.state import QueryState
from boxquery.parts.weights import BackboneWeights

Image = tuple[Backbone, Neck, Tokens]


def refine_detached(state: QueryState, prediction: Prediction, head: Head) -> QueryState:
    """The box of this layer is the next one's reference; no gradient passes from layer to layer (Deformable DETR, appendix A.4)."""
    reference = prediction.box.detach()
    return replace(state, reference=reference, box_anchor=reference)


def look_forward_twice(state: QueryState, prediction: Prediction, head: Head) -> QueryState:
    """The box of this layer is the next one's reference, detached; the next prediction is measured from the same box with its gradient, so
    that its loss reaches this layer's head, too (DINO, "Look Forward Twice"; before it DAB-DETR's code).

    The box is made from content before the model's final norm, where it has one; the prediction from content after it.
    """
    box_anchor = head.box(state.content, state.reference)
    return replace(state, reference=box_anchor.detach(), box_anchor=box_anchor)


def keep_prediction(state: QueryState, prediction: Prediction, head: Head) -> QueryState:
    """The reference stays; ``locate`` or the head of the next layer builds on this layer's predictions."""
    return replace(state, previous=prediction)


def image(
    o: Options,
    weights: BackboneWeights | None,
    position: nn.Module,
    levels: int = 1,
    maps: int = 3,
    norm: Literal["group", "batch"] | None = None,
    level_embedding: bool = False,
) -> Image:  # fmt: skip
    """Backbone, neck and tokens: ``levels`` maps; up to ``maps`` are the backbone's last, the others strided convolutions."""
    backbone = Backbone(o.backbone, min(levels, maps), weights, o.dilation, o.backbone_options)
    further = max(levels - maps, 0)
    neck = Neck(backbone.channels, o.hidden_dim, extra=further, norm=norm)
    strides = [*backbone.strides, *(backbone.strides[-1] * 2**i for i in range(1, further + 1))]
    exact = strides if o.valid_ratios == "exact" else None
    return backbone, neck, Tokens(chosen_position(o, position), o.hidden_dim, levels, level_embedding, exact)


def pyramid_body(o: Options, weights: BackboneWeights | None, levels: int) -> Backbone:
    """A backbone whose last maps halve in size, for a feature pyramid. Raises ``UserError`` where they do not."""
    backbone = Backbone(o.backbone, levels, weights, o.dilation, o.backbone_options)
    if any(coarse != 2 * fine for fine, coarse in pairwise(backbone.strides)):
        strides = ", ".join(map(str, backbone.strides))
        raise UserError(f"backbone {o.backbone!r} has maps of strides {strides}, and the pyramid's must double; choose another or levels=1")
    return backbone


def pyramid(o: Options, weights: BackboneWeights | None, levels: int) -> Image:
    """Backbone, feature pyramid and tokens without a position of the paper's own."""
    backbone = pyramid_body(o, weights, levels)
    return backbone, FeaturePyramid(backbone.channels, o.hidden_dim), Tokens(chosen_position(o, NoPosition(o.hidden_dim)), o.hidden_dim)


def chosen_position(o: Options, own: nn.Module) -> nn.Module:
    """Of the image's cells: the paper's own, or what the option ``position`` says."""
    chosen = {"sine": SinePosition, "learned": LearnedPosition, "none": NoPosition}.get(o.position)
    return own if chosen is None else chosen(o.hidden_dim)


def encoder(
    o: Options,
    self_attn: Callable[[], nn.Module] | None = None,
    *,
    norm: nn.Module | None = None,
    pre_norm: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
    locate: Callable[[Memory], QueryGeometry] = at_position,
) -> Encoder:
    """``encoder_layers``, one after the other, or the hybrid encoder, by the options."""
    if o.encoder == "hybrid":
        return hybrid(o, encoder_layers(o, pre_norm=pre_norm, activation=activation))
    return Encoder(encoder_layers(o, self_attn, pre_norm=pre_norm, activation=activation), norm, locate)


def encoder_layers(
    o: Options,
    self_attn: Callable[[], nn.Module] | None = None,
    *,
    pre_norm: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> list[EncoderLayer]:
    """``encoder_layers`` layers of dense attention or ``self_attn()``."""
    return [
        EncoderLayer(
            DenseAttention(o.hidden_dim, o.heads, o.dropout) if self_attn is None else self_attn(),
            region_ffn(o, activation),
            o.hidden_dim,
            o.dropout,
            pre_norm,
        )
        for _ in range(o.encoder_layers)
    ]


def hybrid(o: Options, layers: list[EncoderLayer], published: bool = False, project: MakeBlock | None = None) -> HybridEncoder:
    """RT-DETR's encoder with the width ``hidden_dim``, for any model that has levels.

    Args:
        published: with batch norm and RepVGG's blocks; otherwise each block is one convolution with a norm that neither padding nor other
            images change.
        project: see ``HybridEncoder``.
    """
    dim, width, levels = o.hidden_dim, round(o.hidden_dim * o.fusion_expansion), vars(o)["levels"]
    norm = nn.BatchNorm2d if published else CellNorm

    def block() -> nn.Module:
        return RepVGGBlock(width) if published else ConvBlock(width, width, 3, norm=norm)

    return HybridEncoder(
        layers,
        levels,
        lateral=lambda: ConvBlock(dim, dim, 1, norm=norm),
        fusion=lambda: CrossStage(2 * dim, dim, width, o.fusion_blocks, block, norm),
        shrink=lambda: ConvBlock(dim, dim, 3, stride=2, norm=norm),
        project=project,
    )


def decoder(
    o: Options,
    self_attn: Callable[[], nn.Module],
    cross_attn: Callable[[int], nn.Module],
    *,
    pre_norm: bool = False,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> list[DecoderLayer]:
    """``decoder_layers`` layers of ``self_attn()``, ``cross_attn(layer)`` and a feed-forward network."""
    return [
        DecoderLayer(self_attn(), cross_attn(i), ffn(o, activation), o.hidden_dim, o.dropout, pre_norm) for i in range(o.decoder_layers)
    ]


def focal(weight: float = 2.0) -> SetCriterion:
    """The criterion of all papers after DETR: sigmoid focal classes without "no object"."""
    return SetCriterion(Focal(weight=weight))


def denoising(classes: int, o: Options, position: nn.Module | None = None, noise: Noise = Noise()) -> Denoising | None:  # noqa: B008
    """What adds noised queries in training, where ``matching`` has it."""
    if "denoising" not in o.strategies:
        return None
    return Denoising(classes, o.hidden_dim, o.denoising, noise, position, contrastive=o.contrastive)


def proposals(classes: int, o: Options, content: Literal["tokens", "learned"], noise: Noise) -> ProposalQueries:
    """Queries at the encoder's best boxes by their best class; the chosen ones learn, with a head of their own (DINO, RT-DETR, D-FINE)."""
    return ProposalQueries(
        o.queries,
        o.hidden_dim,
        Head(o.hidden_dim, classes),
        content,
        class_agnostic=False,
        learning="chosen",
        denoising=denoising(classes, o, noise=noise),
        valid_first=o.valid_ratios == "exact",
    )


def ffn(o: Options, activation: Callable[[], nn.Module] = nn.ReLU) -> FeedForward:
    return FeedForward(o.hidden_dim, o.ffn_dim, o.dropout, activation)


def region_ffn(o: Options, activation: Callable[[], nn.Module] = nn.ReLU) -> FeedForward:
    """The encoder's: on each token separately, or with its neighbours."""
    kind = ConvolutionalFeedForward if o.encoder_ffn == "convolutional" else FeedForward
    return kind(o.hidden_dim, o.ffn_dim, o.dropout, activation)


def dab_model(classes: int, o: Options, weights: BackboneWeights | None, queries: Callable[[], BoxQueries]) -> DetectionTransformer:
    """DAB-DETR with any anchor boxes as queries, which are made after encoder and decoder."""
    dim = o.hidden_dim
    regions, locate = encoder(o, activation=nn.PReLU, locate=ScaledPositions(dim)), DABLocate(dim)
    layers = decoder(
        o,
        lambda: ConditionalSelfAttention(dim, o.heads, o.dropout),
        lambda layer: ConditionalCrossAttention(dim, o.heads, o.dropout, first=layer == 0),
        activation=nn.PReLU,
    )
    reset_transformer(regions, locate, *layers)
    return DetectionTransformer(
        image=image(o, weights, SinePosition(dim, temperature=20)),
        encoder=regions,
        queries=queries(),
        locate=locate,
        layers=layers,
        refine=look_forward_twice,
        norm=nn.LayerNorm(dim),
        heads=[Head(dim, classes, eps=EPS_OF_ANCHORS)],
        criterion=focal(weight=1.0),
        top_k=300,
    )
