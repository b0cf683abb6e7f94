"""IDEA-Research/DAB-DETR (Apache-2.0): the keys of its released DAB-DETR checkpoints."""

from boxquery.official.patterns import class_rows, dab_transformer, sizes, width


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours."""
    return [
        *dab_transformer(),
        (r"transformer\.patterns\.weight", "queries.content"),
    ]


def options(tensors) -> tuple[int | None, dict]:
    """The class count and our options, as read from the tensors; DC5 has the same tensors and must be given."""
    patterns = tensors.get("transformer.patterns.weight")
    return class_rows(tensors), {
        **sizes(tensors),
        "num_queries": len(tensors["refpoint_embed.weight"]),
        "hidden_dim": width(tensors),
        "patterns": 0 if patterns is None else len(patterns),
    }
