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
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from boxquery.errors import UserError
from boxquery.matching.classification import Varifocal
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.fine_grained import FineGrainedLoss
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import decoder, encoder_layers, keep_prediction
from boxquery.models.options import check_least
from boxquery.models.real_time import (
    RECIPE,
    RealTimeOptions,
    real_time_encoder,
    real_time_image,
    real_time_presets,
    real_time_queries,
)
from boxquery.models.recipes import Preset
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.attention.dense import SelfAttention
from boxquery.parts.distributions import DistributionBoxCoder, DistributionHead
from boxquery.parts.elan import GELAN, SeparableShrink
from boxquery.parts.geometry import QueryGeometry, require_boxes
from boxquery.parts.heads import MLP
from boxquery.parts.hybrid import ConvBlock, HybridEncoder
from boxquery.parts.layers import Gate, reset_transformer
from boxquery.parts.memory import Memory
from boxquery.parts.state import QueryState
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class DFineOptions(RealTimeOptions):
    """``points``: samples per head, on every level or on each. ``reg_max``: bins of a distribution; ``reg_scale``: how even they are."""

    backbone: str = "hgnetv2_b4"
    points: int | list[int] = field(default_factory=lambda: [3, 6, 3])
    reg_max: int = 32
    reg_scale: float = 4.0

    def check(self) -> None:
        super().check()
        if not isinstance(self.points, int) and len(self.points) != self.levels:
            raise UserError(f"points={self.points}: give one number, or one for each of levels={self.levels}")
        check_least(1, points=self.points if isinstance(self.points, int) else min(self.points))
        check_least(4, reg_max=self.reg_max)
        if self.reg_max % 2:
            raise UserError(f"reg_max={self.reg_max}: must be even: as many bins lie outside the box as inside")
        if not 0 < self.reg_scale < math.inf:
            raise UserError(f"reg_scale={self.reg_scale}: must be a finite number above 0")


def published(options: DFineOptions, epochs: int, plain: int, lr: float, backbone_lr: float, decay: float = 1e-4, batch: int = 4) -> Preset:
    """A size as its authors trained it; the last ``plain`` epochs without strong augmentation."""
    augment = replace(RECIPE.augment, plain_end=plain / epochs)
    own: dict[str, Any] = {"epochs": epochs, "lr": lr, "backbone_lr": backbone_lr, "weight_decay": decay, "batch_size": batch}
    return Preset(options, replace(RECIPE, augment=augment, **own))


LARGE = published(DFineOptions(), 80, 8, 2.5e-4, 1.25e-5, 1.25e-4)
NARROW = replace(LARGE.options, backbone="hgnetv2_b0", decoder_layers=3, fusion_blocks=1, fusion_expansion=0.5)
NANO = replace(NARROW, hidden_dim=128, ffn_dim=512, levels=2, points=[6, 6], fusion_blocks=2, fusion_expansion=0.34)
WIDE = replace(LARGE.options, backbone="hgnetv2_b5", encoder_dim=384, encoder_ffn_dim=2048, reg_scale=8.0)
SIZES = {
    "n": published(NANO, 160, 12, 8e-4, 4e-4, batch=16),
    "s": published(NARROW, 132, 12, 2e-4, 1e-4),
    "m": published(replace(LARGE.options, backbone="hgnetv2_b2", decoder_layers=4, fusion_blocks=2), 132, 12, 2e-4, 2e-5),
    "x": published(WIDE, 80, 8, 2.5e-4, 2.5e-6, 1.25e-4),
}
PRESETS = real_time_presets(LARGE.options, LARGE.recipe, SIZES, points=3)


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


def fusing(o: DFineOptions) -> HybridEncoder:
    """RT-DETR's encoder with other blocks, and a projection only where the decoder has another width."""
    regions = o.regions
    dim, layers = regions.hidden_dim, encoder_layers(regions, activation=nn.GELU)
    reset_transformer(*layers)

    def linear(outputs: int) -> Callable[[], nn.Module]:
        return lambda: ConvBlock(dim, outputs, 1, activation=nn.Identity)

    return HybridEncoder(
        layers,
        o.levels,
        lateral=linear(dim),
        fusion=lambda: GELAN(dim, max(round(o.fusion_expansion * dim // 2), 1), o.fusion_blocks),
        shrink=lambda: SeparableShrink(dim),
        project=None if dim == o.hidden_dim else linear(o.hidden_dim),
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
        image=real_time_image(o, weights),
        encoder=real_time_encoder(o) if o.encoder == "hybrid" else fusing(o),
        queries=real_time_queries(classes, o),
        locate=locate,
        layers=layers,
        refine=keep_prediction,
        heads=[DistributionHead(dim, classes, first=layer == 0, coder=coder) for layer in range(o.decoder_layers)],
        criterion=SetCriterion(Varifocal(), coder=coder, fine=FineGrainedLoss(coder), joint=True, class_agnostic_proposals=False),
        top_k=300,
    )
