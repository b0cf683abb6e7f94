"""Folders as Hugging Face's transformers writes them, with random weights: small configurations that differ from the defaults."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tests.models.builders import shaken

NAMES = ("cat", "N/A", "dog", "owl", "traffic light")
RESNET: dict[str, Any] = {"embedding_size": 64, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1], "layer_type": "basic"}
BOTTLENECK: dict[str, Any] = {"embedding_size": 64, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1], "layer_type": "bottleneck"}
SMALL: dict[str, Any] = {
    "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 7,
}  # fmt: skip


def resnet(values: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"use_timm_backbone": False, "backbone_config": transformers.ResNetConfig(**values, **more)}


def real_time(layer_type: str, hidden_sizes: list[int], **more: Any) -> dict[str, Any]:
    """RT-DETR, whose own ResNet is the only backbone that is released with it."""
    backbone = transformers.RTDetrResNetConfig(
        embedding_size=64, hidden_sizes=hidden_sizes, depths=[1, 2, 1, 1], layer_type=layer_type, out_indices=[2, 3, 4]
    )
    width = more.get("encoder_hidden_dim", 256)
    return {
        "backbone_config": backbone, "encoder_in_channels": hidden_sizes[1:], "decoder_in_channels": [width] * 3, "encoder_layers": 1,
        **more,
    }  # fmt: skip


TIMM: dict[str, Any] = {"use_timm_backbone": True, "backbone": "resnet10t"}
LEVELS = {"out_features": ["stage2", "stage3", "stage4"]}
#: timm's hgnetv2_b0
HGNET: dict[str, Any] = {
    "stem_channels": [3, 16, 16], "stage_in_channels": [16, 64, 256, 512], "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024], "hidden_sizes": [64, 256, 512, 1024], "stage_num_blocks": [1, 1, 2, 1],
    "stage_downsample": [False, True, True, True], "stage_light_block": [False, False, True, True], "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [3, 3, 3, 3], "use_learnable_affine_block": True,
}  # fmt: skip
#: name of a case -> kind of the library, and what its configuration has besides ``SMALL``
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "detr": ("Detr", {"d_model": 64, **TIMM}),
    "detr-resnet": ("Detr", {"d_model": 32, **resnet(RESNET, out_features=["stage4"])}),
    "detr-bottleneck": ("Detr", {"d_model": 32, **resnet(BOTTLENECK, out_features=["stage4"])}),
    "detr-learned": ("Detr", {"d_model": 64, "position_embedding_type": "learned", **TIMM}),
    "detr-dilated": ("Detr", {"d_model": 64, "dilation": True, **TIMM}),
    "conditional-detr": ("ConditionalDetr", {"d_model": 64, **TIMM}),
    "conditional-detr-learned": ("ConditionalDetr", {"d_model": 64, "position_embedding_type": "learned", **TIMM}),
    "conditional-detr-resnet": ("ConditionalDetr", {"d_model": 32, **resnet(RESNET, out_features=["stage4"])}),
    "deformable-detr": ("DeformableDetr", {"d_model": 64, "encoder_n_points": 2, "decoder_n_points": 2, **TIMM}),
    "deformable-detr-refined": ("DeformableDetr", {"d_model": 64, "with_box_refine": True, **resnet(RESNET, **LEVELS)}),
    "deformable-detr-two-stage": (
        "DeformableDetr",
        {"d_model": 64, "with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 9, **resnet(RESNET, **LEVELS)},
    ),
    "deformable-detr-one-level": ("DeformableDetr", {"d_model": 64, "num_feature_levels": 1, **resnet(RESNET, out_features=["stage4"])}),
    "deformable-detr-five-levels": ("DeformableDetr", {"d_model": 64, "num_feature_levels": 5, **resnet(RESNET, **LEVELS)}),
    "dab-detr": ("DabDetr", {"hidden_size": 64, **TIMM}),
    "rt-detr": ("RTDetr", {**real_time("bottleneck", [32, 64, 96, 128], encoder_hidden_dim=48, hidden_expansion=0.6), "d_model": 64}),
    "rt-detr-basic": (
        "RTDetr",
        real_time("basic", [64, 24, 32, 40], encoder_hidden_dim=32, d_model=32, num_denoising=0, decoder_n_points=2),
    ),
    "rt-detr-v2": ("RTDetrV2", real_time("basic", [64, 24, 32, 40], encoder_hidden_dim=32, d_model=32, decoder_offset_scale=0.7)),
    "rt-detr-v2-discrete": (
        "RTDetrV2",
        real_time("bottleneck", [32, 64, 96, 128], encoder_hidden_dim=32, d_model=32, decoder_method="discrete"),
    ),
    "dab-detr-patterns": ("DabDetr", {"hidden_size": 32, "num_patterns": 2, **resnet(RESNET, out_features=["stage4"])}),
    "d-fine": (
        "DFine",
        {
            "backbone_config": transformers.HGNetV2Config(**{**HGNET, "out_indices": [2, 3, 4]}),
            "encoder_in_channels": [256, 512, 1024],
            "encoder_hidden_dim": 48,
            "d_model": 32,
            "decoder_in_channels": [48, 48, 48],
            "decoder_n_points": [3, 6, 3],
            "decoder_ffn_dim": 40,
            "depth_mult": 0.34,
            "hidden_expansion": 0.5,
        },
    ),
    "d-fine-resnet": (
        "DFine",
        {**real_time("basic", [64, 24, 32, 40], encoder_hidden_dim=32, d_model=32), "decoder_n_points": [3, 6, 3], "num_denoising": 0},
    ),
    "rt-detr-plain-resnet": (
        "RTDetr",
        real_time("basic", [64, 24, 32, 40], encoder_hidden_dim=32, d_model=32, num_denoising=0) | resnet(RESNET, out_indices=[2, 3, 4]),
    ),
    "d-fine-two-levels": (
        "DFine",
        {
            "backbone_config": transformers.HGNetV2Config(**{**HGNET, "out_indices": [3, 4]}),
            "encoder_in_channels": [512, 1024],
            "feat_strides": [16, 32],
            "encoder_hidden_dim": 32,
            "d_model": 32,
            "num_feature_levels": 2,
            "decoder_in_channels": [32, 32],
            "decoder_n_points": [6, 6],
            "encode_proj_layers": [1],
            "num_denoising": 0,
        },
    ),
}


def model(case: str, names: tuple[str, ...] = NAMES, **more: Any) -> nn.Module:
    """A model of the library with weights that are all random, in evaluation mode."""
    kind, values = CASES[case]
    labels = dict(enumerate(names))
    config_class, model_class = (getattr(transformers, f"{kind}{end}") for end in ("Config", "ForObjectDetection"))
    config = config_class(**{**SMALL, **values, **more}, id2label=labels, label2id={name: i for i, name in labels.items()})
    torch.manual_seed(0)
    made = model_class(config)
    constants = {name: p.clone() for name, p in made.named_parameters() if not p.requires_grad}
    shaken(made, 0.05).load_state_dict(constants, strict=False)
    for key, buffer in made.named_buffers():
        if key.endswith("running_mean"):
            buffer.normal_(std=0.1)
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return made.eval()


def save(made: Any, folder: Path, *, version: int = 4, processor: str | None = "DetrImageProcessor", **sizes: Any) -> Path:
    """``save_pretrained`` in the names of a version of the library, with its preprocessing; the library's remarks are left out."""
    transformers.utils.logging.disable_progress_bar()
    made.save_pretrained(folder, save_original_format=version == 4, **sizes)
    if processor is not None:
        getattr(transformers, processor)().save_pretrained(folder)
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a file of JSON in place."""
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
