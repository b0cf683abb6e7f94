"""``ConditionalDetrForObjectDetection``: its configuration and the names of its tensors."""

from typing import Any

from boxquery.official.transformers.config import Config, backbone, position, sizes
from boxquery.official.transformers.patterns import DECODER, OUT, Rules, decoder, dense_encoder, single_scale

#: names in 4.x and 5.x of the projections in a decoder layer -> ours
PROJECTIONS = {
    r"(?:sa_qcontent_proj|self_attn\.q_content_proj)": "self_attention.query_content",
    r"(?:sa_qpos_proj|self_attn\.q_pos_proj)": "self_attention.query_position",
    r"(?:sa_kcontent_proj|self_attn\.k_content_proj)": "self_attention.key_content",
    r"(?:sa_kpos_proj|self_attn\.k_pos_proj)": "self_attention.key_position",
    r"(?:sa_v_proj|self_attn\.v_proj)": "self_attention.value",
    rf"self_attn\.{OUT}": "self_attention.out_proj",
    r"(?:ca_qcontent_proj|encoder_attn\.q_content_proj)": "read.query_content",
    r"(?:ca_qpos_proj|encoder_attn\.q_pos_proj)": "read.query_position",
    r"(?:ca_kcontent_proj|encoder_attn\.k_content_proj)": "read.key_content",
    r"(?:ca_kpos_proj|encoder_attn\.k_pos_proj)": "read.key_place",
    r"(?:ca_v_proj|encoder_attn\.v_proj)": "read.value",
    r"(?:ca_qpos_sine_proj|encoder_attn\.q_pos_sine_proj)": "read.query_place",
    rf"encoder_attn\.{OUT}": "read.out_proj",
}


def options(config: Config) -> dict[str, Any]:
    return {**sizes(config), **backbone(config), "num_queries": config.whole("num_queries", 300), "position": position(config)}


def keys(model) -> Rules:
    return [
        *single_scale(),
        *dense_encoder(),
        *decoder(),
        *[(rf"{DECODER}{theirs}\.(.+)", rf"layers.\1.{ours}.\2") for theirs, ours in PROJECTIONS.items()],
        (r"model\.query_position_embeddings\.weight", "queries.position"),
        (r"model\.decoder\.query_scale\.(.+)", r"place.scale.\1"),
        (r"model\.decoder\.ref_point_head\.(.+)", r"queries.reference.\1"),
        (r"class_labels_classifier\.(.+)", r"heads.0.classes.\1"),
    ]
