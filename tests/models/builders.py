"""Small models and batches for the sweeps: every name in ``list_models()``, with the variants that take another path through the code."""

from dataclasses import fields
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

import boxquery as bq
from boxquery.models.base import DetectionTransformer
from boxquery.models.options import Options
from boxquery.models.recipes import Preset

CLASSES = 3

#: Where a model has no "tiny" preset yet: the published one, made small.
SMALL: dict[str, Any] = {
    "backbone": "resnet10t",
    "hidden_dim": 64,
    "heads": 4,
    "ffn_dim": 128,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 12,
}

#: What makes ``tiny`` half as wide or less: what these tests ask does not depend on the width.
NARROW: dict[str, Any] = {
    "hidden_dim": 64,
    "ffn_dim": 64,
    "backbone_options": {"layers": (1, 1, 1, 1), "channels": (16, 24, 32, 48), "stem_type": "deep", "stem_width": 8},
}

#: Options that lead through code of their own; a model that is not listed is swept as it is.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "detr": {"detr": {"pre_norm": False}, "detr-pre-norm": {"pre_norm": True}},
    "anchor-detr": {
        "anchor-detr": {},
        "anchor-detr-dense": {"attention": "dense"},
        "anchor-detr-grid": {"spatial_prior": "grid", "patterns": 1},
    },
    "dab-detr": {"dab-detr": {}, "dab-detr-patterns": {"patterns": 2, "fixed_xy": True}},
    "dab-deformable-detr": {"dab-deformable-detr": {}, "dab-deformable-detr-fixed": {"fixed_xy": True}},
    "dn-detr": {"dn-detr": {}, "dn-detr-one-to-one": {"matching": "one-to-one"}},
    "dino-detr": {"dino-detr": {}, "dino-detr-one-to-one": {"matching": "one-to-one"}},
    "d-fine": {"d-fine": {}, "d-fine-published": {"encoder": "paper", "points": [2, 4, 2]}},
    "rt-detr": {"rt-detr": {}, "rt-detr-published": {"encoder": "paper"}},
    "rt-detr-v2": {"rt-detr-v2": {"points": [2, 4, 3]}, "rt-detr-v2-discrete": {"sampling": "discrete", "class_agnostic": True}},
    "deformable-detr": {
        "deformable-detr-points": {"box_refine": False, "two_stage": False, "matching": "one-to-one"},
        "deformable-detr-refined": {"box_refine": True, "two_stage": False, "matching": "one-to-one"},
        "deformable-detr-two-stage": {"box_refine": True, "two_stage": True, "matching": "one-to-one"},
        "deformable-detr-denoising": {"box_refine": True, "two_stage": True, "matching": "denoising", "denoising": 20},
    },
    "sparse-rcnn": {"sparse-rcnn": {"levels": 4}, "sparse-rcnn-encoder": {"levels": 2, "encoder_layers": 1, "position": "sine"}},
    "sam-detr": {
        "sam-detr": {},
        "sam-detr-gaussian": {"smca": True},
        "sam-detr-resampled": {"cross_attention": False},
        "sam-detr-levels": {"levels": 3, "dilation": False},
    },
    "smca-detr": {
        "smca-detr": {"dynamic_scale": "type3"},
        "smca-detr-type1": {"dynamic_scale": "type1"},
        "smca-detr-type2": {"dynamic_scale": "type2"},
        "smca-detr-type4": {"dynamic_scale": "type4"},
        "smca-detr-levels": {"levels": 3, "dilation": False, "centre_stride": 32, "encoder_layers": 3},
    },
}


def presets(name: str) -> dict[str, Preset]:
    """Every preset of a model, whatever they are called."""
    return import_module(f"boxquery.models.{name.replace('-', '_')}").PRESETS


def options_of(name: str) -> Options:
    """The published options of a model."""
    return presets(name)["paper"].options


def has_option(name: str, *options: str) -> bool:
    return set(options) <= {f.name for f in fields(options_of(name))}


def systems() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of the system -> (model, options), for every model and variant."""
    return {system: (name, options) for name in bq.list_models() for system, options in VARIANTS.get(name, {name: {}}).items()}


def create(name: str, classes: int = CLASSES, seed: int = 0, **options: Any) -> DetectionTransformer:
    """The smallest model of that name, with fixed start values."""
    torch.manual_seed(seed)
    if "tiny" in presets(name):
        narrow = {key: value for key, value in NARROW.items() if key != "backbone_options" or "backbone" not in options}
        return bq.create_model(name, classes=classes, preset="tiny", **{**narrow, **options})
    return bq.create_model(name, classes=classes, **{**SMALL, **options})


def tiny_width(name: str) -> dict[str, Any]:
    """What ``create`` makes narrower, as ``tiny`` has it."""
    tiny = presets(name)["tiny"].options
    return {option: getattr(tiny, option) for option in NARROW}


def shaken(model: DetectionTransformer, by: float = 0.02) -> DetectionTransformer:
    """The model with noise on every parameter, so that nothing is zero only because training starts there."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * by)
    return model


def batch(*sizes: tuple[int, int], dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random images of the given (height, width), padded with zeros on the right and below, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width, dtype=dtype)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        images[i, :, :h, :w] = torch.randn(3, h, w, generator=generator).to(dtype)
        mask[i, :h, :w] = False
    return images, mask


def objects(*counts: int, dtype: torch.dtype = torch.float32, classes: int = CLASSES, seed: int = 2) -> list[dict[str, Tensor]]:
    """Random targets, so many in each image."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for count in counts:
        centre = 0.3 + 0.4 * torch.rand(count, 2, generator=generator)
        size = 0.1 + 0.4 * torch.rand(count, 2, generator=generator)
        out.append({"labels": torch.randint(classes, (count,), generator=generator), "boxes": torch.cat((centre, size), -1).to(dtype)})
    return out
