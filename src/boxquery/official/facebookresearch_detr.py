"""facebookresearch/detr (Apache-2.0): the keys of its released checkpoints."""

CONSTANTS = (r".*\.num_batches_tracked",)

#: our residual that holds each of the authors' norms
_ENCODER = {"norm1": "read_residual.norm", "norm2": "ffn_residual.norm"}
_DECODER = {"norm1": "self_residual.norm", "norm2": "read_residual.norm", "norm3": "ffn_residual.norm"}


def keys(model) -> list[tuple[str, str]]:
    """Their key (a pattern) -> ours."""
    layer = r"transformer\.{}\.layers\.(\d+)\."
    encoder, decoder = layer.format("encoder"), layer.format("decoder")
    rules = [
        (r"backbone\.0\.body\.(.+)", r"backbone.body.\1"),
        (r"backbone\.1\.row_embed\.weight", "tokens.position.row"),
        (r"backbone\.1\.col_embed\.weight", "tokens.position.column"),
        (r"input_proj\.(.+)", r"neck.projections.0.0.\1"),
        (encoder + r"self_attn\.in_proj_(.+)", r"encoder.layers.\1.read.attention.in_proj.\2"),
        (encoder + r"self_attn\.out_proj\.(.+)", r"encoder.layers.\1.read.attention.out_proj.\2"),
        (encoder + r"(linear\d\..+)", r"encoder.layers.\1.ffn.\2"),
        (r"transformer\.encoder\.norm\.(.+)", r"encoder.norm.\1"),
        (decoder + r"self_attn\.in_proj_(.+)", r"layers.\1.self_attention.attention.in_proj.\2"),
        (decoder + r"self_attn\.out_proj\.(.+)", r"layers.\1.self_attention.attention.out_proj.\2"),
        (decoder + r"multihead_attn\.in_proj_(.+)", r"layers.\1.read.attention.in_proj.\2"),
        (decoder + r"multihead_attn\.out_proj\.(.+)", r"layers.\1.read.attention.out_proj.\2"),
        (decoder + r"(linear\d\..+)", r"layers.\1.ffn.\2"),
        (r"transformer\.decoder\.norm\.(.+)", r"norm.\1"),
        (r"query_embed\.weight", "queries.position"),
        (r"class_embed\.(.+)", r"heads.0.classes.\1"),
        (r"bbox_embed\.layers\.(.+)", r"heads.0.boxes.layers.\1"),
    ]
    rules += [(encoder + rf"{theirs}\.(.+)", rf"encoder.layers.\1.{ours}.\2") for theirs, ours in _ENCODER.items()]
    rules += [(decoder + rf"{theirs}\.(.+)", rf"layers.\1.{ours}.\2") for theirs, ours in _DECODER.items()]
    return rules


def options(tensors) -> tuple[int, dict]:
    """The class count (without "no object") and our options, as the tensors show them; DC5 has the same tensors and must be said."""

    def layers(part: str) -> int:
        return 1 + max(int(k.split(".")[3]) for k in tensors if k.startswith(f"transformer.{part}.layers."))

    queries, dim = tensors["query_embed.weight"].shape
    return len(tensors["class_embed.bias"]) - 1, {
        "num_queries": queries,
        "hidden_dim": dim,
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "ffn_dim": len(tensors["transformer.encoder.layers.0.linear1.bias"]),
        "position": "learned" if "backbone.1.row_embed.weight" in tensors else "sine",
        "pre_norm": "transformer.encoder.norm.weight" in tensors,
        "backbone": "resnet101" if "backbone.0.body.layer3.22.conv1.weight" in tensors else "resnet50",
    }
