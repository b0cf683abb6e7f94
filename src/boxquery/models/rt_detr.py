"""RT-DETR: a hybrid encoder that attends on the coarsest level alone, and queries from the proposals whose class is most certain.

Paper: Zhao et al., "DETRs Beat YOLOs on Real-time Object Detection", CVPR 2024, arXiv:2304.08069
Year: 2024
Queries: tokens and boxes of the encoder's best proposals
Encoder: attention on the coarsest of 3 levels, convolutions between levels
Cross-attention: a few samples around the box, 3 levels
Refinement: box by box; looks forward twice
Matching: one to one, and denoising; sigmoid varifocal
Published: 53.1 AP in 72 epochs; 46.5 R18, 48.9 R34, 51.3 R50-m, 54.3 R101 (RT-DETR README)
Licence: written from the paper; the authors' code (Apache-2.0) served as reference for numbers only

Differs from DETR in:
- queries: the tokens with the highest class logit and the boxes that they propose, both without gradient; in training also noised objects,
  half of them negatives
- encoder: one attention layer (GELU, positions by cell number) on the coarsest of 3 levels; the levels are fused top down and bottom up
  by RepVGG blocks with batch norm
- locate: an MLP of the box itself makes the position of each layer
- cross-attention: a few bilinear samples around the box on every level instead of every cell
- refine: each layer updates the box; the next prediction is measured from it with its gradient (look forward twice)
- head: one per layer, without a final norm; sigmoid classes whose target is the IoU (varifocal), of the proposals too
"""

from dataclasses import dataclass

from boxquery.models.base import DetectionTransformer
from boxquery.models.options import check_least
from boxquery.models.real_time import RECIPE, RealTimeOptions, real_time_detector, real_time_presets, resnets
from boxquery.parts.attention.deformable import DeformableAttention
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class RTDETROptions(RealTimeOptions):
    """``points``: samples per head and level."""

    points: int = 4

    def check(self) -> None:
        super().check()
        check_least(1, points=self.points)


PRESETS = real_time_presets(RTDETROptions(), RECIPE, resnets(RTDETROptions(), RECIPE, r101={"backbone_lr": 1e-6}))


def build(classes: int, options: RTDETROptions, weights: BackboneWeights | None) -> DetectionTransformer:
    o = options
    return real_time_detector(classes, o, weights, lambda layer: DeformableAttention(o.hidden_dim, o.heads, o.levels, o.points))
