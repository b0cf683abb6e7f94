"""Small baselines: every one, with channels so narrow that a step takes milliseconds."""

from typing import Any

import torch

import boxquery as bq
from boxquery.models.interface import Model

NARROW: dict[str, Any] = {
    "backbone": "resnet10t",
    "backbone_options": {"channels": (16, 16, 32, 32), "stem_width": 8, "stem_type": ""},
    "hidden_dim": 64,
}
SMALL: dict[str, dict[str, Any]] = {
    "faster-rcnn": {**NARROW, "ffn_dim": 128, "proposals": 40, "samples": 32},
    "fcos": NARROW,
    "retinanet": NARROW,
}


def create(name: str, classes: int = 3, seed: int = 0, **options: Any) -> Model:
    torch.manual_seed(seed)
    return bq.create_model(name, classes=classes, preset="tiny", **{**SMALL[name], **options})
