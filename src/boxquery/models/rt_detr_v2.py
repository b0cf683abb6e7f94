"""RT-DETRv2: RT-DETR with as many samples on each level as it needs, and a way to sample that every runtime has.

Paper: Lv et al., "RT-DETRv2: Improved Baseline with Bag-of-Freebies for Real-Time Detection Transformer", 2024, arXiv:2407.17140
Year: 2024
Queries: tokens and boxes of the encoder's best proposals
Encoder: attention on the coarsest of 3 levels, convolutions between levels
Cross-attention: samples around the box, their number by level; or the nearest cells
Refinement: box by box; looks forward twice
Matching: one to one, and denoising; sigmoid varifocal
Published: 53.4 AP in 72 epochs; 48.1 R18, 49.9 R34, 51.9 R50-m, 54.3 R101 (RT-DETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: as RT-DETR, the best proposals' tokens and boxes, and noised objects in training; with `class_agnostic` one score for all classes
- encoder: as RT-DETR, attention on the coarsest of 3 levels and convolutions that fuse the levels
- locate: an MLP of the box itself makes the position of each layer
- cross-attention: samples around the box, `points` of them on each level; with `sampling="discrete"` the nearest cell in place of a
  bilinear sample, which is trained with fixed offsets after ordinary training
- refine: each layer updates the box; the next prediction is measured from it with its gradient (look forward twice)
- head: one per layer, without a final norm; sigmoid classes whose target is the IoU (varifocal)
"""

from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from boxquery.errors import UserError
from boxquery.models.base import DetectionTransformer
from boxquery.models.options import check_least
from boxquery.models.real_time import RECIPE, RealTimeOptions, real_time_detector, real_time_presets, resnets
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class RTDETRv2Options(RealTimeOptions):
    """``points``: samples per head, one number for every level or one per level. ``offset_scale``: their distance, as a share of the box.
    ``sampling``: bilinear, or the nearest cell, whose offsets are not trained. ``class_agnostic``: proposals are scored for any class.
    """

    points: int | list[int] = 4
    offset_scale: float = 0.5
    sampling: Literal["bilinear", "discrete"] = "bilinear"
    class_agnostic: bool = False

    def check(self) -> None:
        super().check()
        numbers = [self.points] * self.levels if isinstance(self.points, int) else self.points
        if len(numbers) != self.levels:
            raise UserError(f"points={self.points}: give one number, or one for each of levels={self.levels}")
        for number in numbers:
            check_least(1, points=number)
        if not self.offset_scale > 0:
            raise UserError(f"offset_scale={self.offset_scale}: must be above 0")


V2 = replace(RECIPE, warmup=0.004)
PRESETS = real_time_presets(
    RTDETRv2Options(),
    V2,
    resnets(
        RTDETRv2Options(),
        V2,
        r18={"epochs": 120, "backbone_lr": 1e-4},
        r34={"epochs": 120, "backbone_lr": 5e-5},
        r50m={"epochs": 84},
        r101={"backbone_lr": 1e-6},
    ),
)


def build(classes: int, options: RTDETRv2Options, weights: BackboneWeights | None) -> DetectionTransformer:
    o = options

    def cross_attn(layer: int) -> nn.Module:
        discrete = o.sampling == "discrete"
        return DeformableAttention(o.hidden_dim, o.heads, o.levels, o.points, offset_scale=o.offset_scale, discrete=discrete)

    return real_time_detector(classes, o, weights, cross_attn, o.class_agnostic)
