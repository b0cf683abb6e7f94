"""RetinaNet: every cell of a pyramid predicts the class of nine anchors and the offsets of their boxes.

Paper: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, arXiv:1708.02002
Year: 2017
Queries: none; nine anchors at every cell of five levels
Encoder: a feature pyramid and four convolutions
Matching: one object to many anchors, by overlap; sigmoid focal; NMS afterwards
Published: 36.4 AP in 26 epochs (torchvision, RetinaNet_ResNet50_FPN_Weights.COCO_V1)
Licence: torchvision's own parts (BSD-3-Clause), used as a library
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torchvision.models import detection

from boxquery.models.baselines.anchors import GridAnchors
from boxquery.models.baselines.base import AnchorGrid, BaselineOptions, Channels, published, variants
from boxquery.models.baselines.dense import DenseBaseline, DenseOutput
from boxquery.parts.backbone import Backbone
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class RetinaNetOptions(BaselineOptions):
    """As the paper's: three sizes of three ratios at every cell."""


PRESETS = variants(RetinaNetOptions(), published(0.01))


class RetinaNet(DenseBaseline):
    """torchvision's first version, with L1 on encoded boxes and no norm in the heads. ``classes`` columns: a sigmoid has no background."""

    net: detection.RetinaNet

    def __init__(self, classes: int, backbone: Backbone, options: RetinaNetOptions):
        self.classes = classes
        super().__init__(backbone, options, AnchorGrid(per_stride=4, scales=3))

    def build_net(self, channels: Channels, anchors: GridAnchors) -> detection.RetinaNet:
        return detection.RetinaNet(channels, self.classes, anchor_generator=anchors, score_thresh=self.options.score)

    def terms(self, out: DenseOutput, targets: list[dict]) -> dict[str, Tensor]:
        losses = self.net.compute_loss(targets, out.outputs, out.anchors)
        return {"class": losses["classification"], "l1": losses["bbox_regression"]}


def build(classes: int, options: RetinaNetOptions, weights: BackboneWeights | None) -> RetinaNet:
    backbone = Backbone(options.backbone, options.maps, weights, options=options.backbone_options)
    return RetinaNet(classes, backbone, options)
