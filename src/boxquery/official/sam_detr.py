"""ZhangGongjie/SAM-DETR (MIT): the keys of its released checkpoints."""

from boxquery.official.patterns import (
    DECODER,
    backbone,
    class_rows,
    conditional_self_attention,
    decoder,
    deformable_encoder,
    dense_encoder,
    head_per_layer,
    sizes,
    width,
)

#: their parts of a decoder layer's cross-attention -> ours
READ = {
    r"point1\.0": "squeeze", "point2": "points", "attn1": "feature_weights", "attn2": "position_weights",
    "ca_qcontent_proj": "query_content", "ca_qpos_sine_proj": "query_position",
    "ca_kcontent_proj": "key_content", "ca_kpos_sine_proj": "key_position",
    "ca_v_proj": "value", r"cross_attn\.out_proj": "out_proj",
}  # fmt: skip


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours."""
    return [
        *backbone(),
        (r"input_proj\.(.+)", r"neck.projections.\1"),
        *(dense_encoder() if model.tokens.level_embedding is None else deformable_encoder()),
        *conditional_self_attention(),
        *[(rf"{DECODER}{theirs}\.(.+)", rf"layers.\1.read.{ours}.\2") for theirs, ours in READ.items()],
        *decoder(),
        (r"query_embed\.weight", "queries.anchors"),
        *head_per_layer(),
    ]


def options(tensors) -> tuple[int | None, dict]:
    """The class count and our options, as read from the tensors; DC5 has the same tensors and must be given."""
    point_numbers = len(tensors["transformer.decoder.layers.0.point2.6.bias"])
    return class_rows(tensors), {
        **sizes(tensors),
        # several levels halve the encoder's
        "ffn_dim": len(tensors["transformer.decoder.layers.0.linear1.bias"]),
        "num_queries": len(tensors["query_embed.weight"]),
        "hidden_dim": width(tensors),
        "levels": len(tensors["transformer.level_embed"]) if "transformer.level_embed" in tensors else 1,
        "neck_norm": "input_proj.0.1.weight" in tensors,
        "smca": point_numbers == 4 * 8,
    }
