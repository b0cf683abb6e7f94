"""``DFineForObjectDetection``: its configuration and the names of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from boxquery.errors import UserError
from boxquery.official.d_fine import gelan
from boxquery.official.real_time import without_padding_class
from boxquery.official.transformers.config import Config, real_time_sizes
from boxquery.official.transformers.patterns import DECODER, Rules, attention, backbone, hybrid_encoder, norms, real_time_queries

#: the layers of a feed-forward network in 4.x and in 5.x
FFN = {r"(?:fc1|mlp\.layers\.0)": "linear1", r"(?:fc2|mlp\.layers\.1)": "linear2"}
UP, REG_SCALE = "model.decoder.up", "model.decoder.reg_scale"
REGIONS = r"model\.encoder\.(?:aifi|encoder)\.0\.layers\.(\d+)\."
PROCESSOR = {"size": {"height": 640, "width": 640}, "do_normalize": False}
CONSTANTS = (r"model\.decoder\.(?:up|reg_scale)", r".+\.num_points_scale")


def options(config: Config) -> dict[str, Any]:
    sizes = real_time_sizes(config)
    width = sizes["encoder_dim"] or sizes["hidden_dim"]
    config.require(decoder_in_channels=[width] * sizes["levels"], eval_idx=-1, layer_scale=1, up=0.5)
    config.require(top_prob_values=4, lqe_hidden_dim=64, lqe_layers=2, decoder_offset_scale=0.5, decoder_method="default")
    return sizes | {
        "points": config.get("decoder_n_points", 4),
        "fusion_blocks": round(3 * config.number("depth_mult", 1.0)),
        "fusion_expansion": config.number("hidden_expansion", 1.0),
        "reg_max": config.whole("max_num_bins", 32),
    }


def seen(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of X it is 8 while its configuration says 4, which there is used in the loss alone."""
    for name in (UP, REG_SCALE):
        if name not in tensors or tensors[name].numel() != 1:
            found = f"is {list(tensors[name].shape)} there" if name in tensors else "is missing"
            raise UserError(f"the tensor {name!r} {found}, which in a D-FINE has one number; check model_type in config.json")
    if (up := float(tensors[UP])) != 0.5:
        raise UserError(f"the tensor {UP!r} is {up}: only 0.5 is supported")
    return {"reg_scale": float(tensors[REG_SCALE])}


def adapt(model, tensors):
    """Heads that are shared are written once."""
    heads = {re.sub(r"^model\.decoder\.(?=(class|bbox)_embed\.)", "", key): value for key, value in tensors.items()}
    for key in [key for key in heads if re.match(r"(class|bbox)_embed\.0\.", key)]:
        for i in range(1, len(model.layers)):
            heads.setdefault(key.replace("_embed.0.", f"_embed.{i}."), heads[key])
    return without_padding_class(heads, "model.denoising_class_embed.weight")


def keys(model) -> Rules:
    names = {"self_attn_layer_norm": "self_residual", "final_layer_norm": "ffn_residual"}
    return [
        *backbone(model.backbone.name),
        *hybrid_encoder(),
        *[(rf"{REGIONS}{theirs}\.(.+)", rf"encoder.layers.\1.ffn.{ours}.\2") for theirs, ours in FFN.items()],
        *gelan(
            r"model\.encoder\.",
            len(model.neck.projections),
            ("conv1", "conv2", "conv3", "conv4"),
            ("csp_rep1", "csp_rep2"),
            ("conv1", "conv2"),
        ),
        *attention(DECODER + "self_attn", r"layers.\1.self_attention.attention"),
        *norms(DECODER, "layers", names),
        *[(rf"{DECODER}{theirs}\.(.+)", rf"layers.\1.ffn.{ours}.\2") for theirs, ours in FFN.items()],
        (DECODER + r"encoder_attn\.((?:sampling_offsets|attention_weights)\..+)", r"layers.\1.read.\2"),
        (DECODER + r"gateway\.gate\.(.+)", r"layers.\1.read_residual.gates.\2"),
        (DECODER + r"gateway\.norm\.(.+)", r"layers.\1.read_residual.norm.\2"),
        (r"model\.decoder\.pre_bbox_head\.(.+)", r"heads.0.initial_boxes.\1"),
        (r"model\.decoder\.lqe_layers\.(\d+)\.reg_conf\.(.+)", r"heads.\1.quality.mlp.\2"),
        *real_time_queries(),
    ]
