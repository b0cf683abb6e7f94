"""Atten4Vis/ConditionalDETR (Apache-2.0): the keys of its released checkpoints."""

from boxquery.official.patterns import class_rows, conditional_transformer, sizes


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours."""
    return [
        *conditional_transformer(),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"queries.reference.\1"),
        (r"query_embed\.weight", "queries.position"),
    ]


def options(tensors) -> tuple[int | None, dict]:
    """The class count and our options, as read from the tensors; DC5 has the same tensors and must be given."""
    queries, dim = tensors["query_embed.weight"].shape
    return class_rows(tensors), {**sizes(tensors), "num_queries": queries, "hidden_dim": dim}
