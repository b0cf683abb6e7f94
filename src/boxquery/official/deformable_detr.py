"""fundamentalvision/Deformable-DETR (Apache-2.0): the keys of its released checkpoints."""

from boxquery.official.patterns import class_rows, deformable_sizes, deformable_transformer, proposals


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours. Heads are listed per layer, also where all share one; two-stage's last is the encoder's."""
    rules = [
        *deformable_transformer(),
        *proposals(),
        (r"query_embed\.weight", "queries.embedding"),
        (r"transformer\.reference_points\.(.+)", r"queries.reference_points.\1"),
        (r"transformer\.pos_trans\.(.+)", r"queries.query_proj.\1"),
        (r"transformer\.pos_trans_norm\.(.+)", r"queries.query_norm.\1"),
    ]
    proposing = len(model.layers)
    for theirs, ours in (("class_embed", "classes"), ("bbox_embed", "boxes")):
        each = r"heads.\1" if len(model.heads) > 1 else "heads.0"
        rules.append((rf"(?:transformer\.decoder\.)?{theirs}\.{proposing}\.(.+)", rf"queries.head.{ours}.\1"))
        rules.append((rf"(?:transformer\.decoder\.)?{theirs}\.(\d+)\.(.+)", rf"{each}.{ours}.\2"))
    return rules


def options(tensors) -> tuple[int | None, dict]:
    """The class count and our options, as read from the tensors; DC5 has the same tensors and must be given."""
    first, second = (tensors[f"bbox_embed.{i}.layers.2.bias"] for i in (0, 1))
    two_stage = "transformer.pos_trans.weight" in tensors
    return class_rows(tensors), {
        **deformable_sizes(tensors),
        "num_queries": 300 if two_stage else len(tensors["query_embed.weight"]),
        "box_refine": not bool(first.equal(second)),
        "two_stage": two_stage,
    }
