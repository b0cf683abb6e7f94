"""The rungs of benchmarks/recipe.py: what each variant changes of its parent. New ones are added to ``VARIANTS``.

The root is deformable-detr "small" as it was when the ladder began, written out, so that it stays what it was when the preset has changed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from boxquery.augment import DETR, Augment
from boxquery.models.recipes import Preset, Recipe

MODEL = "deformable-detr"
ROOT_OPTIONS: dict[str, Any] = {
    "backbone": "resnet18", "backbone_options": {"channels": (32, 64, 128, 256), "stem_type": "deep", "stem_width": 16},
    "num_queries": 100, "encoder_layers": 1, "decoder_layers": 3, "hidden_dim": 128, "heads": 4, "ffn_dim": 512, "dropout": 0.0,
    "levels": 3, "points": 2, "box_refine": True, "two_stage": True, "matching": "denoising", "denoising": 60,
}  # fmt: skip
ROOT_RECIPE = Recipe(
    image_size=240, epochs=150, batch_size=4, lr=1e-3, backbone_lr=1e-3, low_lr_factor=1.0, query_lr_factor=10.0, decay="cosine",
    warmup=0.02, ema=0.99, augment=Augment(scales=(0.8, 0.9, 1.0, 1.1, 1.2)),
)  # fmt: skip

#: what the preset "tiny" changes of the model
TINY: dict[str, Any] = {"backbone_options": {**ROOT_OPTIONS["backbone_options"], "layers": (1, 1, 1, 1)}, "num_queries": 40}
TWICE = "the model of the preset tiny: twice as many images in the same time"
MOSAIC = replace(ROOT_RECIPE.augment, scales=(1.0,), mosaic=0.5, mosaic_scales=(0.5, 1.0), colour=0.2)
#: what "tiny-mosaic" changes of the root's recipe
TINY_MOSAIC: dict[str, Any] = {"square": True, "image_size": 160, "lr": 5e-4, "backbone_lr": 5e-4, "augment": MOSAIC}


@dataclass(frozen=True)
class Variant:
    """A rung of the ladder.

    Attributes:
        parent: the variant that it changes; None for the root.
        options, recipe: fields of the model's options and of its ``Recipe``, in place of the parent's.
        why: what is expected of it, for the table.
        model, preset: of a root, the library's model that it is; any but the first has that preset of today.
        start: what training starts from in place of random weights: "scenes", the model of benchmarks/finetune.py.
    """

    parent: str | None
    options: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    model: str = MODEL
    preset: str = "small"
    start: str = ""


VARIANTS: dict[str, Variant] = {
    "small": Variant(None, why="the default of before"),
    "peaks": Variant("small", options={"proposals": "peaks"}, why="neighbouring cells propose the same object, and duplicates cost AP"),
    "small-square": Variant(
        "small",
        recipe={"square": True, "image_size": 256, "augment": replace(ROOT_RECIPE.augment, scales=(1.0,))},
        why="no padding, so twice as many images in the same time where shapes differ",
    ),
    "square-slow": Variant("small-square", recipe={"lr": 5e-4, "backbone_lr": 5e-4}, why="a gradient of few objects is noisy"),
    "tiny-square": Variant("small-square", options=TINY, recipe={"image_size": 160}, why=TWICE),
    "tiny-slow": Variant("square-slow", options=TINY, recipe={"image_size": 160}, why=TWICE),
    "tiny-slower": Variant("tiny-slow", recipe={"lr": 2.5e-4, "backbone_lr": 2.5e-4}, why="the same, further"),
    "tiny-224px": Variant("tiny-slow", recipe={"image_size": 224}, why="finer boxes, half as many images"),
    "tiny-uncropped": Variant(
        "tiny-slow", recipe={"augment": replace(ROOT_RECIPE.augment, scales=(1.0,), crop=0.0)}, why="a short run has no use for crops"
    ),
    "tiny-mosaic": Variant("tiny-slow", recipe={"augment": MOSAIC}, why="more objects per image, in other places"),
    "mosaic-dense": Variant("tiny-mosaic", options={"matching": "denoising+dense"}, why="every place near an object is taught"),
    "mosaic-mal": Variant("tiny-mosaic", options={"class_loss": "mal"}, why="scores that know how well the box fits"),
    "mosaic-group": Variant(
        "tiny-mosaic", options={"matching": "denoising+group", "groups": 4}, why="each object teaches four queries in place of one"
    ),
    "mosaic-peaks": Variant("tiny-mosaic", options={"proposals": "peaks"}, why="neighbouring cells propose the same object"),
    "mosaic-decay": Variant("tiny-mosaic", recipe={"weight_decay": 0.05}, why="weights that stay small generalise"),
    "mosaic-ema": Variant("tiny-mosaic", recipe={"ema": 0.998}, why="an average over five times as many steps"),
    "mosaic-mixup": Variant(
        "tiny-mosaic", recipe={"augment": replace(MOSAIC, mixup=0.15, zoom_out=0.2)}, why="the other ways of mixing images"
    ),
    "mosaic-lean": Variant(
        "tiny-mosaic",
        options={"encoder": "hybrid", "fusion_blocks": 1, "fusion_expansion": 0.5},
        why="convolutions between levels in place of sampling",
    ),
    "mosaic-batch8": Variant("tiny-mosaic", recipe={"batch_size": 8}, why="twice the objects per step, and a cheaper image"),
    "mosaic-grouped": Variant(
        "tiny-mosaic",
        recipe={"square": False, "group_shapes": True, "image_size": 144},
        why="batches of similar shapes in place of stretched images, with as many pixels",
    ),
    "mosaic-sized": Variant(
        "tiny-mosaic",
        options={"proposal_size": 0.0},
        why="first boxes as large as the median object in place of .05, .1 and .2 of the image",
    ),
    "mosaic-scenes": Variant("tiny-mosaic", start="scenes", why="weights that have learned on drawn scenes what an object and a box are"),
    "scenes-mal": Variant("mosaic-scenes", options={"class_loss": "mal"}, why="scores that know how well the box fits"),
    "mosaic-all": Variant("tiny-mosaic", recipe={"augment": replace(MOSAIC, mosaic=1.0)}, why="no image without other ones"),
    "d-fine": Variant(None, recipe=TINY_MOSAIC, model="d-fine", preset="tiny", why="the recipe of tiny-mosaic with another model"),
    "rt-detr": Variant(None, recipe=TINY_MOSAIC, model="rt-detr", preset="tiny", why="the recipe of tiny-mosaic with another model"),
    "fcos": Variant(None, model="fcos", why="many places learn each object, and NMS follows"),
}


def lineage(name: str) -> list[Variant]:
    """A variant and its ancestors, from the root on."""
    variant = VARIANTS[name]
    return [*(lineage(variant.parent) if variant.parent else []), variant]


def settings(name: str) -> dict[str, Any]:
    """Everything that a variant changes of the root, as JSON has it: recorded with its cells, which count only while it is the same."""
    merged = {key: value for rung in lineage(name) for key, value in {**rung.options, **rung.recipe}.items()}
    merged |= {"start": VARIANTS[name].start} if VARIANTS[name].start else {}
    return json.loads(json.dumps({key: _plain(value) for key, value in merged.items()}))


def _plain(value: Any) -> Any:
    """An augmentation by what it has changed of DETR's."""
    if not isinstance(value, Augment):
        return value
    return {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != getattr(DETR, f.name)}


