"""FCOS: every cell of a pyramid near the middle of an object predicts its class and the distances to its four sides.

Paper: Tian et al., "FCOS: Fully Convolutional One-Stage Object Detection", ICCV 2019, arXiv:1904.01355
Year: 2019
Queries: none; a point at every cell of five levels
Encoder: a feature pyramid and four convolutions
Matching: one object to the points near its middle, on the level for its size; sigmoid focal; NMS afterwards
Published: 39.2 AP in 26 epochs (torchvision, FCOS_ResNet50_FPN_Weights.COCO_V1)
Licence: torchvision's own parts (BSD-3-Clause), used as a library
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor
from torchvision.models import detection

from boxquery.errors import UserError
from boxquery.models.baselines.anchors import GridAnchors
from boxquery.models.baselines.base import AnchorGrid, BaselineOptions, Channels, published, variants
from boxquery.models.baselines.dense import DenseBaseline, DenseOutput
from boxquery.parts.backbone import Backbone
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class FCOSOptions(BaselineOptions):
    """There are no anchors. ``anchor_sizes`` is a unit of length per level, its stride by default: a level is for objects whose farthest
    side is 4 to 8 units away (the finest also for nearer ones, the coarsest for farther ones), and points up to 1.5 units from the
    middle of an object are trained on it. Each must be twice the one before, and even."""

    nms: float = 0.6
    score: float = 0.2

    def check(self) -> None:
        super().check()
        if self.hidden_dim % 32 or self.hidden_dim < 64:
            raise UserError(f"hidden_dim={self.hidden_dim}: must be a multiple of 32, from 64 (GroupNorm with 32 groups, also on one cell)")
        units = [level[0] for level in self.anchor_sizes]
        if self.anchor_ratios or any(len(level) != 1 for level in self.anchor_sizes):
            raise UserError("fcos has no anchors: anchor_sizes must be one unit of length per level, and anchor_ratios empty")
        if any(unit % 2 for unit in units) or any(b != 2 * a for a, b in pairwise(units)):
            raise UserError(f"anchor_sizes={self.anchor_sizes}: each must be even and twice the one before, or sizes fall between levels")


PRESETS = variants(FCOSOptions(), published(0.01))


class FCOS(DenseBaseline):
    """torchvision's, with centre sampling, GIoU and GroupNorm in the heads. ``classes`` columns: a sigmoid has no background."""

    net: detection.FCOS

    def __init__(self, classes: int, backbone: Backbone, options: FCOSOptions):
        self.classes = classes
        super().__init__(backbone, options, AnchorGrid(per_stride=1, scales=1, ratios=(1.0,), measured=False))

    def build_net(self, channels: Channels, anchors: GridAnchors) -> detection.FCOS:
        return detection.FCOS(channels, self.classes, anchor_generator=anchors, score_thresh=self.options.score)

    def terms(self, out: DenseOutput, targets: list[dict]) -> dict[str, Tensor]:
        losses = self.net.compute_loss(targets, out.outputs, out.anchors, out.counts)
        return {"class": losses["classification"], "giou": losses["bbox_regression"], "centre": losses["bbox_ctrness"]}


def build(classes: int, options: FCOSOptions, weights: BackboneWeights | None) -> FCOS:
    backbone = Backbone(options.backbone, options.maps, weights, options=options.backbone_options)
    return FCOS(classes, backbone, options)
