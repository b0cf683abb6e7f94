"""What RT-DETR and the papers that build on it have in common: options, sizes and their recipes, and all parts up to the decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from boxquery.augment import Augment
from boxquery.errors import UserError
from boxquery.matching.classification import Varifocal
from boxquery.matching.criterion import SetCriterion
from boxquery.matching.groups import Noise
from boxquery.models.base import DetectionTransformer
from boxquery.models.builders import Image, decoder, denoising, encoder_layers, hybrid, image, look_forward_twice
from boxquery.models.options import Options, check_least
from boxquery.models.recipes import Preset, Recipe, presets
from boxquery.parts.attention.dense import SelfAttention
from boxquery.parts.box_locate import PlainBoxLocate
from boxquery.parts.heads import Head
from boxquery.parts.hybrid import ConvBlock, HybridEncoder
from boxquery.parts.layers import reset_transformer
from boxquery.parts.positions import CellSinePosition
from boxquery.parts.queries import ProposalQueries
from boxquery.parts.weights import BackboneWeights

EPS = 1e-5
#: positives move by less than their half sides, negatives by up to twice that; empty slots have no class, no size, and are background
NOISE = Noise(box=1.0, eps=EPS, slots=math.log(EPS), background=True)


@dataclass(frozen=True)
class RealTimeOptions(Options):
    """``levels``: the backbone's last maps (3: strides 8, 16, 32). ``encoder_dim``, ``encoder_ffn_dim``: the encoder's own widths; 0: those
    of the decoder.
    """

    query_positions = ("paper", "sine-mlp", "sine", "none")
    backbone: str = "resnet50d"
    num_queries: int | list[int] = 300
    encoder_layers: int = 1
    ffn_dim: int = 1024
    dropout: float = 0.0
    matching: str = "denoising"
    denoising: int = 200
    levels: int = 3
    encoder_dim: int = 0
    encoder_ffn_dim: int = 0

    @property
    def regions(self) -> RealTimeOptions:
        """The options of what comes before the decoder."""
        return replace(self, hidden_dim=self.encoder_dim or self.hidden_dim, ffn_dim=self.encoder_ffn_dim or self.ffn_dim)

    def check(self) -> None:
        if self.levels < 2:
            raise UserError(f"levels={self.levels}: the encoder fuses levels, from levels=2 on")
        check_least(0, encoder_dim=self.encoder_dim, encoder_ffn_dim=self.encoder_ffn_dim)
        if self.dilation:
            raise UserError("dilation=True: the encoder fuses levels of halving size, from levels=2 on; needs dilation=False")
        super().check()
        if self.encoder_dim % self.heads or self.encoder_dim % 4:
            raise UserError(f"encoder_dim={self.encoder_dim}: must be a multiple of 4 and of heads={self.heads}")


#: squares of 640 pixels in 0..1; the learning rate is constant. The authors also draw a size per batch and crop by IoU (docs/models).
RECIPE = Recipe(
    image_size=640,
    square=True,
    normalize=False,
    epochs=72,
    batch_size=4,
    decay_at=1.0,
    ema=0.9999,
    augment=Augment(scales=(1.0,), crop=0.8, colour=0.3, zoom_out=0.5, zoom_out_scales=(0.25, 1.0), plain_end=1 / 72),
)


def real_time_presets(options: Any, recipe: Recipe, published: Mapping[str, Preset], **own: Any) -> dict[str, Preset]:
    """``presets``; "small" and "tiny" have narrow fusions without batch norm, which learns slowly from few images (docs/LOG.md)."""
    narrow = {"dilation": False, "encoder_layers": 1, "heads": 4, "fusion_blocks": 1, "fusion_expansion": 0.5, "denoising": 60}
    return presets(options, recipe, dict(published), **{**narrow, "encoder": "hybrid", **own})


def resnets(options: Any, recipe: Recipe, **changes: dict[str, Any]) -> dict[str, Preset]:
    """The sizes r18, r34, r50m and r101 of RT-DETR, whose R50 is "paper".

    Args:
        changes: of the recipe, by size.
    """
    small = replace(options, fusion_expansion=0.5)
    basic = replace(small, backbone_options={"first_shortcut": True})
    sizes = {
        "r18": replace(basic, backbone="resnet18d", decoder_layers=3),
        "r34": replace(basic, backbone="resnet34d", decoder_layers=4),
        "r50m": replace(small, inference_layers=3),
        "r101": replace(options, backbone="resnet101d", encoder_dim=384, encoder_ffn_dim=2048),
    }
    return {name: Preset(sized, replace(recipe, **changes.get(name, {}))) for name, sized in sizes.items()}


def real_time_image(o: RealTimeOptions, weights: BackboneWeights | None) -> Image:
    """The backbone's last maps at the encoder's width."""
    regions = o.regions
    return image(regions, weights, CellSinePosition(regions.hidden_dim), o.levels, norm="batch" if o.encoder == "paper" else None)


def real_time_encoder(o: RealTimeOptions) -> HybridEncoder:
    """The hybrid encoder, and a projection to the decoder's width."""
    regions = o.regions
    layers = encoder_layers(regions, activation=nn.GELU)
    reset_transformer(*layers)

    def project() -> ConvBlock:
        block = ConvBlock(regions.hidden_dim, o.hidden_dim, 1, activation=nn.Identity)
        nn.init.xavier_uniform_(block.convolution.weight)
        return block

    return hybrid(regions, layers, published=o.encoder == "paper", project=project)


def real_time_queries(classes: int, o: RealTimeOptions, class_agnostic: bool = False) -> ProposalQueries:
    """The encoder's best proposals, whose tokens are the content."""
    noised = denoising(classes, o, noise=NOISE)
    head = Head(o.hidden_dim, 1 if class_agnostic else classes)
    return ProposalQueries(o.queries, o.hidden_dim, head, "tokens", class_agnostic=class_agnostic, learning="chosen", denoising=noised)


def real_time_detector(
    classes: int,
    o: RealTimeOptions,
    weights: BackboneWeights | None,
    cross_attn: Callable[[int], nn.Module],
    class_agnostic: bool = False,
) -> DetectionTransformer:
    """RT-DETR with the given cross-attention.

    Args:
        class_agnostic: proposals are of any class.
    """
    dim = o.hidden_dim
    locate = PlainBoxLocate(dim)
    layers = decoder(o, lambda: SelfAttention(dim, o.heads, o.dropout), cross_attn)
    reset_transformer(locate, *layers)
    return DetectionTransformer(
        image=real_time_image(o, weights),
        encoder=real_time_encoder(o),
        queries=real_time_queries(classes, o, class_agnostic),
        locate=locate,
        layers=layers,
        refine=look_forward_twice,
        heads=[Head(dim, classes, eps=EPS) for _ in layers],
        criterion=SetCriterion(Varifocal(), class_agnostic_proposals=class_agnostic),
        top_k=300,
    )
