"""megvii-research/AnchorDETR (Apache-2.0): the keys of its released checkpoints."""

from boxquery.official.patterns import backbone, class_rows, multihead_attention, norms, sizes

ENCODER, DECODER = (rf"transformer\.{part}_layers\.(\d+)\." for part in ("encoder", "decoder"))
#: without rows and columns nothing reads the positions of an axis
CONSTANTS = (r"transformer\.adapt_pos1d\..+",)


def keys(model) -> list[tuple[str, str]]:
    """The authors' keys (patterns) -> ours."""
    read = "read" if model.config["options"]["attention"] == "rcda" else "read.attention"
    return [
        *backbone(),
        (r"input_proj\.0\.(.+)", r"neck.projections.0.\1"),
        *multihead_attention(ENCODER + "self_attn", rf"encoder.layers.\1.{read}"),
        *norms(ENCODER, "encoder.layers", {"norm1": "read_residual", r"ffn\.norm2": "ffn_residual"}),
        (ENCODER + r"ffn\.(linear\d\..+)", r"encoder.layers.\1.ffn.\2"),
        *multihead_attention(DECODER + "self_attn", r"layers.\1.self_attention.attention"),
        *multihead_attention(DECODER + "cross_attn", rf"layers.\1.{read}"),
        *norms(DECODER, "layers", {"norm2": "self_residual", "norm1": "read_residual", r"ffn\.norm2": "ffn_residual"}),
        (DECODER + r"ffn\.(linear\d\..+)", r"layers.\1.ffn.\2"),
        (r"transformer\.adapt_pos2d\.0\.(.+)", r"tokens.position.point.layers.0.\1"),
        (r"transformer\.adapt_pos2d\.2\.(.+)", r"tokens.position.point.layers.1.\1"),
        (r"transformer\.adapt_pos1d\.0\.(.+)", r"tokens.position.axis.layers.0.\1"),
        (r"transformer\.adapt_pos1d\.2\.(.+)", r"tokens.position.axis.layers.1.\1"),
        (r"transformer\.pattern\.weight", "queries.patterns"),
        (r"transformer\.position\.weight", "queries.points"),
        # one head for all layers, listed once per layer
        (r"transformer\.class_embed\.\d+\.(.+)", r"heads.0.classes.\1"),
        (r"transformer\.bbox_embed\.\d+\.layers\.(.+)", r"heads.0.boxes.layers.\1"),
    ]


def options(tensors) -> tuple[int | None, dict]:
    """The class count and our options, as read from the tensors; C5 and DC5 (the default) have the same tensors: C5 must be given."""
    patterns, dim = tensors["transformer.pattern.weight"].shape
    packed_rows = len(tensors["transformer.decoder_layers.0.cross_attn.in_proj_bias"])
    return class_rows(tensors), {
        **sizes(tensors, "transformer.{}_layers.", "ffn.linear1.bias"),
        "num_queries": len(tensors["transformer.position.weight"]),
        "patterns": patterns,
        "hidden_dim": dim,
        "attention": "rcda" if packed_rows == 5 * dim else "dense",
    }
