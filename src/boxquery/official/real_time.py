"""What the key names of RT-DETR's authors, and of those who build on it, have in common."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from boxquery.official.patterns import Rules, multihead_attention, norms

#: what a model holds beside its parameters
CONSTANTS = (r"decoder\.(anchors|valid_mask)", r".+\.num_points_scale")
LAYER = r"decoder\.decoder\.layers\.(\d+)\."
#: of an encoder layer, which they number within each of the encoders
REGIONS = r"encoder\.encoder\.0\.layers\.(\d+)\."


def conv_block(theirs: str, ours: str) -> Rules:
    """A convolution and its norm; both arguments are prefixes of its tensors' names."""
    return [
        (rf"{theirs}\.(?:conv|0)\.(?P<rest>.+)", rf"{ours}.0.\g<rest>"),
        (rf"{theirs}\.(?:norm|1)\.(?P<rest>.+)", rf"{ours}.1.\g<rest>"),
    ]


def fusion(prefix: str, levels: int) -> Rules:
    """The convolutions between levels, which they number from the coarsest on top down, and from the finest on bottom up."""
    rules: Rules = []
    for i in range(levels - 1):
        top = levels - 2 - i
        rules += conv_block(rf"{prefix}lateral_convs\.{i}", f"encoder.lateral.{top}")
        rules += conv_block(rf"{prefix}downsample_convs\.{i}", f"encoder.shrink.{i}")
        for theirs, ours in ((rf"fpn_blocks\.{i}", f"top_down.{top}"), (rf"pan_blocks\.{i}", f"bottom_up.{i}")):
            for part, own in (("conv1", "enter"), ("conv2", "beside"), ("conv3", "leave")):
                rules += conv_block(rf"{prefix}{theirs}\.{part}", f"encoder.{ours}.{own}")
            for part, own in (("conv1", "wide"), ("conv2", "narrow")):
                rules += conv_block(rf"{prefix}{theirs}\.bottlenecks\.(\d+)\.{part}", rf"encoder.{ours}.blocks.\1.{own}")
    return rules


def resnet_vd() -> Rules:
    """The authors' ResNet, whose shortcuts have a norm, and a pooling before it where they halve the map."""
    stem = [rule for i in range(3) for rule in conv_block(rf"backbone\.conv1\.conv1_{i + 1}", f"backbone.body.conv1.{i}")]
    rules = [(theirs, re.sub(r"conv1\.(\d)\.(\d)", lambda m: f"conv1.{3 * int(m[1]) + int(m[2])}", ours)) for theirs, ours in stem]
    rules = [(theirs, ours.replace("conv1.7.", "bn1.")) for theirs, ours in rules]
    for stage in range(4):
        block, ours = rf"backbone\.res_layers\.{stage}\.blocks\.(\d+)\.", rf"backbone.body.layer{stage + 1}.\1."
        for i, branch in enumerate("abc", 1):
            rules += [
                (block + rf"branch2{branch}\.conv\.(.+)", ours + rf"conv{i}.\2"),
                (block + rf"branch2{branch}\.norm\.(.+)", ours + rf"bn{i}.\2"),
            ]
        rules += [
            (block + r"short\.(?:conv\.)?conv\.(weight)", ours + r"downsample.1.\2"),
            (block + r"short\.(?:conv\.)?norm\.(.+)", ours + r"downsample.2.\2"),
        ]
    return rules


