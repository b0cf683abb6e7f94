"""facebookresearch/detr (Apache-2.0): the keys of its released checkpoints."""

from boxquery.official.patterns import class_rows, detr_transformer, sizes


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours."""
    return [
        *detr_transformer(),
        (r"backbone\.1\.row_embed\.weight", "tokens.position.row"),
        (r"backbone\.1\.col_embed\.weight", "tokens.position.column"),
        (r"transformer\.encoder\.norm\.(.+)", r"encoder.norm.\1"),
    ]


def options(tensors) -> tuple[int | None, dict]:
    """The class count (without "no object") and our options, as read from the tensors; DC5 has the same tensors and must be given."""
    queries, dim = tensors["query_embed.weight"].shape
    return class_rows(tensors, others=1), {
        **sizes(tensors),
        "num_queries": queries,
        "hidden_dim": dim,
        "position": "learned" if "backbone.1.row_embed.weight" in tensors else "sine",
        "pre_norm": "transformer.encoder.norm.weight" in tensors,
    }
