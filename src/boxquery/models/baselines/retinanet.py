"""RetinaNet: every cell of a pyramid says for nine anchors what is there, and how the box differs from the anchor.

Paper: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv:1708.02002
Year: 2017
Queries: none; nine anchors at every cell of five levels
Encoder: a feature pyramid and four convolutions
Matching: one object to many anchors, by overlap; sigmoid focal; suppression of overlapping answers afterwards
Published: 36.4 AP in 26 epochs (torchvision, RetinaNet_ResNet50_FPN_Weights.COCO_V1)
Licence: torchvision's own parts (BSD-3-Clause), used as a library
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torchvision.models import detection

from boxquery.models.baselines.anchors import GridAnchors
from boxquery.models.baselines.base import Grid, ReferenceOptions, Width, presets, published
from boxquery.models.baselines.dense import DenseOutput, DenseReference
from boxquery.parts.backbone import Backbone


@dataclass(frozen=True)
class RetinaNetOptions(ReferenceOptions):
    """As the paper's: three sizes of three ratios at every cell."""


PRESETS = presets(RetinaNetOptions(), published(0.01))


class RetinaNet(DenseReference):
    """torchvision's first version, with L1 on encoded boxes and no norm in the heads. ``classes`` columns: a sigmoid has no background."""

    net: detection.RetinaNet

    def __init__(self, classes: int, backbone: Backbone, options: RetinaNetOptions):
        self.classes = classes
        super().__init__(backbone, options, Grid(per_stride=4, scales=3))

    def make(self, width: Width, anchors: GridAnchors) -> detection.RetinaNet:
        return detection.RetinaNet(width, self.classes, anchor_generator=anchors, score_thresh=self.options.score)

    def terms(self, out: DenseOutput, wanted: list[dict]) -> dict[str, Tensor]:
        found = self.net.compute_loss(wanted, out.said, out.anchors)
        return {"class": found["classification"], "l1": found["bbox_regression"]}


def build(classes: int, options: RetinaNetOptions, pretrained: bool) -> RetinaNet:
    backbone = Backbone(options.backbone, options.maps, pretrained, options=options.backbone_options)
    return RetinaNet(classes, backbone, options)
