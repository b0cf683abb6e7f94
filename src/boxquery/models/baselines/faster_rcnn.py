"""Faster R-CNN: a first stage proposes regions from anchors, a second classifies and refines each region.

Paper: Ren et al., "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", NeurIPS 2015, arXiv:1506.01497
Year: 2015
Queries: none; anchors at every cell of five levels, then the best regions
Encoder: a feature pyramid (arXiv:1612.03144)
Matching: one object to many anchors and to many regions, by overlap; softmax with background; NMS after each
Published: 37.0 AP in 26 epochs (torchvision, FasterRCNN_ResNet50_FPN_Weights.COCO_V1)
Licence: torchvision's own parts (BSD-3-Clause), used as a library
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torchvision.models import detection
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from boxquery.errors import UserError
from boxquery.models.baselines.anchors import GridAnchors
from boxquery.models.baselines.base import AnchorGrid, Baseline, BaselineOptions, Channels, extents, in_pixels, published, summed, variants
from boxquery.models.options import check_least
from boxquery.parts.backbone import Backbone
from boxquery.parts.boxes import at_least_float32
from boxquery.parts.weights import BackboneWeights


@dataclass(frozen=True)
class FasterRCNNOptions(BaselineOptions):
    """``scales``: anchor sizes per level.
    ``proposals``: regions that the first stage passes on, twice as many in training; its own NMS is at IoU 0.7, whatever ``nms`` is.
    ``samples``: regions per image on which the second stage is trained, at most a quarter of them with an object. Fast R-CNN had 64 (its
    section 2.3).
    ``ffn_dim``: width of the two layers on each region of 7 x 7 cells.
    """

    maps: int = 4
    scales: int = 1
    proposals: int = 1000
    samples: int = 512
    ffn_dim: int = 1024

    def check(self) -> None:
        super().check()
        check_least(1, scales=self.scales, proposals=self.proposals, samples=self.samples, ffn_dim=self.ffn_dim)


PRESETS = variants(FasterRCNNOptions(), published(0.02), scales=3, proposals=150, samples=64, ffn_dim=512)


@dataclass(frozen=True)
class RegionOutput:
    """Predictions of the second stage for the regions of B images.

    Attributes:
        extents: (height, width) of each image without padding.
        columns: [regions of all images, 1 + C], the first for background; None in training, which gives losses instead.
        offsets: [regions of all images, 4 * (1 + C)], a box per class.
        regions: [regions of the image, 4] per image, xyxy in pixels of the input.
        losses: torchvision's, in training.
    """

    extents: list[tuple[int, int]]
    columns: Tensor | None = None
    offsets: Tensor | None = None
    regions: tuple[Tensor, ...] = ()
    losses: dict[str, Tensor] | None = None

    @property
    def logits(self) -> Tensor:
        """[regions of all images, C], a view."""
        assert self.columns is not None, "in training there are losses instead"
        return self.columns[:, 1:]


class ExactRPNHead(RPNHead):
    """Its outputs are float32 at least, also under autocast: boxes are decoded from them for NMS."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        objectness, offsets = super().forward(x)
        return list(at_least_float32(*objectness)), list(at_least_float32(*offsets))


