"""What the authors' key names have in common: all grew from facebookresearch/detr."""

from __future__ import annotations

import re

ENCODER = r"transformer\.encoder\.layers\.(\d+)\."
DECODER = r"transformer\.decoder\.layers\.(\d+)\."

Rules = list[tuple[str, str]]


def backbone() -> Rules:
    """Most keep backbone and positions in a sequence; Anchor DETR has the backbone alone."""
    return [(r"backbone\.(?:0\.)?body\.(.+)", r"backbone.body.\1")]


def norms(layer: str, ours: str, names: dict[str, str]) -> Rules:
    """Their norms of a layer (a pattern with the layer's number) -> our residuals."""
    return [(rf"{layer}{theirs}\.(.+)", rf"{ours}.\1.{name}.norm.\2") for theirs, name in names.items()]


def encoder() -> Rules:
    """Feed-forward network and norms of an encoder layer."""
    rules = norms(ENCODER, "encoder.layers", {"norm1": "read_residual", "norm2": "ffn_residual"})
    return [*rules, (ENCODER + r"((?:linear\d|activation)\..+)", r"encoder.layers.\1.ffn.\2")]


def decoder(order: tuple[str, str, str] = ("norm1", "norm2", "norm3")) -> Rules:
    """Feed-forward network and norms of a decoder layer; ``order``: their norms after self-attention, cross-attention and FFN."""
    rules = norms(DECODER, "layers", dict(zip(order, ("self_residual", "read_residual", "ffn_residual"), strict=True)))
    return [*rules, (DECODER + r"((?:linear\d|activation)\..+)", r"layers.\1.ffn.\2")]


def multihead_attention(theirs: str, ours: str) -> Rules:
    """Attention with one in-projection; both arguments are prefixes of its tensors' names."""
    return [(rf"{theirs}\.in_proj_(.+)", rf"{ours}.in_proj.\2"), (rf"{theirs}\.out_proj\.(.+)", rf"{ours}.out_proj.\2")]


def dense_encoder() -> Rules:
    """DETR's encoder."""
    return encoder() + multihead_attention(ENCODER + "self_attn", r"encoder.layers.\1.read.attention")


def self_attention() -> Rules:
    """DETR's self-attention among queries."""
    return multihead_attention(DECODER + "self_attn", r"layers.\1.self_attention.attention")


def conditional_self_attention() -> Rules:
    """Self-attention with separate projections of content and position (Conditional DETR)."""
    names = {
        "sa_qcontent_proj": "query_content", "sa_qpos_proj": "query_position", "sa_kcontent_proj": "key_content",
        "sa_kpos_proj": "key_position", "sa_v_proj": "value", r"self_attn\.out_proj": "out_proj",
    }  # fmt: skip
    return [(rf"{DECODER}{theirs}\.(.+)", rf"layers.\1.self_attention.{ours}.\2") for theirs, ours in names.items()]


def conditional_cross_attention() -> Rules:
    """Cross-attention with separate projections of content and position (Conditional DETR)."""
    names = {
        "ca_qcontent_proj": "query_content", "ca_qpos_proj": "query_position", "ca_kcontent_proj": "key_content",
        "ca_kpos_proj": "key_place", "ca_v_proj": "value", "ca_qpos_sine_proj": "query_place", r"cross_attn\.out_proj": "out_proj",
    }  # fmt: skip
    return [(rf"{DECODER}{theirs}\.(.+)", rf"layers.\1.read.{ours}.\2") for theirs, ours in names.items()]


def _single_scale(*attention: tuple[str, str]) -> Rules:
    """A transformer with DETR's encoder and one head, around the attention of its decoder."""
    return [
        *backbone(),
        (r"input_proj\.(.+)", r"neck.projections.0.0.\1"),
        *dense_encoder(),
        *attention,
        *decoder(),
        (r"transformer\.decoder\.norm\.(.+)", r"norm.\1"),
        (r"class_embed\.(.+)", r"heads.0.classes.\1"),
        (r"(?:transformer\.decoder\.)?bbox_embed\.layers\.(.+)", r"heads.0.boxes.layers.\1"),
    ]


def detr_transformer() -> Rules:
    """DETR's transformer with its queries."""
    cross_attention = multihead_attention(DECODER + "multihead_attn", r"layers.\1.read.attention")
    return [*_single_scale(*self_attention(), *cross_attention), (r"query_embed\.weight", "queries.position")]


def dab_transformer() -> Rules:
    """The transformer of DAB-DETR with its anchors, which DN-DETR has, too."""
    return [
        *conditional_transformer(),
        (r"transformer\.encoder\.query_scale\.(.+)", r"encoder.place.scale.\1"),
        (r"transformer\.decoder\.ref_point_head\.(.+)", r"place.position.\1"),
        (r"transformer\.decoder\.ref_anchor_head\.(.+)", r"place.size.\1"),
        (r"refpoint_embed\.weight", "queries.anchors"),
    ]


