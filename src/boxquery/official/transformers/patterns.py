"""What the key names of transformers' models have in common, in those of 4.x, which files mostly keep, and of 5.x.

Rules are for tensors after ``packed``: three projections of one attention are one there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

HEADS = r"(?:model\.decoder\.)?"
ENCODER = r"model\.encoder\.layers\.(\d+)\."
DECODER = r"model\.decoder\.layers\.(\d+)\."
#: the projection after attention, and the layers of a feed-forward network, in both versions
OUT, FFN = r"(?:out_proj|o_proj)", r"(?:mlp\.)?fc([12])"

Rules = list[tuple[str, str]]


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``q_proj``, ``k_proj`` and ``v_proj`` of an attention become ``in_proj``, as torch and we have it."""
    out = dict(tensors)
    for key in tensors:
        three = [key.replace(".q_proj.", f".{name}_proj.") for name in "qkv"]
        if ".q_proj." in key and all(other in tensors for other in three):
            out[key.replace(".q_proj.", ".in_proj.")] = torch.cat([out.pop(other) for other in three])
    return out


def backbone(name: str = "") -> Rules:
    """timm's own names, and those of transformers' HGNetV2 and ResNets; of ``name``, timm's, hangs where the shortcuts are."""
    pooled = re.fullmatch(r"resnet\d+d", name) is not None  # RT-DETR's
    body = r"model\.backbone\.(?:conv_encoder\.)?model\."
    stem, block = body + r"embedder\.embedder\.", body + r"encoder\.stages\.(\d)\.layers\.(\d+)\."
    vd = [
        (stem + r"2\.normalization\.(.+)", r"backbone.body.bn1.\1"),
        *((stem + rf"{i}\.convolution\.(.+)", rf"backbone.body.conv1.{3 * i}.\1") for i in range(3)),
        *((stem + rf"{i}\.normalization\.(.+)", rf"backbone.body.conv1.{3 * i + 1}.\1") for i in range(2)),
    ]
    resnet = [(stem + r"convolution\.(.+)", r"backbone.body.conv1.\1"), (stem + r"normalization\.(.+)", r"backbone.body.bn1.\1")]
    for stage in range(4):
        at = block.replace(r"(\d)", str(stage))
        resnet += [
            (at + r"shortcut\.convolution\.(.+)", rf"backbone.body.layer{stage + 1}.\1.downsample.{int(pooled)}.\2"),
            (at + r"shortcut\.normalization\.(.+)", rf"backbone.body.layer{stage + 1}.\1.downsample.{int(pooled) + 1}.\2"),
            (at + r"shortcut\.1\.convolution\.(.+)", rf"backbone.body.layer{stage + 1}.\1.downsample.1.\2"),
            (at + r"shortcut\.1\.normalization\.(.+)", rf"backbone.body.layer{stage + 1}.\1.downsample.2.\2"),
        ]
        for i in range(3):
            resnet += [
                (at + rf"layer\.{i}\.convolution\.(.+)", rf"backbone.body.layer{stage + 1}.\1.conv{i + 1}.\2"),
                (at + rf"layer\.{i}\.normalization\.(.+)", rf"backbone.body.layer{stage + 1}.\1.bn{i + 1}.\2"),
            ]
    hgnet = []
    for theirs, ours in (("convolution", "conv"), ("normalization", "bn"), ("lab", "lab")):
        part = r"((?:blocks|downsample)(?:\..+)?)"
        hgnet += [
            (rf"{body}embedder\.(stem\w+)\.{theirs}\.(.+)", rf"backbone.body.stem.\1.{ours}.\2"),
            (rf"{body}encoder\.stages\.(\d)\.{part}\.{theirs}\.(.+)", rf"backbone.body.stages_\1.\2.{ours}.\3"),
        ]
    return [*vd, *resnet, *hgnet, (body + r"(?:_backbone\.)?(.+)", r"backbone.body.\1")]


