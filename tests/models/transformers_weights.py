"""The same small or large model twice: one of `transformers`, one of ours with its weights. For the parity test and the benchmark."""

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, DetrConfig, DetrForObjectDetection

import boxquery as bq
from boxquery.models.base import DetectionTransformer

#: their module -> ours; q_proj, k_proj and v_proj are packed afterwards
RENAMED: list[tuple[str, str]] = [
    (r"model\.backbone\.model\.", "backbone.body."),
    (r"model\.input_projection\.", "neck.projections.0.0."),
    (r"model\.input_proj\.", "neck.projections."),
    (r"model\.level_embed$", "tokens.level_embedding"),
    (r"model\.position_embedding\.(row|column)_embeddings\.weight$", r"tokens.position.\1"),
    (r"model\.reference_points\.", "queries.reference_points."),
    (r"model\.enc_output\.", "queries.memory_proj."),
    (r"model\.enc_output_norm\.", "queries.memory_norm."),
    (r"model\.pos_trans\.", "queries.query_proj."),
    (r"model\.pos_trans_norm\.", "queries.query_norm."),
    (r"model\.decoder\.layernorm\.", "norm."),
    (r"model\.encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.read_residual.norm."),
    (r"model\.encoder\.layers\.(\d+)\.self_attn\.(?=[qkvo]_)", r"encoder.layers.\1.read.attention."),
    (r"model\.encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.read."),
    (r"model\.decoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"layers.\1.self_residual.norm."),
    (r"model\.decoder\.layers\.(\d+)\.encoder_attn_layer_norm\.", r"layers.\1.read_residual.norm."),
    (r"model\.decoder\.layers\.(\d+)\.self_attn\.", r"layers.\1.self_attention.attention."),
    (r"model\.decoder\.layers\.(\d+)\.encoder_attn\.(?=[qkvo]_)", r"layers.\1.read.attention."),
    (r"model\.decoder\.layers\.(\d+)\.encoder_attn\.", r"layers.\1.read."),
    (r"model\.encoder\.layers\.(\d+)\.", r"encoder.layers.\1."),
    (r"model\.decoder\.layers\.(\d+)\.", r"layers.\1."),
    (r"class_labels_classifier\.", "heads.0.classes."),
    (r"bbox_predictor\.", "heads.0.boxes."),
    (r"class_embed\.(\d+)\.", r"heads.\1.classes."),
    (r"bbox_embed\.(\d+)\.", r"heads.\1.boxes."),
]
#: inside a layer
INSIDE: dict[str, str] = {
    "mlp.fc1": "ffn.linear1",
    "mlp.fc2": "ffn.linear2",
    "final_layer_norm": "ffn_residual.norm",
    "output_proj": "out_proj",
    ".o_proj": ".out_proj",
}

#: our option -> theirs, where one value says it
OPTIONS: dict[str, tuple[str, ...]] = {
    "num_queries": ("num_queries", "two_stage_num_proposals"),
    "hidden_dim": ("d_model",),
    "encoder_layers": ("encoder_layers",),
    "decoder_layers": ("decoder_layers",),
    "ffn_dim": ("encoder_ffn_dim", "decoder_ffn_dim"),
    "heads": ("encoder_attention_heads", "decoder_attention_heads"),
    "dropout": ("dropout", "attention_dropout", "activation_dropout"),
    "levels": ("num_feature_levels",),
    "points": ("encoder_n_points", "decoder_n_points"),
    "box_refine": ("with_box_refine",),
    "two_stage": ("two_stage",),
    "position": ("position_embedding_type",),
    "dilation": ("dilation",),
}


def theirs(name: str, classes: int, options: dict[str, Any]) -> nn.Module:
    """The model of `transformers` with our options, random weights, eager or fused attention as it chooses by itself."""
    config_class, model_class = {
        "detr": (DetrConfig, DetrForObjectDetection),
        "deformable-detr": (DeformableDetrConfig, DeformableDetrForObjectDetection),
    }[name]
    known = vars(config_class())
    given = {key: value for option, value in options.items() for key in OPTIONS.get(option, ()) if key in known}
    # the papers' focal models weigh classes by 2 in matching; there the default is 1
    cost = {"class_cost": 2} if name == "deformable-detr" else {}
    config = config_class(use_timm_backbone=True, backbone=options["backbone"], num_labels=classes, auxiliary_loss=True, **given, **cost)
    model = model_class(config)
    if given.get("with_box_refine"):
        # one head per layer, as published, whatever the library ties by name
        model.class_embed = nn.ModuleList(copy.deepcopy(head) for head in model.class_embed)
        model.bbox_embed = nn.ModuleList(copy.deepcopy(head) for head in model.bbox_embed)
        model.model.decoder.bbox_embed = model.bbox_embed
        model.model.decoder.class_embed = model.class_embed if given.get("two_stage") else None
    return model


def ours(name: str, classes: int, options: dict[str, Any], peer: nn.Module) -> DetectionTransformer:
    """Our model with the peer's weights, each of them used."""
    model = bq.create_model(name, classes=classes, **options)
    model.freeze()
    model.load_state_dict(renamed(peer, model))
    return model


def renamed(peer: nn.Module, model: DetectionTransformer) -> dict[str, Tensor]:
    """Their tensors under our names."""
    out: dict[str, Tensor] = {}
    queries = "queries.embedding" if hasattr(model.queries, "embedding") else "queries.position"
    for key, value in peer.state_dict().items():
        if re.match(r"model\.decoder\.(class|bbox)_embed\.", key):  # the same tensors again
            continue
        pattern, to = next(((p, t) for p, t in RENAMED if re.match(p, key)), ("$", ""))
        new = queries if key == "model.query_position_embeddings.weight" else re.sub(pattern, to, key, count=1)
        for a, b in INSIDE.items():
            new = new.replace(a, b)
        if (head := re.match(r"heads\.(\d+)\.(.+)", new)) is not None:
            layer = int(head[1])
            if layer == len(model.layers):
                new = f"queries.head.{head[2]}"
            elif layer >= len(model.heads):  # one head for all, listed once a layer
                assert torch.equal(value, out[f"heads.0.{head[2]}"])
                continue
        out[new] = value
    return packed(out)


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """q_proj, k_proj, v_proj -> in_proj."""
    out = {k: v for k, v in tensors.items() if not re.search(r"\.[qkv]_proj\.", k)}
    for key in tensors:
        if ".q_proj." in key:
            out[key.replace("q_proj", "in_proj")] = torch.cat([tensors[key.replace("q_proj", f"{c}_proj")] for c in "qkv"])
    return out


def labels(targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Our targets under their names."""
    return [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
