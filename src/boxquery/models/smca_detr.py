"""SMCA-DETR: cross-attention is modulated by a Gaussian around the centre that each query predicts.

Paper: Gao et al., "Fast Convergence of DETR with Spatially Modulated Co-Attention", ICCV 2021, arXiv:2101.07448
Year: 2021
Queries: learned positions, content from zero
Encoder: as DETR; with `levels` its own level, once all levels
Cross-attention: every cell, under a Gaussian for each head around a predicted centre
Refinement: none: boxes from the centre
Matching: one to one; sigmoid focal
Published: 41.0 AP in 50 epochs, 42.7 in 108; 43.7 multi-scale in 50 (SMCA-DETR README)
Licence: written from the paper; the authors' code (which states no licence) served as reference for numbers only

Differs from DETR in:
- encoder: with several levels, a token attends to its own level, and only in the middle layer to all of them
- locate: the first layer predicts each query's centre; in every layer each head puts a Gaussian near it, with widths of its own
- cross-attention: dense, with the Gaussians' logarithm added to the logits; with several levels, each query selects among them
- head: sigmoid focal classes without "no object"; boxes measured from the predicted centre
"""

from dataclasses import dataclass

from torch import nn

from boxquery.errors import UserError
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder, focal, image, region_ffn
from boxquery.models.options import Options, check_least
from boxquery.models.recipes import Recipe, presets
from boxquery.parts.attention.dense import DenseAttention, SelfAttention
from boxquery.parts.attention.gaussian import DynamicScale, GaussianLocate
from boxquery.parts.attention.scales import IntraScaleAttention, ScaleSelectionAttention
from boxquery.parts.backbone import Backbone
from boxquery.parts.geometry import locate_at_position
from boxquery.parts.heads import Head
from boxquery.parts.layers import Encoder, EncoderLayer, reset_transformer
from boxquery.parts.positions import SinePosition
from boxquery.parts.queries import LearnedQueries
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class SMCAOptions(Options):
    """``dynamic_scale``: what a head predicts of its Gaussian: "type1" nothing, "type2" one width, "type3" one per axis, "type4" also
    a weight of both axes' product.
    ``gaussian_smooth``: divides the Gaussian's exponent (beta); higher is wider.
    ``levels``: 1 is the released model; more is the paper's section 3.3, from stride 16 on (the paper: 3, and ``encoder_layers`` 5).
    ``centre_stride``: pixels per cell in which the predicted centre is measured; 0: the stride of the backbone's last map, as
    it is meant to be (the authors have 32, with ``dilation`` too).
    """

    query_positions = ("learned",)
    num_queries: int | list[int] = 300
    dynamic_scale: DynamicScale = "type3"
    gaussian_smooth: float = 8.0
    levels: int = 1
    centre_stride: int = 32

    def check(self) -> None:
        super().check()
        if self.gaussian_smooth <= 0:
            raise UserError(f"gaussian_smooth={self.gaussian_smooth}: must be above 0")
        check_least(1, levels=self.levels)
        check_least(0, centre_stride=self.centre_stride)


PRESETS = presets(SMCAOptions(), Recipe(epochs=50, decay_at=0.8), centre_stride=0)


def regions(o: SMCAOptions) -> Encoder:
    """Encoder: dense attention; with several levels each to its own, except in the middle layer (section 3.3)."""
    if o.encoder == "hybrid":
        return encoder(o)

    def self_attn(layer: int) -> nn.Module:
        dense = DenseAttention(o.hidden_dim, o.heads, o.dropout)
        return dense if o.levels == 1 or layer == o.encoder_layers // 2 else IntraScaleAttention(dense)

    return Encoder([EncoderLayer(self_attn(i), region_ffn(o), o.hidden_dim, o.dropout) for i in range(o.encoder_layers)])


def steps(backbone: Backbone, levels: int) -> tuple[float, ...]:
    """Width of each level's cells in cells of the backbone's last map; each level beyond that map doubles it."""
    last = backbone.strides[-1]
    own = [stride / last for stride in backbone.strides]
    return (*own, *(2.0**i for i in range(1, levels - len(own) + 1)))


def build(classes: int, options: SMCAOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim
    # image: the backbone's last map, or its last two and strided convolutions for more
    parts = image(o, weights, SinePosition(dim), o.levels, maps=2)
    cells = regions(o)
    # locate: with Gaussians around a centre that the first layer predicts
    locate = GaussianLocate(
        locate_at_position,
        dim,
        o.heads,
        o.decoder_layers,
        kind=o.dynamic_scale,
        smooth=o.gaussian_smooth,
        stride=o.centre_stride or parts[0].strides[-1],
        steps=steps(parts[0], o.levels),
    )
    # cross-attention: dense, or dense on each level separately
    layers = decoder(
        o,
        lambda: SelfAttention(dim, o.heads, o.dropout),
        lambda layer: (
            DenseAttention(dim, o.heads, o.dropout) if o.levels == 1 else ScaleSelectionAttention(dim, o.heads, o.levels, o.dropout)
        ),
    )
    reset_transformer(cells, locate, *layers)
    return DetectionTransformer(
        image=parts,
        encoder=cells,
        queries=LearnedQueries(o.queries, dim),
        locate=locate,
        layers=layers,
        norm=nn.LayerNorm(dim),
        # head: one for all layers; the centre is not clamped
        heads=[Head(dim, classes, zero_boxes=False, eps=0.0)],
        criterion=focal(),
        top_k=0,
    )
