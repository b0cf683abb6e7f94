"""IDEA-Research/DAB-DETR (Apache-2.0): the keys of its released DAB-Deformable-DETR checkpoints."""

from boxquery.official.patterns import class_rows, deformable_sizes, deformable_transformer, head_per_layer


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours."""
    return [
        *deformable_transformer(),
        (r"transformer\.decoder\.query_scale\.(.+)", r"place.scale.\1"),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"place.position.\1"),
        (r"refpoint_embed\.weight", "queries.anchors"),
        (r"tgt_embed\.weight", "queries.content"),
        *head_per_layer(),
    ]


def options(tensors) -> tuple[int | None, dict]:
    """The class count and our options, as read from the tensors."""
    return class_rows(tensors), {**deformable_sizes(tensors), "num_queries": len(tensors["tgt_embed.weight"])}
