"""Count parameters and multiply-adds of every model and preset into src/boxquery/models/sizes.json.

    python benchmarks/sizes.py

Counted on shapes alone (PyTorch's meta device), one image, matrix products, convolutions and attention; 800 x 1333 for what is published
with images of that size, a square of the preset's own size for the others.
"""

import json
from importlib import import_module

import torch
from torch.utils.flop_counter import FlopCounterMode

import boxquery as bq
from boxquery.flags import OUR_PRESETS
from boxquery.models import HERE
from boxquery.models.recipes import Preset

CLASSES = 91


def count(name: str, preset: str) -> dict[str, float | int | str]:
    """``parameters``, ``gflops`` (a multiply-add counts once, as the papers count) and the ``image`` they are counted at."""
    recipe = presets(name)[preset].recipe
    height, width = (800, 1333) if preset not in OUR_PRESETS and not recipe.square else (recipe.image_size, recipe.image_size)
    with torch.device("meta"), torch.no_grad():
        model = bq.create_model(name, classes=CLASSES, preset=preset).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as flops:
            model(torch.empty(1, 3, height, width), last_only=True)
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "gflops": round(flops.get_total_flops() / 2e9, 2), "image": f"{height} x {width}"}


def presets(name: str) -> dict[str, Preset]:
    return import_module(f"boxquery.models.{name.replace('-', '_')}").PRESETS


def every() -> dict[str, dict[str, dict]]:
    return {name: {preset: count(name, preset) for preset in presets(name)} for name in bq.list_models()}


if __name__ == "__main__":
    (HERE / "sizes.json").write_text(json.dumps(every(), indent=1) + "\n", encoding="utf-8")
