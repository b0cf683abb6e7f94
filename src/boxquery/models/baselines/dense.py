"""Detectors that predict at every cell of the pyramid: RetinaNet and FCOS."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from boxquery.models.baselines.anchors import GridAnchors
from boxquery.models.baselines.base import AnchorGrid, Baseline, BaselineOptions, Channels, extents, in_pixels, summed
from boxquery.parts.backbone import Backbone
from boxquery.parts.boxes import at_least_float32


@dataclass(frozen=True)
class DenseOutput:
    """Predictions for all N anchors of the batch's B images.

    Attributes:
        outputs: torchvision's names of its heads' outputs -> [B, N, numbers], float32 at least; ``cls_logits`` has the classes.
        anchors: [N, 4] for each image, xyxy in pixels of the input.
        counts: anchors of each level.
        extents: (height, width) of each image without padding.
        padding: [B, N], True where the anchor's cell is padding: torchvision trains it as background, here it also has no detections.
    """

    outputs: dict[str, Tensor]
    anchors: list[Tensor]
    counts: list[int]
    extents: list[tuple[int, int]]
    padding: Tensor

    @property
    def logits(self) -> Tensor:
        """[B, N, C]."""
        return self.outputs["cls_logits"]


class DenseBaseline(Baseline):
    """RetinaNet or FCOS, ``net``, on a pyramid with two levels above the backbone's last map, made by strided convolutions."""

    def __init__(self, backbone: Backbone, options: BaselineOptions, grid: AnchorGrid):
        super().__init__(backbone, options, LastLevelP6P7(options.hidden_dim, options.hidden_dim), 2, grid)
        self.net = self.build_net(Channels(options.hidden_dim), self.anchors())

    @abstractmethod
    def build_net(self, channels: Channels, anchors: GridAnchors) -> RetinaNet | FCOS:
        """torchvision's detector."""

    @abstractmethod
    def terms(self, out: DenseOutput, targets: list[dict]) -> dict[str, Tensor]:
        """torchvision's losses under the family's names."""

    def set_anchors(self, anchors: GridAnchors) -> None:
        self.net.anchor_generator = anchors

    def forward(
        self, images: Tensor, mask: Tensor | None = None, *, targets: list[dict] | None = None, last_only: bool = False
    ) -> DenseOutput:
        """See ``Model.forward``; there is one layer, and targets are not used."""
        sizes = extents(images, mask)
        maps = self.levels(images, sizes)
        anchors = self.net.anchor_generator(ImageList(images, sizes), maps)
        per_cell = self.net.anchor_generator.num_anchors_per_location()[0]
        padding = torch.cat([under.flatten(1).repeat_interleave(per_cell, 1) for under in self.padding(maps, sizes)], 1)
        outputs: dict[str, Tensor] = {}
        for own, members in self.by_extent(maps, sizes):
            valid = torch.zeros_like(padding)
            valid[members] = ~padding[members]
            for name, values in self.net.head(own).items():
                (values,) = at_least_float32(values)
                into = outputs.get(name, values.new_zeros(*padding.shape, values.shape[-1]))
                outputs[name] = into.masked_scatter(valid[..., None], values)
        return DenseOutput(outputs, anchors, [m.shape[-2] * m.shape[-1] * per_cell for m in maps], sizes, padding)

    def loss(self, out: DenseOutput, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Model.loss``; box terms are torchvision's own, of encoded boxes where it encodes them."""
        with torch.autocast(out.logits.device.type, enabled=False):
            return summed(self.terms(out, in_pixels(targets, out.extents, out.logits)))

    def detections(self, out: DenseOutput, count: int, one_label: bool, nms: float) -> list[dict]:
        excluded = out.padding[..., None].expand_as(out.logits)
        if one_label:
            excluded = excluded | torch.ones_like(excluded).scatter(-1, out.logits.argmax(-1, keepdim=True), False)
        outputs = out.outputs | {"cls_logits": out.logits.masked_fill(excluded, -torch.inf)}
        self.net.nms_thresh, self.net.detections_per_img = nms, count
        levels = {name: list(values.split(out.counts, 1)) for name, values in outputs.items()}
        return self.net.postprocess_detections(levels, [list(a.split(out.counts)) for a in out.anchors], out.extents)
