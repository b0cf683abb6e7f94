"""What the models of scenes share: the images of all cameras in, 3-D boxes in the frame of the vehicle out; options and presets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from boxquery.boxes3d import widened
from boxquery.errors import UserError
from boxquery.matching.classification import Focal
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.perspective import PerspectiveLoss
from boxquery.models.base import QueryTransformer
from boxquery.models.options import Options, check_least
from boxquery.models.postprocess import ScenePostProcess
from boxquery.models.recipes import NARROW_RESNET10, NARROW_RESNET18, TINY_DATA, Preset, Recipe, narrow
from boxquery.parts.box_coder_3d import Box3DCoder, PolarBox3DCoder
from boxquery.parts.cameras import Cameras, limits
from boxquery.parts.heads import ClassTowerHead
from boxquery.parts.layers import Encoder
from boxquery.parts.memory import Memory
from boxquery.parts.output import Output
from boxquery.parts.perspective import PerspectiveHead, PerspectiveQueries

#: nuScenes' in DETR3D and PETR
AREA = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0)
#: options of images that scenes do not have, with the only value that they may have
ONLY: dict[str, Any] = {
    "encoder_layers": 0, "encoder": "paper", "encoder_ffn": "linear", "position": "paper", "query_position": "paper",
    "relative_bias": False,
}  # fmt: skip


@dataclass(frozen=True)
class SceneOptions(Options):
    """``levels``: maps of the image; the backbone's last, as a pyramid.
    ``area``: x, y, z at least and at most of the space that boxes are in, in metres; six numbers.
    ``two_stage``: queries start from boxes that the cells of the finest map propose; False: as published.
    """

    num_queries: int | list[int] = 900
    encoder_layers: int = 0
    levels: int = 1
    area: list[float] = field(default_factory=lambda: list(AREA))
    two_stage: bool = False

    def check(self) -> None:
        for name, only in ONLY.items():
            if (value := getattr(self, name)) != only:
                raise UserError(f"{name}={value!r}: models of several cameras have {name}={only!r} alone")
        super().check()
        if refused := self.strategies - {"group", "hybrid"}:
            raise UserError(f"matching={self.matching!r}: {min(refused)} needs boxes in an image; several cameras allow group and hybrid")
        if self.class_loss == "position":
            raise UserError("class_loss='position': depends on boxes in an image; several cameras allow focal, vfl and mal")
        if self.two_stage and (added := self.strategies & {"group", "hybrid"}):
            raise UserError(f"matching={self.matching!r}: {min(added)} has more learned queries; two_stage=True has proposals instead")
        check_least(1, levels=self.levels)
        numbers = [value for value in self.area if isinstance(value, (int, float))]
        if len(numbers) != 6 or len(self.area) != 6 or any(low >= high for low, high in zip(numbers[:3], numbers[3:], strict=True)):
            raise UserError(f"area={self.area!r}: must be x, y, z at least, and then x, y, z at most, in metres")


class SceneTransformer(QueryTransformer):
    """The same sentence about the images of all cameras: their maps become one memory, and queries are points in space.

    ``boxes`` of its output, [L, B, Q, 10], are codes in metres (``boxquery.parts.box_coder_3d``).
    """

    task = "boxes3d"
    postprocessing = ScenePostProcess
    postprocessor: ScenePostProcess

    def forward(
        self,
        images: Tensor,
        lidar2img: Tensor | None,
        *,
        targets: list[dict] | None = None,
        trace: bool | Literal["decoder"] = False,
        last_only: bool = False,
    ) -> Output:
        """images [B, V, 3, H, W] normalised floats, lidar2img [B, V, 4, 4] for their pixels -> ``Output``.

        Args:
            targets: per scene ``{"labels": int64 [N], "boxes": [N, 9]}``; only training-only query groups are made from them.
            trace, last_only: as ``DetectionTransformer`` has them.
        """
        return self.forward_transformer(self.embed_scene(images, lidar2img), targets=targets, trace=trace, last_only=last_only)

    def embed_scene(self, images: Tensor, lidar2img: Tensor | None) -> Memory:
        """The first half of ``forward``: the images of all cameras as tokens."""
        if images.dim() != 5 or lidar2img is None or lidar2img.shape != (*images.shape[:2], 4, 4):
            given = None if lidar2img is None else list(lidar2img.shape)
            raise UserError(f"images {list(images.shape)}, lidar2img {given}: must be [B, V, 3, H, W] and [B, V, 4, 4]")
        height, width = images.shape[-2:]
        return self.tokens(self.neck(self.backbone(images.flatten(0, 1))), Cameras(lidar2img, (height, width), self.area))

    @property
    def area(self) -> tuple[float, ...]:
        """x, y, z at least and at most of the space that boxes are in."""
        coder = self.criterion.coder
        assert isinstance(coder, Box3DCoder)
        return tuple(coder.area)

    def postprocess(
        self,
        out: Output,
        sizes: Sequence[tuple[int, int]] = (),
        *,
        top_k: int | None = None,
        one_label: bool = False,
        nms: float | None = None,
    ) -> list[dict]:
        """Per scene ``{"scores" [K], "labels" [K], "boxes" [K, 9]}``, best first, without those far outside the area.

        Args:
            sizes: not used: boxes are in metres.
            top_k: detections per scene; None: the paper's own number.
            one_label: only the best class of each query.
            nms: not possible; a ``UserError``.
        """
        if nms is not None:
            raise UserError(f"nms={nms}: 3-D boxes have no non-maximum suppression here; leave it out")
        kept = None if out.alive is None else out.alive[-1].nonzero()[:, 1].view(out.alive.shape[1], -1)
        scores, labels, boxes, _ = self.postprocessor(out.logits[-1], out.boxes[-1], kept, top_k=top_k, one_label=one_label)
        low, high = limits(widened(self.area), boxes)
        inside = ((boxes[..., :3] >= low) & (boxes[..., :3] <= high)).all(-1)
        columns = zip(scores, labels, boxes, inside, strict=True)
        return [{"scores": s[i], "labels": c[i], "boxes": b[i]} for s, c, b, i in columns]


def criterion(coder: Box3DCoder) -> SetCriterion:
    """Focal classes, and L1 on the code."""
    return SetCriterion(Focal(), l1=0.25, coder=coder, dense=PerspectiveLoss(coder))


def box_coder(o: SceneOptions) -> Box3DCoder:
    """As published, or from the proposals."""
    return PolarBox3DCoder(tuple(o.area)) if o.two_stage else Box3DCoder(tuple(o.area))


def head(o: SceneOptions, classes: int, coder: Box3DCoder) -> ClassTowerHead:
    """Of a decoder layer; with proposals its boxes begin where these are."""
    return ClassTowerHead(o.hidden_dim, classes, coder, zero_boxes=o.two_stage)


def proposals(o: SceneOptions, classes: int, *, cell_content: bool = True, norm: bool = False) -> PerspectiveQueries:
    """Queries at the best of what cells propose."""
    return PerspectiveQueries(o.queries, o.hidden_dim, PerspectiveHead(o.hidden_dim, classes, o.area), cell_content=cell_content, norm=norm)


def no_encoder() -> Encoder:
    """Regions stay as the neck has them."""
    return Encoder([])


#: as published for nuScenes: batches of eight scenes
RECIPE = Recipe(
    epochs=24, batch_size=1, lr=2e-4, backbone_lr=2e-5, weight_decay=0.01, decay="cosine", warmup=500 / (24 * 28130 / 8), clip=35.0
)

#: what "small" and "tiny" change, beside the backbone: queries start from what cells propose, and scores say how near a box is
SMALL_SCENES: dict[str, Any] = {
    "two_stage": True, "decoder_layers": 3, "hidden_dim": 128, "heads": 4, "ffn_dim": 256, "dropout": 0.0, "class_loss": "mal",
}  # fmt: skip

#: of "small" and "tiny": nothing is thrown away where maps shrink, so that what is left of a place in them is finer than a cell; blocks
#: learn from the first step on; norms are of each image alone, since a step has those of one scene, whose statistics hold for no other
FINE: dict[str, Any] = {"replace_stem_pool": True, "avg_down": True, "zero_init_last": False, "norm_layer": "groupnorm1"}

#: a stem of half the width of "small", and a last stage no wider than the one before
TINY_BACKBONE: dict[str, Any] = {**NARROW_RESNET10, "channels": (32, 64, 128, 128), "stem_width": 8}


def presets(options: SceneOptions, recipe: Recipe, **own: Any) -> dict[str, Preset]:
    """A paper's sizes: "paper", and "small" and "tiny", which are ours.

    Args:
        own: options of "small" and "tiny" beside ``SMALL_SCENES``.
    """
    small = replace(options, **{**SMALL_SCENES, **own})
    ours = replace(TINY_DATA, image_size=96, batch_size=1, lr=5e-4, backbone_lr=3e-3, clip=1.0, ema=0.998)
    return {
        "paper": Preset(options, recipe),
        "small": narrow(replace(small, num_queries=100), replace(ours, image_size=160), **NARROW_RESNET18, **FINE),
        "tiny": narrow(replace(small, num_queries=50, decoder_layers=2, hidden_dim=96), ours, **TINY_BACKBONE, **FINE),
    }
