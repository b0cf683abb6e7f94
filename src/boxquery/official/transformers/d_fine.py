"""``DFineForObjectDetection``: its configuration and the names of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from boxquery.errors import UserError
from boxquery.official.transformers.config import Config, backbone
from boxquery.official.transformers.patterns import DECODER, Rules, attention, norms
from boxquery.official.transformers.patterns import backbone as backbone_keys

AIFI = r"model\.encoder\.(?:aifi|encoder)\.0\.layers\.(\d+)\."
#: the layers of a feed-forward network in 4.x and in 5.x
FFN = {r"(?:fc1|mlp\.layers\.0)": "linear1", r"(?:fc2|mlp\.layers\.1)": "linear2"}
#: a fusion's convolutions and stages -> ours
FUSION = {
    "conv1": "enter", "conv2": "wide.0", "conv3": "wide.1", "conv4": "leave",
    **{f"csp_rep{i + 1}.{theirs}": f"stages.{i}.{ours}" for i in (0, 1) for theirs, ours in (
        ("conv1", "enter"), ("conv2", "beside"), ("bottlenecks.N.conv1", "blocks.N.wide"), ("bottlenecks.N.conv2", "blocks.N.narrow"),
    )},
}  # fmt: skip

PROCESSOR: dict[str, Any] = {"size": {"height": 640, "width": 640}, "do_normalize": False}
CONSTANTS = (r"model\.decoder\.(?:up|reg_scale)", r".*\.num_points_scale")


def options(config: Config) -> dict[str, Any]:
    levels = config.get("num_feature_levels", 3)
    dim, encoder_dim = config.get("d_model", 256), config.get("encoder_hidden_dim", 256)
    config.require(encode_proj_layers=[levels - 1], decoder_in_channels=[encoder_dim] * levels, positional_encoding_temperature=10000)
    config.require(encoder_activation_function="gelu", activation_function="silu", decoder_activation_function="relu")
    config.require(normalize_before=False, eval_size=None, learn_initial_query=False, with_box_refine=True, eval_idx=-1, layer_scale=1)
    config.require(top_prob_values=4, lqe_hidden_dim=64, lqe_layers=2, decoder_offset_scale=0.5, decoder_method="default", up=0.5)
    config.require(batch_norm_eps=1e-5, layer_norm_eps=1e-5)
    return {
        **backbone(config),
        "num_queries": config.get("num_queries", 300),
        "hidden_dim": dim,
        "encoder_dim": encoder_dim,
        "heads": config.same("encoder_attention_heads", "decoder_attention_heads", default=8),
        "encoder_layers": config.get("encoder_layers", 1),
        "decoder_layers": config.get("decoder_layers", 6),
        "encoder_ffn_dim": config.get("encoder_ffn_dim", 1024),
        "ffn_dim": config.get("decoder_ffn_dim", 1024),
        "dropout": config.get("dropout", 0.0),
        "levels": levels,
        "points": config.get("decoder_n_points", 4),
        "fusion_blocks": round(3 * config.get("depth_mult", 1.0)),
        "fusion_expansion": config.get("hidden_expansion", 1.0),
        "reg_max": config.get("max_num_bins", 32),
        "matching": "denoising" if config.get("num_denoising", 100) else "one-to-one",
        "denoising": 2 * (config.get("num_denoising", 100) or 100),
    }


def seen(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of X it is 8 while its configuration says 4, which there is used in the loss alone."""
    if (up := float(tensors["model.decoder.up"])) != 0.5:
        raise UserError(f"the tensor 'model.decoder.up' is {up}: only 0.5 is supported")
    return {"reg_scale": float(tensors["model.decoder.reg_scale"])}


