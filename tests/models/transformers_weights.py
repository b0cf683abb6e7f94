"""The same small or large model twice: one of `transformers`, one of ours with its weights. For the parity test and the benchmark."""

import copy
from typing import Any

from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, DetrConfig, DetrForObjectDetection

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from boxquery.official import fill
from boxquery.official.transformers import module_of
from boxquery.official.transformers.patterns import packed

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
    said = {option: value for option, value in options.items() if value != "paper"}  # which is their default, too
    given = {key: value for option, value in said.items() for key in OPTIONS.get(option, ()) if key in known}
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
    fill(model, packed(peer.state_dict()), module_of(name))
    return model


def labels(targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Our targets under their names."""
    return [{"class_labels": t["labels"], "boxes": t["boxes"]} for t in targets]
