"""fundamentalvision/Deformable-DETR (Apache-2.0): the keys of its released checkpoints."""

CONSTANTS = (r".*\.num_batches_tracked",)

#: our residual that holds each of the authors' norms; theirs are not numbered in the order of use
_ENCODER = {"norm1": "read_residual.norm", "norm2": "ffn_residual.norm"}
_DECODER = {"norm2": "self_residual.norm", "norm1": "read_residual.norm", "norm3": "ffn_residual.norm"}
_SAMPLED = r"(sampling_offsets|attention_weights|value_proj|output_proj)\.(.+)"


def keys(model) -> list[tuple[str, str]]:
    """Their key (a pattern) -> ours. Heads stand once a layer, also where one serves all; the last of two-stage is the encoder's."""
    layer = r"transformer\.{}\.layers\.(\d+)\."
    encoder, decoder = layer.format("encoder"), layer.format("decoder")
    rules = [
        (r"backbone\.0\.body\.(.+)", r"backbone.body.\1"),
        (r"input_proj\.(.+)", r"neck.projections.\1"),
        (r"transformer\.level_embed", "tokens.level_embedding"),
        (r"query_embed\.weight", "queries.embedding"),
        (r"transformer\.reference_points\.(.+)", r"queries.reference_points.\1"),
        (r"transformer\.enc_output\.(.+)", r"queries.memory_proj.\1"),
        (r"transformer\.enc_output_norm\.(.+)", r"queries.memory_norm.\1"),
        (r"transformer\.pos_trans\.(.+)", r"queries.query_proj.\1"),
        (r"transformer\.pos_trans_norm\.(.+)", r"queries.query_norm.\1"),
        (encoder + r"(linear\d\..+)", r"encoder.layers.\1.ffn.\2"),
        (decoder + r"self_attn\.in_proj_(.+)", r"layers.\1.self_attention.attention.in_proj.\2"),
        (decoder + r"self_attn\.out_proj\.(.+)", r"layers.\1.self_attention.attention.out_proj.\2"),
        (decoder + r"(linear\d\..+)", r"layers.\1.ffn.\2"),
        (encoder + r"self_attn\.output_proj\.(.+)", r"encoder.layers.\1.read.out_proj.\2"),
        (decoder + r"cross_attn\.output_proj\.(.+)", r"layers.\1.read.out_proj.\2"),
        (encoder + r"self_attn\." + _SAMPLED, r"encoder.layers.\1.read.\2.\3"),
        (decoder + r"cross_attn\." + _SAMPLED, r"layers.\1.read.\2.\3"),
    ]
    rules += [(encoder + rf"{theirs}\.(.+)", rf"encoder.layers.\1.{ours}.\2") for theirs, ours in _ENCODER.items()]
    rules += [(decoder + rf"{theirs}\.(.+)", rf"layers.\1.{ours}.\2") for theirs, ours in _DECODER.items()]
    proposing = len(model.layers)
    for prefix in ("", r"transformer\.decoder\."):
        for theirs, ours in (("class_embed", "classes"), (r"bbox_embed", "boxes")):
            rules.append((rf"{prefix}{theirs}\.{proposing}\.(.+)", rf"queries.head.{ours}.\1"))
            each = r"heads.\1" if len(model.heads) > 1 else "heads.0"
            rules.append((rf"{prefix}{theirs}\.(\d+)\.(.+)", rf"{each}.{ours}.\2"))
    return rules


def options(tensors) -> tuple[int, dict]:
    """The class count and our options, as the tensors show them; DC5 has the same tensors and must be said."""

    def layers(part: str) -> int:
        return 1 + max(int(k.split(".")[3]) for k in tensors if k.startswith(f"transformer.{part}.layers."))

    first, second = (tensors[f"bbox_embed.{i}.layers.2.bias"] for i in (0, 1))
    two_stage = "transformer.enc_output.weight" in tensors
    levels, dim = tensors["transformer.level_embed"].shape if "transformer.level_embed" in tensors else (1, 256)
    offsets = len(tensors["transformer.encoder.layers.0.self_attn.sampling_offsets.bias"])
    return len(tensors["class_embed.0.bias"]), {
        "num_queries": 300 if two_stage else len(tensors["query_embed.weight"]),
        "hidden_dim": dim,
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "ffn_dim": len(tensors["transformer.encoder.layers.0.linear1.bias"]),
        "levels": levels,
        "points": offsets // (8 * levels * 2),
        "box_refine": not bool(first.equal(second)),
        "two_stage": two_stage,
        "backbone": "resnet101" if "backbone.0.body.layer3.22.conv1.weight" in tensors else "resnet50",
    }