def paper(name: str) -> SimpleNamespace:
    """What ``boxquery.models.register`` takes: the model of a variant, whose preset "small" has its options and recipe; imports torch."""
    from boxquery.models import list_baselines
    from boxquery.models import preset as known_preset
    from boxquery.models.deformable_detr import DeformableOptions

    model = lineage(name)[0].model
    start = Preset(DeformableOptions(**ROOT_OPTIONS), ROOT_RECIPE) if model == MODEL else known_preset(model, lineage(name)[0].preset)
    options, recipe = start.options, start.recipe
    for rung in lineage(name):
        options, recipe = replace(options, **rung.options), replace(recipe, **rung.recipe)
    room = "boxquery.models.baselines" if model in list_baselines() else "boxquery.models"
    module = import_module(f"{room}.{model.replace('-', '_')}")
    return SimpleNamespace(__doc__=module.__doc__, PRESETS={"small": Preset(options, recipe)}, build=module.build)


def changes(name: str) -> str:
    """What a variant changes of its parent."""
    own, parent = VARIANTS[name], settings(VARIANTS[name].parent or name)
    words = [f"{own.model}, preset {own.preset}"] if own.parent is None else []
    for key, value in {**own.options, **own.recipe}.items():
        if isinstance(value, Augment):
            start = asdict(ROOT_RECIPE.augment) if own.parent is None or "augment" not in parent else {**asdict(DETR), **parent["augment"]}
            words += [f"augment {part}={each}" for part, each in asdict(value).items() if _listed(each) != _listed(start[part])]
        else:
            words.append(f"{key}={value}")
    words += [f"started from {own.start}"] if own.start else []
    return ", ".join(words) or "nothing"


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
