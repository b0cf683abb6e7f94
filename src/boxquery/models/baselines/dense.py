"""Detectors that answer at every cell of the pyramid at once: RetinaNet and FCOS."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from boxquery.models.baselines.anchors import GridAnchors
from boxquery.models.baselines.base import Grid, Reference, ReferenceOptions, Width, extents, in_pixels, summed
from boxquery.parts.backbone import Backbone
from boxquery.parts.boxes import at_least_float32


@dataclass(frozen=True)
class DenseOutput:
    """What the heads say of all N anchors of the batch's B images.

    Attributes:
        said: torchvision's names of its heads' outputs -> [B, N, numbers], float32 at least; ``cls_logits`` has the classes.
        anchors: [N, 4] for each image, xyxy in pixels of the input.
        counts: anchors of each level.
        extents: (height, width) of each image without padding.
        padding: [B, N], True where the anchor's cell is none of the image: torchvision teaches it that there is nothing, here it also
            answers nothing.
    """

    said: dict[str, Tensor]
    anchors: list[Tensor]
    counts: list[int]
    extents: list[tuple[int, int]]
    padding: Tensor

    @property
    def logits(self) -> Tensor:
        """[B, N, C]."""
        return self.said["cls_logits"]


class DenseReference(Reference):
    """RetinaNet or FCOS, ``net``, on a pyramid with two levels above the backbone's last map, made by strided convolutions."""

    def __init__(self, backbone: Backbone, options: ReferenceOptions, grid: Grid):
        super().__init__(backbone, options, LastLevelP6P7(options.hidden_dim, options.hidden_dim), 2, grid)
        self.net = self.make(Width(options.hidden_dim), self.anchors())

    @abstractmethod
    def make(self, width: Width, anchors: GridAnchors) -> RetinaNet | FCOS:
        """torchvision's detector."""

    @abstractmethod
    def terms(self, out: DenseOutput, wanted: list[dict]) -> dict[str, Tensor]:
        """torchvision's losses, named as ours are."""

    def set_anchors(self, anchors: GridAnchors) -> None:
        self.net.anchor_generator = anchors

    def forward(
        self, images: Tensor, mask: Tensor | None = None, *, targets: list[dict] | None = None, last_only: bool = False
    ) -> DenseOutput:
        """See ``Model.forward``; there is one layer, and targets change nothing."""
        sizes = extents(images, mask)
        maps = self.levels(images, sizes)
        anchors = self.net.anchor_generator(ImageList(images, sizes), maps)
        each = self.net.anchor_generator.num_anchors_per_location()[0]
        padding = torch.cat([under.flatten(1).repeat_interleave(each, 1) for under in self.padding(maps, sizes)], 1)
        said: dict[str, Tensor] = {}
        for own, members in self.by_extent(maps, sizes):
            valid = torch.zeros_like(padding)
            valid[members] = ~padding[members]
            for name, values in self.net.head(own).items():
                (values,) = at_least_float32(values)
                into = said.get(name, values.new_zeros(*padding.shape, values.shape[-1]))
                said[name] = into.masked_scatter(valid[..., None], values)
        return DenseOutput(said, anchors, [m.shape[-2] * m.shape[-1] * each for m in maps], sizes, padding)

    def loss(self, out: DenseOutput, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Model.loss``; box terms are torchvision's own, of encoded boxes where it encodes them."""
        with torch.autocast(out.logits.device.type, enabled=False):
            return summed(self.terms(out, in_pixels(targets, out.extents, out.logits)))

    def detections(self, out: DenseOutput, count: int, one_label: bool, nms: float) -> list[dict]:
        silent = out.padding[..., None].expand_as(out.logits)
        if one_label:
            silent = silent | torch.ones_like(silent).scatter(-1, out.logits.argmax(-1, keepdim=True), False)
        said = out.said | {"cls_logits": out.logits.masked_fill(silent, -torch.inf)}
        self.net.nms_thresh, self.net.detections_per_img = nms, count
        levels = {name: list(values.split(out.counts, 1)) for name, values in said.items()}
        return self.net.postprocess_detections(levels, [list(a.split(out.counts)) for a in out.anchors], out.extents)
