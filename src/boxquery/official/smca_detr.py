"""gaopengcuhk/SMCA-DETR (no licence stated): the keys of its released single-scale checkpoints."""

from boxquery.official.patterns import DECODER, class_rows, detr_transformer, sizes


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours."""
    return [
        *detr_transformer(),
        (DECODER + r"norm4\.(.+)", r"place.norms.\1.\2"),
        (r"transformer\.decoder\.layers\.0\.point1\.(.+)", r"place.centre.\1"),
        (DECODER + r"point2\.(.+)", r"place.offsets.\1.\2"),
        (DECODER + r"point3\.(.+)", r"place.scales.\1.\2"),
    ]


def adapt(model, tensors):
    """Their head has one column more than there are ids: a sigmoid that is never positive. A model without it does not take it."""
    bias = tensors.get("class_embed.bias")
    if bias is None or len(bias) != model.config["classes"] + 1:
        return tensors, []
    names = [name for name in ("class_embed.weight", "class_embed.bias") if name in tensors]
    kept = {**tensors, **{name: tensors[name][:-1] for name in names}}
    return kept, [f"{name}[{len(bias) - 1}]" for name in names]


def options(tensors) -> tuple[int | None, dict]:
    """The class count (without the spare column) and our options, as read from the tensors; DC5 and ``gaussian_smooth`` must be given."""
    queries, dim = tensors["query_embed.weight"].shape
    heads = len(tensors["transformer.decoder.layers.0.point2.bias"]) // 2
    scales = tensors.get("transformer.decoder.layers.0.point3.bias")
    return class_rows(tensors, others=1), {
        **sizes(tensors),
        "num_queries": queries,
        "hidden_dim": dim,
        "dynamic_scale": f"type{1 + (0 if scales is None else len(scales) // heads)}",
    }
