"""``DeformableDetrForObjectDetection``: its configuration and the names of its tensors."""

import re
from typing import Any

from torch import Tensor

from boxquery.official.transformers.config import Config, backbone, position, sizes
from boxquery.official.transformers.patterns import DECODER, ENCODER, Rules, attention, decoder, deformable, encoder
from boxquery.official.transformers.patterns import backbone as backbone_keys

#: where a head is named; two-stage's last one is the encoder's
HEAD = r"^(?:model\.decoder\.)?(class|bbox)_embed\."


def options(config: Config) -> dict[str, Any]:
    two_stage = config.get("two_stage", False)
    return {
        **sizes(config, ffn_dim=1024),
        **backbone(config),
        "num_queries": config.whole("two_stage_num_proposals", 300) if two_stage else config.whole("num_queries", 300),
        "position": position(config),
        "levels": config.whole("num_feature_levels", 4),
        "points": config.same("encoder_n_points", "decoder_n_points", default=4),
        "box_refine": config.get("with_box_refine", False),
        "two_stage": two_stage,
    }


def adapt(model, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The library shares heads, and writes those that are shared only once: layers without one have the first layer's."""
    found = {re.sub(HEAD, r"\1_embed.", key) for key in tensors}
    out, heads = dict(tensors), len(model.layers) + hasattr(model.queries, "head")
    for key, value in tensors.items():
        if re.match(HEAD + r"0\.", key):
            others = (re.sub(HEAD + r"0\.", rf"\1_embed.{i}.", key) for i in range(1, heads))
            out |= {other: value for other in others if other not in found}
    return out, []


def keys(model) -> Rules:
    rules = [
        *backbone_keys(),
        (r"model\.input_proj\.(.+)", r"neck.projections.\1"),
        (r"model\.level_embed", "tokens.level_embedding"),
        (r"model\.(?:backbone\.)?position_embedding\.row_embeddings\.weight", "tokens.position.row"),
        (r"model\.(?:backbone\.)?position_embedding\.column_embeddings\.weight", "tokens.position.column"),
        *encoder(),
        *deformable(ENCODER + "self_attn", r"encoder.layers.\1.read"),
        *decoder(),
        *attention(DECODER + "self_attn", r"layers.\1.self_attention.attention"),
        *deformable(DECODER + "encoder_attn", r"layers.\1.read"),
        (r"model\.query_position_embeddings\.weight", "queries.embedding"),
        (r"model\.reference_points\.(.+)", r"queries.reference_points.\1"),
        (r"model\.enc_output\.(.+)", r"queries.memory_proj.\1"),
        (r"model\.enc_output_norm\.(.+)", r"queries.memory_norm.\1"),
        (r"model\.pos_trans\.(.+)", r"queries.query_proj.\1"),
        (r"model\.pos_trans_norm\.(.+)", r"queries.query_norm.\1"),
    ]
    proposing, each = len(model.layers), r"heads.\1" if len(model.heads) > 1 else "heads.0"
    for theirs, ours in (("class_embed", "classes"), ("bbox_embed", "boxes")):
        head = rf"(?:model\.decoder\.)?{theirs}\."
        rules += [(rf"{head}{proposing}\.(.+)", rf"queries.head.{ours}.\1"), (rf"{head}(\d+)\.(.+)", rf"{each}.{ours}.\2")]
    return rules
