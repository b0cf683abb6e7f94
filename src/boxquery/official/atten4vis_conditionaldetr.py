"""Atten4Vis/ConditionalDETR (Apache-2.0): the keys of its released checkpoints."""

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
        *separate_self_attention(),
        *separate_read(),
        *decoder(),
        (r"transformer\.decoder\.norm\.(.+)", r"norm.\1"),
        (r"transformer\.decoder\.query_scale\.(.+)", r"place.scale.\1"),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"queries.reference.\1"),
        (r"query_embed\.weight", "queries.position"),
        *shared_head(),
    ]


def options(tensors) -> tuple[int, dict]:
    """The class count and our options, as the tensors show them; DC5 has the same tensors and must be said."""
    queries, dim = tensors["query_embed.weight"].shape
    return len(tensors["class_embed.bias"]), {**sizes(tensors), "num_queries": queries, "hidden_dim": dim}
