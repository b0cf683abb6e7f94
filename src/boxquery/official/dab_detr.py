"""IDEA-Research/DAB-DETR (Apache-2.0): the keys of its released DAB-DETR checkpoints."""

from boxquery.official.patterns import class_rows, conditional_transformer, sizes, width


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours."""
    return [
        *conditional_transformer(),
        (r"transformer\.encoder\.query_scale\.(.+)", r"encoder.place.scale.\1"),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"place.position.\1"),
        (r"transformer\.decoder\.ref_anchor_head\.(.+)", r"place.size.\1"),
        (r"refpoint_embed\.weight", "queries.anchors"),
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