def attention(theirs: str, ours: str) -> Rules:
    """Attention with one in-projection; both arguments are prefixes of its tensors' names."""
    return [(rf"{theirs}\.in_proj\.(.+)", rf"{ours}.in_proj.\2"), (rf"{theirs}\.{OUT}\.(.+)", rf"{ours}.out_proj.\2")]


def deformable(theirs: str, ours: str) -> Rules:
    """Deformable attention."""
    names = r"(sampling_offsets|attention_weights|value_proj)"
    return [(rf"{theirs}\.{names}\.(.+)", rf"{ours}.\2.\3"), (rf"{theirs}\.output_proj\.(.+)", rf"{ours}.out_proj.\2")]


def norms(layer: str, ours: str, names: Mapping[str, str]) -> Rules:
    """Their norms of a layer -> our residuals."""
    return [(rf"{layer}{re.escape(theirs)}\.(.+)", rf"{ours}.\1.{name}.norm.\2") for theirs, name in names.items()]


def encoder(layer: str = ENCODER) -> Rules:
    """Feed-forward network and norms of an encoder layer."""
    return [
        *norms(layer, "encoder.layers", {"self_attn_layer_norm": "read_residual", "final_layer_norm": "ffn_residual"}),
        (layer + FFN + r"\.(.+)", r"encoder.layers.\1.ffn.linear\2.\3"),
    ]


def hybrid_encoder() -> Rules:
    """Neck, encoder layer and last projection of RT-DETR's encoder; what lies between is as its authors have it."""
    layer = r"model\.encoder\.(?:aifi|encoder)\.0\.layers\.(\d+)\."
    return [
        (r"model\.encoder_input_proj\.(.+)", r"neck.projections.\1"),
        (r"model\.decoder_input_proj\.(.+)", r"encoder.project.\1"),
        *encoder(layer),
        *attention(layer + "self_attn", r"encoder.layers.\1.read.attention"),
    ]


def real_time_queries() -> Rules:
    """Proposals, positions and heads of RT-DETR and what builds on it."""
    return [
        (r"model\.enc_output\.0\.(.+)", r"queries.memory_proj.\1"),
        (r"model\.enc_output\.1\.(.+)", r"queries.memory_norm.\1"),
        (r"model\.enc_score_head\.(.+)", r"queries.head.classes.\1"),
        (r"model\.enc_bbox_head\.(.+)", r"queries.head.boxes.\1"),
        (r"model\.denoising_class_embed\.weight", "queries.denoising.labels"),
        (r"model\.decoder\.query_pos_head\.(.+)", r"place.position.\1"),
        (HEADS + r"class_embed\.(\d+)\.(.+)", r"heads.\1.classes.\2"),
        (HEADS + r"bbox_embed\.(\d+)\.(.+)", r"heads.\1.boxes.\2"),
    ]


def decoder() -> Rules:
    """Feed-forward network and norms of a decoder layer."""
    names = {"self_attn_layer_norm": "self_residual", "encoder_attn_layer_norm": "read_residual", "final_layer_norm": "ffn_residual"}
    return [*norms(DECODER, "layers", names), (DECODER + FFN + r"\.(.+)", r"layers.\1.ffn.linear\2.\3")]


def dense_encoder() -> Rules:
    """DETR's encoder."""
    return [*encoder(), *attention(ENCODER + "self_attn", r"encoder.layers.\1.read.attention")]


def single_scale() -> Rules:
    """Backbone, neck, norm and learned positions of DETR and those that keep its encoder."""
    return [
        *backbone(),
        (r"model\.input_projection\.(.+)", r"neck.projections.0.0.\1"),
        (r"model\.(?:backbone\.)?position_embedding\.row_embeddings\.weight", "tokens.position.row"),
        (r"model\.(?:backbone\.)?position_embedding\.column_embeddings\.weight", "tokens.position.column"),
        (r"model\.decoder\.layernorm\.(.+)", r"norm.\1"),
        (r"bbox_predictor\.(.+)", r"heads.0.boxes.\1"),
    ]
