"""``RTDetrForObjectDetection``: its configuration and the names of its tensors."""

from typing import Any

from boxquery.official.real_time import fusion, without_padding_class
from boxquery.official.transformers.config import Config, real_time_sizes
from boxquery.official.transformers.patterns import (
    DECODER,
    Rules,
    attention,
    backbone,
    decoder,
    deformable,
    hybrid_encoder,
    real_time_queries,
)

PROCESSOR = {"size": {"height": 640, "width": 640}, "do_normalize": False}


def options(config: Config) -> dict[str, Any]:
    return real_time_sizes(config) | {"points": config.get("decoder_n_points", 4)}


def adapt(model, tensors):
    return without_padding_class(tensors, "model.denoising_class_embed.weight")


def keys(model) -> Rules:
    return [
        *backbone(model.backbone.name),
        *hybrid_encoder(),
        *fusion(r"model\.encoder\.", len(model.neck.projections)),
        *decoder(),
        *attention(DECODER + "self_attn", r"layers.\1.self_attention.attention"),
        *deformable(DECODER + "encoder_attn", r"layers.\1.read"),
        *real_time_queries(),
    ]