def conditional_transformer() -> Rules:
    """The transformer of Conditional DETR, which DAB-DETR builds on."""
    scale = (r"transformer\.decoder\.query_scale\.(.+)", r"place.scale.\1")
    return [*_single_scale(*conditional_self_attention(), *conditional_cross_attention()), scale]


def deformable_attention(layer: str = DECODER + "cross_attn", ours: str = r"layers.\1.read") -> Rules:
    """Deformable attention (Deformable DETR)."""
    names = r"(sampling_offsets|attention_weights|value_proj)"
    return [(rf"{layer}\.{names}\.(.+)", rf"{ours}.\2.\3"), (rf"{layer}\.output_proj\.(.+)", rf"{ours}.out_proj.\2")]


def deformable_encoder() -> Rules:
    """Deformable DETR's encoder."""
    level = (r"transformer\.level_embed", "tokens.level_embedding")
    return [level, *encoder(), *deformable_attention(ENCODER + "self_attn", r"encoder.layers.\1.read")]


def deformable_transformer() -> Rules:
    """The transformer of Deformable DETR; norms are not numbered in the order of use."""
    neck = (r"input_proj\.(.+)", r"neck.projections.\1")
    return [*backbone(), neck, *deformable_encoder(), *self_attention(), *deformable_attention(), *decoder(("norm2", "norm1", "norm3"))]


def proposals() -> Rules:
    """What scores the encoder's tokens (Deformable DETR in two stages), without its head."""
    return [
        (r"transformer\.enc_output\.(.+)", r"queries.memory_proj.\1"),
        (r"transformer\.enc_output_norm\.(.+)", r"queries.memory_norm.\1"),
    ]


def head_per_layer() -> Rules:
    """A head for every layer, also listed under the decoder."""
    return [
        (r"(?:transformer\.decoder\.)?class_embed\.(\d+)\.(.+)", r"heads.\1.classes.\2"),
        (r"(?:transformer\.decoder\.)?bbox_embed\.(\d+)\.(.+)", r"heads.\1.boxes.\2"),
    ]


def class_rows(tensors, others: int = 0) -> int | None:
    """The class count of the (first) class head, whose last ``others`` rows are no classes; None if the file has no such head."""
    return next((len(v) - others for k, v in tensors.items() if re.fullmatch(r"(transformer\.)?class_embed\.(0\.)?bias", k)), None)


def split_labels(model, tensors, last: str | None = None) -> tuple[dict, list[str]]:
    """Class embeddings of denoising, with a row more than there are classes -> those of the classes, and that row as ``last``, if it is
    ever looked up; and what was dropped.

    Those of the classes are dropped where the model has no denoising, or the file no class head: they are then of other classes.
    """
    name = "label_enc.weight"
    if name not in tensors:
        return tensors, []
    labels, kept, dropped = tensors[name], {key: value for key, value in tensors.items() if key != name}, []
    if class_rows(tensors) is None or "queries.denoising.labels" not in model.state_dict():
        dropped.append(f"{name}[:{len(labels) - 1}]")
    else:
        kept[name] = labels[:-1]
    if last is None:
        dropped.append(f"{name}[{len(labels) - 1}]")
    else:
        kept[last] = labels[-1:]
    return kept, dropped


def width(tensors) -> int:
    """The number of channels in the transformer."""
    return tensors["transformer.decoder.layers.0.linear1.weight"].shape[1]


def sizes(tensors, layer: str = "transformer.{}.layers.", ffn: str = "linear1.bias") -> dict:
    """The options that every paper has, as read from the tensors."""

    def layers(part: str) -> int:
        first = layer.format(part)
        found = [int(m[1]) for k in tensors if (m := re.match(re.escape(first) + r"(\d+)\.", k))]
        if not found:
            raise KeyError(f"{first}0")
        return 1 + max(found)

    return {
        "encoder_layers": layers("encoder"),
        "decoder_layers": layers("decoder"),
        "ffn_dim": len(tensors[f"{layer.format('encoder')}0.{ffn}"]),
        "backbone": "resnet101" if any(k.endswith("body.layer3.22.conv1.weight") for k in tensors) else "resnet50",
    }


def deformable_sizes(tensors) -> dict:
    """The options of papers with deformable attention, as read from the tensors; eight heads are taken for granted."""
    name = "transformer.level_embed"
    levels, dim = tensors[name].shape if name in tensors else (1, width(tensors))
    offsets = len(tensors["transformer.encoder.layers.0.self_attn.sampling_offsets.bias"])
    return {**sizes(tensors), "hidden_dim": dim, "levels": levels, "points": offsets // (8 * levels * 2)}
