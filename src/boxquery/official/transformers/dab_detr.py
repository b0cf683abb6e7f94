"""``DabDetrForObjectDetection``: its configuration and the names of its tensors."""

import math
from typing import Any

from boxquery.official.transformers.config import Config, backbone, sizes
from boxquery.official.transformers.patterns import DECODER, ENCODER, Rules, dense_encoder, norms, single_scale

#: the projections in a decoder layer -> ours; the norms are inside the attention that they follow
PROJECTIONS = {
    r"self_attn\.self_attn_query_content_proj": "self_attention.query_content",
    r"self_attn\.self_attn_query_pos_proj": "self_attention.query_position",
    r"self_attn\.self_attn_key_content_proj": "self_attention.key_content",
    r"self_attn\.self_attn_key_pos_proj": "self_attention.key_position",
    r"self_attn\.self_attn_value_proj": "self_attention.value",
    r"self_attn\.self_attn\.output_proj": "self_attention.out_proj",
    r"cross_attn\.cross_attn_query_content_proj": "read.query_content",
    r"cross_attn\.cross_attn_query_pos_proj": "read.query_position",
    r"cross_attn\.cross_attn_key_content_proj": "read.key_content",
    r"cross_attn\.cross_attn_key_pos_proj": "read.key_place",
    r"cross_attn\.cross_attn_value_proj": "read.value",
    r"cross_attn\.cross_attn_query_pos_sine_proj": "read.query_place",
    r"cross_attn\.cross_attn\.output_proj": "read.out_proj",
    r"mlp\.fc1": "ffn.linear1",
    r"mlp\.fc2": "ffn.linear2",
    r"mlp\.activation_fn": "ffn.activation",
}
NORMS = {
    "self_attn.self_attn_layer_norm": "self_residual",
    "cross_attn.cross_attn_layer_norm": "read_residual",
    "mlp.final_layer_norm": "ffn_residual",
}


def options(config: Config) -> dict[str, Any]:
    config.require(temperature_height=20, temperature_width=20, query_dim=4, keep_query_pos=False, normalize_before=False)
    config.require(sine_position_embedding_scale=2 * math.pi)
    return {
        **sizes(config, width="hidden_size", activation="prelu"),
        **backbone(config),
        "num_queries": config.whole("num_queries", 300),
        "patterns": config.whole("num_patterns", 0, least=0),
    }


def keys(model) -> Rules:
    return [
        *single_scale(),
        *dense_encoder(),
        (ENCODER + r"activation_fn\.(.+)", r"encoder.layers.\1.ffn.activation.\2"),
        *norms(DECODER, "layers", NORMS),
        *[(rf"{DECODER}{theirs}\.(.+)", rf"layers.\1.{ours}.\2") for theirs, ours in PROJECTIONS.items()],
        (r"model\.encoder\.query_scale\.(.+)", r"encoder.place.scale.\1"),
        (r"model\.decoder\.query_scale\.(.+)", r"place.scale.\1"),
        (r"model\.decoder\.ref_point_head\.(.+)", r"place.position.\1"),
        (r"model\.decoder\.ref_anchor_head\.(.+)", r"place.size.\1"),
        (r"model\.query_refpoint_embeddings\.weight", "queries.anchors"),
        (r"model\.patterns\.weight", "queries.content"),
        (r"class_embed\.(.+)", r"heads.0.classes.\1"),
        (r"model\.decoder\.bbox_embed\.(.+)", r"heads.0.boxes.\1"),
    ]
