"""D-FINE: the sides of a box are distributions that every layer corrects, and that the last layer teaches to the others.

Paper: Peng et al., "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement", ICLR 2025, arXiv:2410.13842
Year: 2025
Queries: the encoder's best tokens and their boxes
Encoder: attention on the coarsest level, convolutions between levels
Cross-attention: a few samples inside and around the box, on values as they are, gated
Refinement: distributions of the four sides, layer by layer
Matching: one to one, boxes by the union of all layers' pairs, contrastive denoising; varifocal
Published: 54.0 AP in 80 epochs (L); N 42.8, S 48.5, M 52.3, X 55.8 (D-FINE README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: the encoder's best proposals by their best class: content is the token, the reference its box; in training also noised objects
- encoder: attention on the coarsest of 3 levels alone, then fusion top down and bottom up by convolutions (from RT-DETR, with other blocks)
- locate: an MLP of the box of the layer before, without gradient
- cross-attention: a few bilinear samples per level around the box, values and result unprojected; a gate weighs content and result
- refine: the logits of each side's distribution are corrected in every layer, measured from a box that the first layer predicts
- head: varifocal classes without "no object", raised where distributions are certain; box losses of all layers use the union of their
  pairs; distributions learn the bins around an object's sides (FGL) and the last layer's distributions (DDF)
"""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from boxquery.errors import UserError
from boxquery.matching.classification import Varifocal
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.fine_grained import FineGrainedLoss
from boxquery.matching.groups import Noise
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder_layers, hybrid, image, keep_prediction, proposals
from boxquery.models.options import Options, check_least
from boxquery.models.recipes import Preset, Recipe, presets
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.attention.dense import SelfAttention
from boxquery.parts.distributions import DistributionBoxCoder, DistributionHead
from boxquery.parts.elan import GELAN, SeparableShrink
from boxquery.parts.geometry import QueryGeometry, require_boxes
from boxquery.parts.heads import MLP
from boxquery.parts.hybrid import ConvBlock, HybridEncoder
from boxquery.parts.layers import Gate, reset_transformer
from boxquery.parts.memory import Memory
from boxquery.parts.positions import CellSinePosition
from boxquery.parts.state import QueryState
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class DFineOptions(Options):
    """``encoder_dim``, ``encoder_ffn_dim``: widths of the encoder. ``levels``: the backbone's last 2 or 3 maps.
    ``points``: samples per head, on every level or on each. ``reg_max``: bins of a distribution; ``reg_scale``: how even they are.
    """

    query_positions = ("paper", "sine", "sine-mlp", "none")
    backbone: str = "hgnetv2_b4"
    num_queries: int | list[int] = 300
    encoder_layers: int = 1
    ffn_dim: int = 1024
    dropout: float = 0.0
    encoder_dim: int = 256
    encoder_ffn_dim: int = 1024
    levels: int = 3
    points: int | list[int] = field(default_factory=lambda: [3, 6, 3])
    reg_max: int = 32
    reg_scale: float = 4.0
    matching: str = "denoising"
    denoising: int = 200

    def check(self) -> None:
        super().check()
        check_least(1, levels=self.levels, encoder_dim=self.encoder_dim, encoder_ffn_dim=self.encoder_ffn_dim)
        check_least(4, reg_max=self.reg_max)
        if self.dilation and self.levels > 1:
            raise UserError("dilation=True: the encoder fuses levels of halving size; needs dilation=False, or levels=1")
        if self.encoder_dim % self.heads or self.encoder_dim % 4:
            raise UserError(f"encoder_dim={self.encoder_dim}: must be a multiple of 4 and of heads={self.heads}")
        if not isinstance(self.points, int) and len(self.points) != self.levels:
            raise UserError(f"points={self.points}: give one number, or one for each of levels={self.levels}")
        check_least(1, points=self.points if isinstance(self.points, int) else min(self.points))
        if self.reg_max % 2:
            raise UserError(f"reg_max={self.reg_max}: must be even: as many bins lie outside the box as inside")
        if not self.reg_scale > 0:
            raise UserError(f"reg_scale={self.reg_scale}: must be above 0")


