"""IDEA-Research/DN-DETR (Apache-2.0): the keys of its released DN-DAB-DETR checkpoints."""

from boxquery.official.patterns import class_rows, dab_transformer, sizes, split_labels, width


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours."""
    return [*dab_transformer(), (r"label_enc\.weight", "queries.denoising.labels"), (r"label_enc\.unknown", "queries.content")]


def adapt(model, tensors):
    """Their row of label embeddings after those of the classes is the content of all queries that are to be matched."""
    return split_labels(model, tensors, "label_enc.unknown")


def options(tensors) -> tuple[int | None, dict]:
    """The class count and our options, as read from the tensors; DC5 has the same tensors and must be given."""
    _ = tensors["label_enc.weight"]
    return class_rows(tensors), {**sizes(tensors), "num_queries": len(tensors["refpoint_embed.weight"]), "hidden_dim": width(tensors)}