def adapt(model, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The embedding of empty slots is zero there, and none here; heads that are shared are written once."""
    name = "model.denoising_class_embed.weight"
    kept, dropped = {re.sub(r"^model\.decoder\.(?=(class|bbox)_embed\.)", "", key): value for key, value in tensors.items()}, []
    for key in [key for key in kept if re.match(r"(class|bbox)_embed\.0\.", key)]:
        for i in range(1, len(model.layers)):
            kept.setdefault(key.replace("_embed.0.", f"_embed.{i}."), kept[key])
    if name in tensors and len(tensors[name]) == model.config["classes"] + 1:
        kept[name], dropped = tensors[name][:-1], [f"{name}[{len(tensors[name]) - 1}]"]
    return kept, dropped


def keys(model) -> Rules:
    last = len(model.encoder.lateral) - 1
    convolution = {r"conv": "0", r"norm": "1"}
    rules = [
        *backbone_keys(),
        (r"model\.encoder_input_proj\.(.+)", r"neck.projections.\1"),
        (r"model\.decoder_input_proj\.(.+)", r"encoder.project.\1"),
        *attention(AIFI + "self_attn", r"encoder.layers.\1.read.attention"),
        *norms(AIFI, "encoder.layers", {"self_attn_layer_norm": "read_residual", "final_layer_norm": "ffn_residual"}),
        *[(rf"{AIFI}{theirs}\.(.+)", rf"encoder.layers.\1.ffn.{ours}.\2") for theirs, ours in FFN.items()],
        *attention(DECODER + "self_attn", r"layers.\1.self_attention.attention"),
        *norms(DECODER, "layers", {"self_attn_layer_norm": "self_residual", "final_layer_norm": "ffn_residual"}),
        *[(rf"{DECODER}{theirs}\.(.+)", rf"layers.\1.ffn.{ours}.\2") for theirs, ours in FFN.items()],
        (DECODER + r"encoder_attn\.((?:sampling_offsets|attention_weights)\..+)", r"layers.\1.read.\2"),
        (DECODER + r"gateway\.gate\.(.+)", r"layers.\1.read_residual.gates.\2"),
        (DECODER + r"gateway\.norm\.(.+)", r"layers.\1.read_residual.norm.\2"),
        (r"model\.denoising_class_embed\.weight", "queries.denoising.labels"),
        (r"model\.enc_output\.0\.(.+)", r"queries.memory_proj.\1"),
        (r"model\.enc_output\.1\.(.+)", r"queries.memory_norm.\1"),
        (r"model\.enc_score_head\.(.+)", r"queries.head.classes.\1"),
        (r"model\.enc_bbox_head\.(.+)", r"queries.head.boxes.\1"),
        (r"model\.decoder\.query_pos_head\.(.+)", r"place.position.\1"),
        (r"model\.decoder\.pre_bbox_head\.(.+)", r"heads.0.initial_boxes.\1"),
        (r"model\.decoder\.lqe_layers\.(\d+)\.reg_conf\.(.+)", r"heads.\1.quality.mlp.\2"),
        (r"class_embed\.(\d+)\.(.+)", r"heads.\1.classes.\2"),
        (r"bbox_embed\.(\d+)\.(.+)", r"heads.\1.boxes.\2"),
    ]
    for theirs, ours in convolution.items():
        for level in range(last + 1):  # theirs go from coarse to fine on the way down
            down, up = rf"model\.encoder\.fpn_blocks\.{last - level}\.", rf"model\.encoder\.pan_blocks\.{level}\."
            rules.append((rf"model\.encoder\.lateral_convs\.{last - level}\.{theirs}\.(.+)", rf"encoder.lateral.{level}.{ours}.\1"))
            for way, block in ((down, "top_down"), (up, "bottom_up")):
                for a, b in FUSION.items():
                    inner = a.replace(".", r"\.").replace("N", r"(\d+)")
                    group = "2" if "N" in a else "1"
                    rules.append(
                        (rf"{way}{inner}\.{theirs}\.(.+)", rf"encoder.{block}.{level}.{b.replace('N', chr(92) + '1')}.{ours}.\{group}")
                    )
        for a, b in (("conv1", "mix"), ("conv2", "halve")):
            rules.append((rf"model\.encoder\.downsample_convs\.(\d+)\.{a}\.{theirs}\.(.+)", rf"encoder.shrink.\1.{b}.{ours}.\2"))
    return rules