LARGE = DFineOptions()
SMALL = replace(LARGE, backbone="hgnetv2_b0", decoder_layers=3, fusion_blocks=1, fusion_expansion=0.5)
RECIPE = Recipe(image_size=640, square=True, epochs=80, batch_size=4, lr=2.5e-4, backbone_lr=1.25e-5, weight_decay=1.25e-4, ema=0.9999)
PRESETS = presets(
    LARGE,
    RECIPE,
    **{"dilation": False, "heads": 4, "encoder_dim": 128, "encoder_ffn_dim": 512, "points": 3, "denoising": 60},
    **{"fusion_blocks": 1, "fusion_expansion": 0.5},
)
PRESETS |= {
    "n": Preset(
        replace(
            SMALL,
            hidden_dim=128,
            encoder_dim=128,
            ffn_dim=512,
            encoder_ffn_dim=512,
            levels=2,
            points=[6, 6],
            fusion_blocks=2,
            fusion_expansion=0.34,
        ),
        replace(RECIPE, epochs=160, batch_size=16, lr=8e-4, backbone_lr=4e-4, weight_decay=1e-4),
    ),
    "s": Preset(SMALL, replace(RECIPE, epochs=132, lr=2e-4, backbone_lr=1e-4, weight_decay=1e-4)),
    "m": Preset(
        replace(LARGE, backbone="hgnetv2_b2", decoder_layers=4, fusion_blocks=2),
        replace(RECIPE, epochs=132, lr=2e-4, backbone_lr=2e-5, weight_decay=1e-4),
    ),
    "x": Preset(
        replace(LARGE, backbone="hgnetv2_b5", encoder_dim=384, encoder_ffn_dim=2048, reg_scale=8.0), replace(RECIPE, backbone_lr=2.5e-6)
    ),
}

#: noise and empty slots of images with fewer objects, which are background in a corner (as RT-DETR)
NOISE = Noise(box=1.0, eps=1e-5, slots=math.log(1e-5), background=True)


class Locate(nn.Module):
    """Position and reference: the box of the layer before, or of the proposal; the position is an MLP of its four numbers."""

    def __init__(self, dim: int):
        super().__init__()
        self.position = MLP(4, 2 * dim, dim, 2)

    def forward(self, state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
        if state.previous is None:
            box = require_boxes(state.reference, "D-FINE's locate", "QueryState.reference").sigmoid()
        else:
            box = state.previous.boxes.detach()
        return state, QueryGeometry(position=self.position(box).clamp(-10, 10), reference=box, self_mask=state.self_mask)


class HalfPrecisionNorm(nn.LayerNorm):
    """A layer norm of what half precision can hold."""

    def forward(self, input: Tensor) -> Tensor:
        most = torch.finfo(torch.float16).max
        return super().forward(input.clamp(-most, most))


def regions(o: DFineOptions) -> HybridEncoder:
    """The encoder, of the width ``encoder_dim``."""
    inner = replace(o, hidden_dim=o.encoder_dim, ffn_dim=o.encoder_ffn_dim)
    layers = encoder_layers(inner, activation=nn.GELU)
    reset_transformer(*layers)

    def to_decoder() -> nn.Module:
        return ConvBlock(o.encoder_dim, o.hidden_dim, 1, activation=nn.Identity)

    project = None if o.encoder_dim == o.hidden_dim else to_decoder
    if o.encoder == "hybrid":
        return hybrid(inner, layers, project=project)
    return HybridEncoder(
        layers,
        o.levels,
        lateral=lambda: ConvBlock(o.encoder_dim, o.encoder_dim, 1, activation=nn.Identity),
        fusion=lambda: GELAN(o.encoder_dim, max(round(o.fusion_expansion * o.encoder_dim // 2), 1), o.fusion_blocks),
        shrink=lambda: SeparableShrink(o.encoder_dim),
        project=project,
    )


def build(classes: int, options: DFineOptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o, dim = options, options.hidden_dim
    coder, locate = DistributionBoxCoder(o.reg_max, scale=o.reg_scale), Locate(dim)
    layers = decoder(
        o,
        lambda: SelfAttention(dim, o.heads, o.dropout),
        lambda layer: DeformableAttention(dim, o.heads, o.levels, o.points, project=False),
    )
    for layer in layers:
        layer.read_residual, layer.ffn_residual.norm = Gate(dim, o.dropout), HalfPrecisionNorm(dim)
    reset_transformer(locate, *layers)
    return DetectionTransformer(
        # image: three maps from stride 8 on, or two from 16
        image=image(replace(o, hidden_dim=o.encoder_dim), weights, CellSinePosition(o.encoder_dim), o.levels, norm="batch"),
        encoder=regions(o),
        queries=proposals(classes, o, "tokens", NOISE),
        locate=locate,
        layers=layers,
        refine=keep_prediction,
        heads=[DistributionHead(dim, classes, first=layer == 0, coder=coder) for layer in range(o.decoder_layers)],
        criterion=SetCriterion(Varifocal(), coder=coder, fine=FineGrainedLoss(coder), joint=True, class_agnostic_proposals=False),
        top_k=300,
    )
