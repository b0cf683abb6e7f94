"""What the baselines share: the family's backbone, torchvision's feature pyramid on it, and the family's inputs and outputs."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from boxquery.errors import UserError
from boxquery.models.baselines.anchors import RATIOS, GridAnchors, default_sizes, measured_ratios, measured_sizes
from boxquery.models.interface import Model
from boxquery.models.options import check_least
from boxquery.models.recipes import NARROW_RESNET10, NARROW_RESNET18, SMALL_DATA, TINY_DATA, Preset, Recipe, narrow
from boxquery.parts.backbone import Backbone
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.memory import extent


@dataclass(frozen=True)
class BaselineOptions:
    """torchvision's values for a ResNet-50.

    Attributes:
        backbone: any timm feature extractor.
        backbone_options: keyword arguments of that timm model (narrower channels, ...).
        maps: number of the backbone's last maps that the pyramid is built on.
        hidden_dim: channels of the pyramid and of the heads on it.
        anchor_sizes: pixels of the input, square root of the area, a list per level of the pyramid; []: measured on the training
            objects or, in a model made without data, torchvision's, scaled to the strides.
        anchor_ratios: height over width, for every size; []: in the same way.
        nms: IoU threshold of class-wise NMS; 1 disables it.
        score: minimum score of a detection.
        detections: maximum number per image.
    """

    backbone: str = "resnet50"
    backbone_options: dict[str, Any] = field(default_factory=dict)
    maps: int = 3
    hidden_dim: int = 256
    anchor_sizes: list[list[float]] = field(default_factory=list)
    anchor_ratios: list[float] = field(default_factory=list)
    nms: float = 0.5
    score: float = 0.05
    detections: int = 100

    def check(self) -> None:
        """Raise ``UserError`` for values that no model can have."""
        check_least(1, maps=self.maps, hidden_dim=self.hidden_dim, detections=self.detections)
        if not 0 < self.nms <= 1:
            raise UserError(f"nms={self.nms}: must be an IoU above 0 and at most 1, which keeps all")
        if not 0 <= self.score < 1:
            raise UserError(f"score={self.score}: must be at least 0 and below 1")
        for name, levels in (("anchor_sizes", self.anchor_sizes), ("anchor_ratios", [self.anchor_ratios] if self.anchor_ratios else [])):
            if not (isinstance(levels, list) and all(isinstance(level, list) and level and all(map(_positive, level)) for level in levels)):
                raise UserError(
                    f"{name}={getattr(self, name)!r}: must be {'a list per level of ' * (name == 'anchor_sizes')}positive numbers"
                )
        if len({len(level) for level in self.anchor_sizes}) > 1:
            raise UserError(f"anchor_sizes={self.anchor_sizes}: every level must have equally many, since all share one head")


def _positive(number: Any) -> bool:
    return isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < float("inf")


def variants(options: BaselineOptions, recipe: Recipe, **own: Any) -> dict[str, Preset]:
    """torchvision's size, and the family's two small ones: same backbones, images and batches, three maps, and the model's ``own`` options.

    Scores are low early in training; the small sizes keep detections from 0.01, so that the threshold does not make AP zero.
    """
    width: dict[str, Any] = {"maps": 3, "hidden_dim": 128, "score": 0.01}
    small = replace(options, **{**width, **own})
    return {
        "paper": Preset(options, recipe),
        "small": narrow(small, replace(SMALL_DATA, query_lr_factor=1.0), **NARROW_RESNET18),
        "tiny": narrow(small, replace(TINY_DATA, query_lr_factor=1.0), **NARROW_RESNET10),
    }


def published(rate: float) -> Recipe:
    """How torchvision trains them: stochastic gradient descent, 26 epochs, a short warm-up; ``rate`` is for its batch of 16.

    Here a batch is 2, and the rate an eighth. Of its two drops of the rate only the second, after 22 epochs, is left; augmentation is the
    family's, so that models are compared.
    """
    return Recipe(epochs=26, optimizer="sgd", lr=rate / 8, backbone_lr=rate / 8, decay_at=22 / 26, warmup=0.005, clip=0.0)


class Channels(nn.Module):
    """The number of channels, all that torchvision's detectors use of their backbone, which here is never called."""

    def __init__(self, channels: int):
        super().__init__()
        self.out_channels = channels


@dataclass(frozen=True)
class AnchorGrid:
    """A detector's anchors: default sizes start at ``per_stride`` strides, ``scales`` of them per octave."""

    per_stride: float
    scales: int
    ratios: tuple[float, ...] = RATIOS
    measured: bool = True


