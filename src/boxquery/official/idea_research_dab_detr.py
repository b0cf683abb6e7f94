"""IDEA-Research/DAB-DETR (Apache-2.0): the keys of its released DAB-DETR checkpoints."""

from boxquery.official.patterns import (
    CONSTANTS,
    backbone,
    decoder,
    dense_encoder,
    separate_read,
    separate_self_attention,
    shared_head,
    sizes,
)

__all__ = ["CONSTANTS", "keys", "options"]


def keys(model) -> list[tuple[str, str]]:
    """Their key (a pattern) -> ours."""
    return [
        *backbone(),
        (r"input_proj\.(.+)", r"neck.projections.0.0.\1"),
        *dense_encoder(),
        (r"transformer\.encoder\.query_scale\.(.+)", r"encoder.place.scale.\1"),
        *separate_self_attention(),
        *separate_read(),
        *decoder(),
        (r"transformer\.decoder\.norm\.(.+)", r"norm.\1"),
        (r"transformer\.decoder\.query_scale\.(.+)", r"place.scale.\1"),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"place.position.\1"),
        (r"transformer\.decoder\.ref_anchor_head\.(.+)", r"place.size.\1"),
        (r"refpoint_embed\.weight", "queries.anchors"),
        (r"transformer\.patterns\.weight", "queries.content"),
        *shared_head(),
    ]


def options(tensors) -> tuple[int, dict]:
    """The class count and our options, as the tensors show them; DC5 has the same tensors and must be said."""
    patterns = tensors.get("transformer.patterns.weight")
    return len(tensors["class_embed.bias"]), {
        **sizes(tensors),
        "num_queries": len(tensors["refpoint_embed.weight"]),
        "hidden_dim": tensors["class_embed.weight"].shape[1],
        "patterns": 0 if patterns is None else len(patterns),
    }
