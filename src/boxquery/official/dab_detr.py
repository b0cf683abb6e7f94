"""IDEA-Research/DAB-DETR (Apache-2.0): the keys of its released DAB-DETR checkpoints."""

from boxquery.official.patterns import conditional_transformer, sizes


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


def options(tensors) -> tuple[int, dict]:
    """The class count and our options, as read from the tensors; DC5 has the same tensors and must be given."""
    patterns = tensors.get("transformer.patterns.weight")
    return len(tensors["class_embed.bias"]), {
        **sizes(tensors),
        "num_queries": len(tensors["refpoint_embed.weight"]),
        "hidden_dim": tensors["class_embed.weight"].shape[1],
        "patterns": 0 if patterns is None else len(patterns),
    }
