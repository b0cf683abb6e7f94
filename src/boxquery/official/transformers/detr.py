"""``DetrForObjectDetection``: its configuration and the names of its tensors."""

from typing import Any

from boxquery.official.transformers.config import Config, backbone, sizes
from boxquery.official.transformers.patterns import DECODER, Rules, attention, decoder, dense_encoder, single_scale


def options(config: Config) -> dict[str, Any]:
    return {
        **sizes(config),
        **backbone(config),
        "num_queries": config.whole("num_queries", 100),
        "position": config.get("position_embedding_type", "sine"),
    }


def keys(model) -> Rules:
    return [
        *single_scale(),
        *dense_encoder(),
        *decoder(),
        *attention(DECODER + "self_attn", r"layers.\1.self_attention.attention"),
        *attention(DECODER + "encoder_attn", r"layers.\1.read.attention"),
        (r"model\.query_position_embeddings\.weight", "queries.position"),
        (r"class_labels_classifier\.(.+)", r"heads.0.classes.\1"),
    ]
