"""Count parameters and multiply-adds of every model and preset into src/boxquery/models/sizes.json.

    python benchmarks/sizes.py

Counted on shapes alone (PyTorch's meta device), one image, matrix products, convolutions and attention; 800 x 1333 for what is published
with images of that size, a square of the preset's own size for the others. Of models of scenes one scene of six cameras, the images as
published or of the ratio of `surround`.
"""

import json
from importlib import import_module

import torch
from torch.utils.flop_counter import FlopCounterMode

import boxquery as bq
from boxquery.data.preprocessing import Preprocessing
from boxquery.flags import OUR_PRESETS
from boxquery.models import HERE, list_scene_models
from boxquery.models.recipes import Preset

CLASSES, SCENE_CLASSES = 91, 10
CAMERAS = 6
#: (height, width) of images of nuScenes that models of scenes are published with, and of those of ``surround``
PUBLISHED, OURS = {"petr": (512, 1408), "detr3d": (900, 1600)}, (96, 160)


def count(name: str, preset: str) -> dict[str, float | int | str]:
    """``parameters``, ``gflops`` (a multiply-add counts once, as the papers count), and the ``classes`` and ``image`` they are for."""
    recipe, scenes = presets(name)[preset].recipe, name in list_scene_models()
    classes = SCENE_CLASSES if scenes else CLASSES
    if scenes:
        height, width = Preprocessing(recipe.image_size).size(*OURS) if preset in OUR_PRESETS else PUBLISHED[name]
    else:
        height, width = (800, 1333) if preset not in OUR_PRESETS and not recipe.square else (recipe.image_size, recipe.image_size)
    with torch.device("meta"), torch.no_grad():
        model = bq.create_model(name, classes=classes, preset=preset).eval().requires_grad_(False)
        with FlopCounterMode(display=False) as flops:
            if scenes:
                model(torch.empty(1, CAMERAS, 3, height, width), torch.empty(1, CAMERAS, 4, 4), last_only=True)
            else:
                model(torch.empty(1, 3, height, width), last_only=True)
    parameters = sum(p.numel() for p in model.parameters())
    image = f"{CAMERAS} x {height} x {width}" if scenes else f"{height} x {width}"
    return {"parameters": parameters, "gflops": round(flops.get_total_flops() / 2e9, 2), "classes": classes, "image": image}


def presets(name: str) -> dict[str, Preset]:
    room = "models.scenes" if name in list_scene_models() else "models"
    return import_module(f"boxquery.{room}.{name.replace('-', '_')}").PRESETS


def every() -> dict[str, dict[str, dict]]:
    return {name: {preset: count(name, preset) for preset in presets(name)} for name in [*bq.list_models(), *list_scene_models()]}


if __name__ == "__main__":
    (HERE / "sizes.json").write_text(json.dumps(every(), indent=1) + "\n", encoding="utf-8")
