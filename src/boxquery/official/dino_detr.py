"""IDEA-Research/DINO (Apache-2.0): the keys of its released checkpoints."""

from boxquery.official.patterns import class_rows, deformable_sizes, deformable_transformer, proposals, split_labels


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours. The one head of all layers is listed per layer."""
    return [
        *deformable_transformer(),
        *proposals(),
        (r"transformer\.enc_out_class_embed\.(.+)", r"queries.head.classes.\1"),
        (r"transformer\.enc_out_bbox_embed\.(.+)", r"queries.head.boxes.\1"),
        (r"transformer\.tgt_embed\.weight", "queries.content"),
        (r"label_enc\.weight", "queries.denoising.labels"),
        (r"transformer\.decoder\.norm\.(.+)", r"norm.\1"),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"place.position.\1"),
        (r"(?:transformer\.decoder\.)?class_embed\.\d+\.(.+)", r"heads.0.classes.\1"),
        (r"(?:transformer\.decoder\.)?bbox_embed\.\d+\.(.+)", r"heads.0.boxes.\1"),
    ]


def adapt(model, tensors):
    """Their row of label embeddings after those of the classes is never looked up."""
    return split_labels(model, tensors)


def options(tensors) -> tuple[int | None, dict]:
    """The class count and our options, as read from the tensors."""
    return class_rows(tensors), {**deformable_sizes(tensors), "num_queries": len(tensors["transformer.tgt_embed.weight"])}
