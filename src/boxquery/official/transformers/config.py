"""``config.json`` of a model of transformers: values by their names there, and the options that follow from them."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from boxquery.errors import UserError


class Config:
    """The values of a configuration, asked for by name.

    What a file lacks, or has as ``null``, is the library's own default, which those who ask give: older files have fewer names.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = values, where

    def get(self, name: str, default: Any) -> Any:
        value = self.values.get(name)
        return default if value is None else value

    def whole(self, name: str, default: int, least: int = 1) -> int:
        """A whole number. Raises ``UserError`` for another value, or one below ``least``."""
        return self._whole(name, self.get(name, default), least)

    def wholes(self, name: str, default: Sequence[int]) -> tuple[int, ...]:
        """As many positive whole numbers as ``default`` has. Raises ``UserError`` for another value."""
        if not isinstance(found := self.get(name, default), Sequence) or isinstance(found, str) or len(found) != len(default):
            raise UserError(f"{self.where}: {name}={found!r}: must be {len(default)} whole numbers")
        return tuple(self._whole(f"{name}[{i}]", value, 1) for i, value in enumerate(found))

    def _whole(self, name: str, value: Any, least: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{self.where}: {name}={value!r}: must be a whole number")
        if value < least:
            raise UserError(f"{self.where}: {name}={value}: must be at least {least}")
        return value

    def number(self, name: str, default: float) -> float:
        """A number. Raises ``UserError`` for another value, NaN or one that is too large for a float."""
        value = self.get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            raise UserError(f"{self.where}: {name}={value!r}: must be a finite number")
        return float(value)

    def same(self, *names: str, default: Any) -> Any:
        """One value that has several names there, as of encoder and decoder. Raises ``UserError`` where they differ."""
        found = {name: self.get(name, default) for name in names}
        if any(value != found[names[0]] for value in found.values()):
            words = ", ".join(f"{name}={value!r}" for name, value in found.items())
            raise UserError(f"{self.where}: {words}: only equal ones are supported")
        return found[names[0]]

    def require(self, **only: Any) -> None:
        """Raise ``UserError`` for a value that differs from the only one that our model has; a name that is missing has it."""
        for name, value in only.items():
            if (found := self.get(name, value)) != value:
                raise UserError(f"{self.where}: {name}={found!r}: only {value!r} is supported")

    def part(self, name: str) -> Config:
        """A configuration inside this one, empty where there is none. Raises ``UserError`` where it is none."""
        if not isinstance(inner := self.get(name, {}), Mapping):
            raise UserError(f"{self.where}: {name}={inner!r}: should be an object")
        return Config(inner, f"{self.where}: {name}")


def sizes(config: Config, *, ffn_dim: int = 2048, width: str = "d_model", activation: str = "relu") -> dict[str, Any]:
    """The options that encoder and decoder of all kinds before RT-DETR have."""
    config.require(activation_function=activation)
    return {
        "encoder_layers": config.whole("encoder_layers", 6, least=0),
        "decoder_layers": config.whole("decoder_layers", 6),
        "hidden_dim": config.whole(width, 256),
        "heads": config.same("encoder_attention_heads", "decoder_attention_heads", default=8),
        "ffn_dim": config.same("encoder_ffn_dim", "decoder_ffn_dim", default=ffn_dim),
        "dropout": config.number("dropout", 0.1),
    }


def real_time_sizes(config: Config) -> dict[str, Any]:
    """The options of RT-DETR and what builds on it, with those of the backbone."""
    levels, width, noised = (
        config.whole("num_feature_levels", 3), config.whole("d_model", 256), config.whole("num_denoising", 100, least=0)
    )  # fmt: skip
    config.require(
        activation_function="silu", encoder_activation_function="gelu", decoder_activation_function="relu", normalize_before=False,
        with_box_refine=True, learn_initial_query=False, positional_encoding_temperature=10000, layer_norm_eps=1e-5, batch_norm_eps=1e-5,
        eval_size=None, encode_proj_layers=[levels - 1], feat_strides=[8, 16, 32][-levels:],
    )  # fmt: skip
    if noised:
        config.require(label_noise_ratio=0.5, box_noise_scale=1.0)
    own, ffn = config.whole("encoder_hidden_dim", 256), config.whole("encoder_ffn_dim", 1024)
    ffn_dim = config.whole("decoder_ffn_dim", 1024)
    return {
        **backbone(config),
        "levels": levels,
        "num_queries": config.whole("num_queries", 300),
        "encoder_layers": config.whole("encoder_layers", 1, least=0),
        "decoder_layers": config.whole("decoder_layers", 6),
        "heads": config.same("encoder_attention_heads", "decoder_attention_heads", default=8),
        "hidden_dim": width,
        "ffn_dim": ffn_dim,
        "encoder_dim": 0 if own == width else own,
        "encoder_ffn_dim": 0 if ffn == ffn_dim else ffn,
        "fusion_expansion": int(own * config.number("hidden_expansion", 1.0)) / own,
        "dropout": config.number("dropout", 0.0),
        **({"denoising": 2 * noised} if noised else {"matching": "one-to-one"}),
    }


def position(config: Config) -> str:
    """What the image's cells are marked with; the sine is each paper's own."""
    kind = config.get("position_embedding_type", "sine")
    return "paper" if kind == "sine" else kind


def backbone(config: Config) -> dict[str, Any]:
    """The options of a backbone, which a configuration names in one of three ways. Raises ``UserError`` for one that is not read.

    - ``backbone_config``, of a kind in ``BACKBONES``;
    - ``backbone``, a name of timm's, as files of transformers before 5.0 have it;
    - neither: ResNet-50.
    """
    config.require(num_channels=3)
    inner = config.part("backbone_config")
    if inner.values:
        kind = inner.get("model_type", None)
        if kind not in BACKBONES:
            raise UserError(f"{inner.where}: a backbone of the kind {kind!r} is not read; known: {', '.join(BACKBONES)}")
        return BACKBONES[kind](inner)
    name = config.get("backbone", "resnet50")
    if (theirs := re.fullmatch(r"microsoft/resnet-(18|26|34|50|101|152)", str(name))) is not None:  # by its place on the hub
        return {"backbone": f"resnet{theirs[1]}"}
    stride = config.part("backbone_kwargs").get("output_stride", 16 if config.get("dilation", False) else None)
    return _timm(Config({"backbone": name, "output_stride": stride}, config.where))


def _timm(config: Config) -> dict[str, Any]:
    if (stride := config.get("output_stride", 32)) not in (16, 32):
        raise UserError(f"{config.where}: output_stride={stride!r}: only 32, and 16 (dilation), are supported")
    return {"backbone": config.get("backbone", "resnet50"), "dilation": stride == 16}


def _resnet(config: Config) -> dict[str, Any]:
    """transformers' own ResNet: timm's of the same size."""
    config.require(hidden_act="relu", embedding_size=64, downsample_in_first_stage=False, downsample_in_bottleneck=False, num_channels=3)
    kind = config.get("layer_type", "bottleneck")
    try:
        expansion = {"basic": 1, "bottleneck": 4}[kind]
    except (KeyError, TypeError) as error:
        raise UserError(f"{config.where}: layer_type={kind!r}: only 'basic' and 'bottleneck' are supported") from error
    layers, widths = config.wholes("depths", (3, 4, 6, 3)), config.wholes("hidden_sizes", (256, 512, 1024, 2048))
    if any(width % expansion for width in widths):
        raise UserError(f"{config.where}: hidden_sizes={list(widths)}: must be multiples of {expansion} where blocks are {kind}")
    channels = tuple(width // expansion for width in widths)
    usual: dict[str, dict[tuple[int, ...], int]] = {
        "basic": {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}, "bottleneck": {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
    }  # fmt: skip
    if layers in usual[kind] and channels == (64, 128, 256, 512):
        return {"backbone": f"resnet{usual[kind][layers]}"}
    return {"backbone": "resnet18" if kind == "basic" else "resnet50", "backbone_options": {"layers": layers, "channels": channels}}


def _resnet_vd(config: Config) -> dict[str, Any]:
    """RT-DETR's ResNet: timm's with deep stem and pooled shortcuts; of basic blocks the first one has a shortcut, too."""
    made = _resnet(config)
    made["backbone"] += "d"
    if config.get("layer_type", "bottleneck") == "basic":
        made["backbone_options"] = made.get("backbone_options", {}) | {"first_shortcut": True}
    return made


def _hgnet(config: Config) -> dict[str, Any]:
    """transformers' own HGNetV2, which may have any stages: timm's that has the same."""
    from timm.models.hgnet import model_cfgs

    config.require(hidden_act="relu", num_channels=3)
    known = {name: stages for name, stages in model_cfgs.items() if name.startswith("hgnetv2")}
    columns = ("in_channels", "mid_channels", "out_channels", "num_blocks", "downsample", "light_block", "kernel_size", "numb_of_layers")
    default = zip(*(known["hgnetv2_b4"][f"stage{i}"] for i in range(1, 5)), strict=True)
    stages = [config.get(f"stage_{name}", list(column)) for name, column in zip(columns, default, strict=True)]
    stem, affine = config.get("stem_channels", [3, 32, 48]), config.get("use_learnable_affine_block", False)
    for name, theirs in known.items():
        if theirs["stem_chs"] == stem[1:] and [theirs[f"stage{i}"] for i in range(1, 5)] == [
            list(row) for row in zip(*stages, strict=False)
        ]:
            usual = name <= "hgnetv2_b3"
            if usual and not affine:
                break
            return {"backbone": name, "backbone_options": {} if affine == usual else {"use_lab": affine}}
    raise UserError(f"{config.where}: its stages, with use_learnable_affine_block={affine}, are none of hgnetv2_b0 to hgnetv2_b6 in timm")


#: ``model_type`` of a backbone's configuration -> our options of it; the keys of its tensors are in ``patterns.backbone``
BACKBONES: dict[str, Callable[[Config], dict[str, Any]]] = {
    "timm_backbone": _timm,
    "resnet": _resnet,
    "rt_detr_resnet": _resnet_vd,
    "hgnet_v2": _hgnet,
}