def real_time_keys(levels: int) -> Rules:
    """Neck, attention of the encoder, and the decoder without its cross-attention."""
    return [
        *(rule for i in range(levels) for rule in conv_block(rf"encoder\.input_proj\.{i}", f"neck.projections.{i}")),
        *(rule for i in range(levels) for rule in conv_block(rf"decoder\.input_proj\.{i}", f"encoder.project.{i}")),
        *norms(REGIONS, "encoder.layers", {"norm1": "read_residual", "norm2": "ffn_residual"}),
        (REGIONS + r"(linear\d)\.(.+)", r"encoder.layers.\1.ffn.\2.\3"),
        *multihead_attention(REGIONS + "self_attn", r"encoder.layers.\1.read.attention"),
        *norms(LAYER, "layers", {"norm1": "self_residual", "norm2": "read_residual", "norm3": "ffn_residual"}),
        (LAYER + r"(linear\d)\.(.+)", r"layers.\1.ffn.\2.\3"),
        *multihead_attention(LAYER + "self_attn", r"layers.\1.self_attention.attention"),
        (r"decoder\.enc_output\.(?:proj|0)\.(.+)", r"queries.memory_proj.\1"),
        (r"decoder\.enc_output\.(?:norm|1)\.(.+)", r"queries.memory_norm.\1"),
        (r"decoder\.enc_score_head\.(.+)", r"queries.head.classes.\1"),
        (r"decoder\.enc_bbox_head\.(.+)", r"queries.head.boxes.\1"),
        (r"decoder\.query_pos_head\.(.+)", r"place.position.\1"),
        (r"decoder\.denoising_class_embed\.weight", "queries.denoising.labels"),
        (r"decoder\.dec_score_head\.(\d+)\.(.+)", r"heads.\1.classes.\2"),
        (r"decoder\.dec_bbox_head\.(\d+)\.(.+)", r"heads.\1.boxes.\2"),
    ]


def deformable_keys() -> Rules:
    """Deformable cross-attention."""
    names = r"(sampling_offsets|attention_weights|value_proj)"
    return [
        (rf"{LAYER}cross_attn\.{names}\.(.+)", r"layers.\1.read.\2.\3"),
        (LAYER + r"cross_attn\.output_proj\.(.+)", r"layers.\1.read.out_proj.\2"),
    ]


def without_padding_class(
    tensors: Mapping[str, Tensor], key: str = "decoder.denoising_class_embed.weight"
) -> tuple[dict[str, Tensor], list[str]]:
    """Without the last row of the noised classes' embedding, which is zero: of slots without an object."""
    out = dict(tensors)
    if key not in out:
        return out, []
    out[key] = out[key][:-1]
    return out, [f"{key}[{len(out[key])}]"]


def class_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """How many classes the heads have; None where there are none."""
    bias = tensors.get("decoder.dec_score_head.0.bias")
    return None if bias is None else len(bias)


def count(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """How many parts are numbered after a prefix. Raises ``KeyError`` for none."""
    found = {int(m[1]) for key in tensors if (m := re.match(re.escape(prefix) + r"(\d+)\.", key))}
    if not found:
        raise KeyError(f"{prefix}0")
    return 1 + max(found)


def real_time_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options up to the decoder's, and of its sizes, as read from the tensors."""
    width, own = len(tensors["decoder.enc_output.1.bias" if "decoder.enc_output.1.bias" in tensors else "decoder.enc_output.norm.bias"]), 0
    own = len(tensors["encoder.lateral_convs.0.norm.bias"])
    ffn, own_ffn = (len(tensors[f"{layer}0.linear1.bias"]) for layer in ("decoder.decoder.layers.", "encoder.encoder.0.layers."))
    return {
        "levels": count(tensors, "encoder.input_proj."),
        "hidden_dim": width,
        "encoder_dim": 0 if own == width else own,
        "ffn_dim": ffn,
        "encoder_ffn_dim": 0 if own_ffn == ffn else own_ffn,
        "encoder_layers": count(tensors, "encoder.encoder.0.layers."),
        "decoder_layers": count(tensors, "decoder.decoder.layers."),
        **({} if "decoder.denoising_class_embed.weight" in tensors else {"matching": "one-to-one"}),
    }


def resnet_options(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Which ResNet it is, and how wide its fusions are: with 50 layers and narrow ones it is R50-m, which infers with three layers."""
    basic = "backbone.res_layers.0.blocks.0.branch2c.conv.weight" not in tensors
    deep = count(tensors, "backbone.res_layers.2.blocks.")
    name = {(True, 2): "resnet18d", (True, 6): "resnet34d", (False, 6): "resnet50d", (False, 23): "resnet101d"}[basic, deep]
    width = len(tensors["encoder.lateral_convs.0.norm.bias"])
    expansion = len(tensors["encoder.fpn_blocks.0.conv1.norm.bias"]) / width
    return {
        "backbone": name,
        "backbone_options": {"first_shortcut": True} if basic else {},
        "fusion_expansion": expansion,
        "inference_layers": 3 if not basic and expansion == 0.5 else 0,
    }
