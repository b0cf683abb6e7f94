"""Atten4Vis/ConditionalDETR (Apache-2.0): the keys of its released checkpoints."""

from boxquery.official.patterns import CONSTANTS, separate, sizes

__all__ = ["CONSTANTS", "keys", "options"]


def keys(model) -> list[tuple[str, str]]:
    """Their key (a pattern) -> ours."""
    return [
        *separate(),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"queries.reference.\1"),
        (r"query_embed\.weight", "queries.position"),
    ]


def options(tensors) -> tuple[int, dict]:
    """The class count and our options, as the tensors show them; DC5 has the same tensors and must be said."""
    queries, dim = tensors["query_embed.weight"].shape
    return len(tensors["class_embed.bias"]), {**sizes(tensors), "num_queries": queries, "hidden_dim": dim}