class Baseline(Model):
    """The family's backbone, with torchvision's pyramid, heads, matching, losses and post-processing.

    Its own transform (resizing, normalising, padding) is never called: inputs are the family's, and the mask gives the extent of each
    image, to which torchvision clips boxes. Pyramid and heads get each image without its padding, images of one extent together: norms
    of whole maps, as FCOS has, would include it. Only the backbone sees across the edge, as in the family.

    Args:
        backbone: whose last maps the pyramid is built on.
        top: makes the ``above`` levels above the last map.
    """

    has_queries: ClassVar[bool] = False

    def __init__(self, backbone: Backbone, options: BaselineOptions, top: ExtraFPNBlock, above: int, grid: AnchorGrid):
        super().__init__()
        self.backbone, self.options, self.grid = backbone, options, grid
        self.pyramid = FeaturePyramidNetwork(backbone.channels, options.hidden_dim, top)
        self.strides = [*backbone.strides, *(backbone.strides[-1] * 2 ** (i + 1) for i in range(above))]
        self.config = {}
        self.num_queries_per_layer = (options.detections,)

    def anchors(self) -> GridAnchors:
        """Of the options, or the defaults."""
        o, default = self.options, default_sizes(self.strides, self.grid.per_stride, self.grid.scales)
        if o.anchor_sizes and len(o.anchor_sizes) != len(self.strides):
            raise UserError(f"anchor_sizes: {len(o.anchor_sizes)} lists for {len(self.strides)} levels, of strides {self.strides}")
        return GridAnchors(o.anchor_sizes or default, o.anchor_ratios or self.grid.ratios, self.strides)

    @abstractmethod
    def set_anchors(self, anchors: GridAnchors) -> None:
        """Replace them by others, equally many per cell."""

    def fit_to_data(self, sizes: np.ndarray, shares: np.ndarray) -> dict[str, Any]:
        """Anchors from the objects (see ``measured_sizes``), unless the options give them."""
        o, grid = self.options, self.grid
        measured: dict[str, Any] = {}
        if not grid.measured:
            return measured
        if not o.anchor_sizes:
            measured["anchor_sizes"] = measured_sizes(sizes, self.strides, grid.per_stride, grid.scales)
        if not o.anchor_ratios:
            measured["anchor_ratios"] = measured_ratios(sizes)
        self.options = replace(o, **measured)
        self.config["options"] = asdict(self.options)
        self.set_anchors(self.anchors())
        return measured

    def levels(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """[B, 3, H, W] and the images' extents -> the pyramid's maps [B, hidden_dim, h, w], the finest first; zero under padding."""
        maps = self.backbone(images)
        cells = [maps[0].shape[-2:]]
        for _ in self.strides[1:]:
            cells.append(torch.Size(-(-n // 2) for n in cells[-1]))
        levels = [images.new_zeros(len(images), self.options.hidden_dim, *shape) for shape in cells]
        for own, members in self.by_extent(maps, sizes):
            parts = self.pyramid(OrderedDict((str(i), features) for i, features in enumerate(own)))
            levels = [_written(into, members, part) for into, part in zip(levels, parts.values(), strict=True)]
        return levels

    def by_extent(self, maps: list[Tensor], sizes: Sequence[tuple[int, int]]) -> Iterator[tuple[list[Tensor], list[int]]]:
        """For images of one extent at a time: their maps without padding, and their indices in the batch."""
        for height, width in dict.fromkeys(sizes):
            members = [i for i, size in enumerate(sizes) if size == (height, width)]
            valid = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
            yield [features[members, :, :h, :w] for features, (h, w) in zip(maps, valid, strict=False)], members

    def padding(self, maps: list[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Per level [B, h, w] bool, True where the cell's pixel is padding."""
        height, width = torch.tensor(sizes, device=maps[0].device).unbind(1)
        masks = []
        for features, stride in zip(maps, self.strides, strict=True):
            rows, columns = (torch.arange(n, device=features.device) * stride for n in features.shape[-2:])
            masks.append((rows >= height[:, None])[:, :, None] | (columns >= width[:, None])[:, None, :])
        return masks

    def postprocess(
        self, out: Any, sizes: list[tuple[int, int]], *, top_k: int | None = None, one_label: bool = False, nms: float | None = None
    ) -> list[dict]:
        """See ``Model.postprocess``; boxes are clipped to the image. ``nms`` replaces the option of that name."""
        o = self.options
        detections = self.detections(out, o.detections if top_k is None else top_k, one_label, o.nms if nms is None else nms)
        for image, (height, width), (rows, columns) in zip(detections, sizes, out.extents, strict=True):
            image["boxes"] = image["boxes"] * image["boxes"].new_tensor([width / columns, height / rows] * 2)
        return detections

    @abstractmethod
    def detections(self, out: Any, count: int, one_label: bool, nms: float) -> list[dict]:
        """``scores``, ``labels`` 0..C-1 and ``boxes`` xyxy in pixels of the input, best first."""


def _written(into: Tensor, members: list[int], part: Tensor) -> Tensor:
    """``part`` [members, C, h, w] written into the top left corners of its images; itself where it is the whole batch."""
    if part.shape == into.shape:
        return part
    into = into.to(part.dtype)
    into[members, :, : part.shape[-2], : part.shape[-1]] = part
    return into


def extents(images: Tensor, mask: Tensor | None) -> list[tuple[int, int]]:
    """(height, width) in pixels of every image of the batch without its padding."""
    if mask is None:
        return [(images.shape[-2], images.shape[-1])] * len(images)
    columns, rows = extent(mask)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def in_pixels(targets: Sequence[dict], sizes: Sequence[tuple[int, int]], like: Tensor, first_label: int = 0) -> list[dict]:
    """Targets as torchvision takes them: boxes xyxy in pixels of the input, at least float32; labels counted from ``first_label``."""
    if len(targets) != len(sizes):
        raise UserError(f"{len(targets)} targets for a batch of {len(sizes)} images: give one dictionary per image, empty ones too")
    dtype = torch.promote_types(like.dtype, torch.float32)
    converted = []
    for target, (height, width) in zip(targets, sizes, strict=True):
        scale = torch.tensor([width, height, width, height], dtype=dtype, device=like.device)
        boxes = cxcywh_to_xyxy(target["boxes"].to(like.device, dtype)) * scale
        converted.append({"boxes": boxes, "labels": target["labels"].to(like.device) + first_label})
    return converted


def summed(terms: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The unweighted sum of torchvision's terms. Raises ``UserError`` where it is not finite."""
    total = torch.stack(list(terms.values())).sum()
    if not bool(total.isfinite()):
        values = ", ".join(f"{name} {value.item():.3g}" for name, value in terms.items())
        raise UserError(f"the loss is not finite ({values}): so are the model's predictions (learning rate too high, or broken weights)")
    return total, terms