class ExactPredictor(FastRCNNPredictor):
    """Its outputs are float32 at least, also under autocast."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return at_least_float32(*super().forward(x))


class FasterRCNN(Baseline):
    """torchvision's, on a pyramid whose coarsest level has every second cell of the one before."""

    def __init__(self, classes: int, backbone: Backbone, options: FasterRCNNOptions):
        super().__init__(backbone, options, LastLevelMaxPool(), 1, AnchorGrid(per_stride=8, scales=options.scales))
        o, anchors = options, self.anchors()
        pool = MultiScaleRoIAlign([str(i) for i in range(len(backbone.strides))], output_size=7, sampling_ratio=2)
        # torchvision guesses these from the first batch, and its padding would mislead it
        pool.scales = [1 / stride for stride in backbone.strides]
        pool.map_levels = LevelMapper(*((stride.bit_length() - 1) for stride in (backbone.strides[0], backbone.strides[-1])))
        self.net = detection.FasterRCNN(
            Channels(o.hidden_dim),
            rpn_anchor_generator=anchors,
            rpn_head=ExactRPNHead(o.hidden_dim, anchors.num_anchors_per_location()[0]),
            rpn_post_nms_top_n_train=2 * o.proposals,
            rpn_post_nms_top_n_test=o.proposals,
            box_roi_pool=pool,
            box_head=TwoMLPHead(o.hidden_dim * 7 * 7, o.ffn_dim),
            box_predictor=ExactPredictor(o.ffn_dim, 1 + classes),
            box_score_thresh=o.score,
            box_batch_size_per_image=o.samples,
        )

    @property
    def heads(self) -> RoIHeads:
        """The second stage."""
        return cast(RoIHeads, self.net.roi_heads)

    def set_anchors(self, anchors: GridAnchors) -> None:
        self.net.rpn.anchor_generator = anchors

    def forward(
        self, images: Tensor, mask: Tensor | None = None, *, targets: list[dict] | None = None, last_only: bool = False
    ) -> RegionOutput:
        """See ``Model.forward``. In training, targets are needed to sample regions, and the output holds the losses."""
        if self.training and targets is None:
            raise UserError("faster-rcnn needs targets in training mode, to sample regions by them; call model.eval() for predictions")
        sizes, rpn, heads = extents(images, mask), self.net.rpn, self.heads
        converted = in_pixels(targets, sizes, images, first_label=1) if self.training and targets is not None else None
        maps = OrderedDict((str(i), features) for i, features in enumerate(self.levels(images, sizes)))
        regions, losses = rpn(ImageList(images, sizes), maps, converted)
        exact = OrderedDict((name, at_least_float32(features)[0]) for name, features in maps.items())
        if self.training:
            return RegionOutput(sizes, losses=losses | heads(exact, regions, sizes, converted)[1])
        columns, offsets = heads.box_predictor(heads.box_head(heads.box_roi_pool(exact, regions, sizes)))
        return RegionOutput(sizes, columns, offsets, tuple(regions))

    def loss(self, out: RegionOutput, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Model.loss``; of a forward pass in training mode with the same targets. ``proposals.*`` are the first stage's."""
        if out.losses is None:
            raise UserError("faster-rcnn has a loss in training mode only: call model.train(), and give targets to the forward pass")
        named = {"class": "loss_classifier", "l1": "loss_box_reg", "proposals.class": "loss_objectness", "proposals.l1": "loss_rpn_box_reg"}
        return summed({name: out.losses[theirs] for name, theirs in named.items()})

    def detections(self, out: RegionOutput, count: int, one_label: bool, nms: float) -> list[dict]:
        if out.columns is None:
            raise UserError("faster-rcnn predicts in evaluation mode only: call model.eval() before the forward pass")
        columns, heads = out.columns, self.heads
        if one_label:
            # the best class keeps its probability, and background gets that of the others
            best, label = columns.softmax(-1)[:, 1:].max(-1)
            columns = torch.full_like(columns, -torch.inf).scatter(1, 1 + label[:, None], best.log()[:, None])
            columns[:, 0] = (-best).log1p()
        heads.nms_thresh, heads.detections_per_img = nms, count
        boxes, scores, labels = heads.postprocess_detections(columns, out.offsets, list(out.regions), out.extents)
        return [{"scores": s, "labels": c - 1, "boxes": b} for s, c, b in zip(scores, labels, boxes, strict=True)]


def build(classes: int, options: FasterRCNNOptions, weights: BackboneWeights | None) -> FasterRCNN:
    backbone = Backbone(options.backbone, options.maps, weights, options=options.backbone_options)
    return FasterRCNN(classes, backbone, options)
