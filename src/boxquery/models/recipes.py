"""Presets: sizes of a model, and the recipes that train them. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from boxquery.augment import DETR, Augment
from boxquery.models.options import Options


@dataclass(frozen=True)
class Recipe:
    """How a preset is trained, as published (``paper``) or as chosen by measurement (``small``, ``tiny``).

    Attributes:
        image_size: short side in pixels; the long side is at most 5/3 of it (DETR's 800 and 1333).
        square: images are resized to squares of that side, whatever their shape, so that no batch is padded.
        group_shapes: batches are of images with similar ratios of width to height, so that less of them is padding.
        normalize: pixels are normalised by ImageNet's mean and standard deviation; False: they stay in 0..1.
        epochs, batch_size: passes over the data; images per process and step.
        lr, backbone_lr: learning rates of transformer and backbone.
        optimizer: "adamw", or "sgd" with a momentum of 0.9.
        low_lr_factor, query_lr_factor: factors on ``lr`` for parameters that a paper trains at a lower rate (``Model.low_lr_patterns``),
            and for what is learned per query (``Model.query_parameters``).
        decay: "step" (to a tenth after ``decay_at`` of the steps) or "cosine" (to a hundredth).
        warmup: share of the steps in which the rate rises.
        ema: decay of the moving average that is evaluated and saved; 0: none.
        clip: largest norm of the gradient; 0: not clipped.
        augment: what is done to the images.
    """

    image_size: int = 800
    square: bool = False
    group_shapes: bool = False
    normalize: bool = True
    epochs: int = 300
    batch_size: int = 2
    optimizer: str = "adamw"
    lr: float = 1e-4
    backbone_lr: float = 1e-5
    low_lr_factor: float = 0.1
    query_lr_factor: float = 1.0
    weight_decay: float = 1e-4
    decay: str = "step"
    decay_at: float = 2 / 3
    warmup: float = 0.0
    ema: float = 0.0
    clip: float = 0.1
    augment: Augment = DETR


#: from random weights on little data, by measurement (docs/LOG.md): small batches, one rate for all, a moving average, half a cosine
SMALL_DATA = Recipe(
    image_size=240,
    group_shapes=True,
    epochs=150,
    batch_size=4,
    lr=1e-3,
    backbone_lr=1e-3,
    low_lr_factor=1.0,
    query_lr_factor=10.0,
    decay="cosine",
    warmup=0.02,
    ema=0.99,
    augment=Augment(scales=(0.8, 0.9, 1.0, 1.1, 1.2)),
)

#: the same for images of about 160 pixels and a run of minutes, too short for augmentation to help
TINY_DATA = replace(SMALL_DATA, image_size=160, epochs=20, augment=Augment(scales=(1.0,), crop=0.0))

#: a ResNet-18 with a deep narrow stem and half the channels: at 320 x 240 a sixth of ResNet-50's cost
NARROW_RESNET18: dict[str, Any] = {"channels": (32, 64, 128, 256), "stem_type": "deep", "stem_width": 16}

#: and with one block per stage instead of two: a step of "tiny" takes a fifth less
NARROW_RESNET10: dict[str, Any] = {**NARROW_RESNET18, "layers": (1, 1, 1, 1)}


#: from weights that know much already, as of COCO: a rate at which they are not forgotten, the backbone's a tenth of it, a short moving
#: average, half a cosine (not measured yet)
FINE_TUNING = Recipe(group_shapes=True, epochs=30, batch_size=4, lr=1e-4, backbone_lr=1e-5, decay="cosine", warmup=0.05, ema=0.99)


@dataclass(frozen=True)
class Preset:
    """A size of a paper's model and how it is trained.

    Attributes:
        pretrained: the same where the backbone starts from released weights; None: nothing changes.
    """

    options: Any
    recipe: Recipe
    pretrained: Preset | None = None


def recipe_of(preset: Preset, name: str) -> Recipe:
    """By the name of ``--recipe``: the preset's own ("preset"), or "fine-tuning" on images as the preset has them."""
    own = preset.recipe
    return own if name == "preset" else replace(FINE_TUNING, image_size=own.image_size, square=own.square, normalize=own.normalize)


def narrow(options: Any, recipe: Recipe, **own: Any) -> Preset:
    """A preset whose backbone is a ResNet-18 with the options ``own``, which is cheap but of which no weights are released.

    Where weights are loaded it is the whole ResNet-18, trained at a tenth of the transformer's rate, as all papers of the family do.
    """
    released = Preset(replace(options, backbone="resnet18", backbone_options={}), replace(recipe, backbone_lr=recipe.lr / 10))
    return Preset(replace(options, backbone="resnet18", backbone_options=own), recipe, released)


#: what "small" and "tiny" change of any paper: narrow, shallow, the last stage at stride 16 for small objects
SMALL_MODEL: dict[str, Any] = {
    "dilation": True, "encoder_layers": 2, "decoder_layers": 3, "hidden_dim": 128, "ffn_dim": 512, "dropout": 0.0,
}  # fmt: skip


def presets(options: Options, recipe: Recipe, published: dict[str, Preset] | None = None, **own: Any) -> dict[str, Preset]:
    """A paper's sizes: "paper", further ones that are ``published`` by the field's names for them, and "small" and "tiny", which are ours.

    Args:
        recipe: of "paper"; where it has squares, "small" and "tiny" have them, too.
        own: options of "small" and "tiny" beside ``SMALL_MODEL``.
    """
    small = replace(options, **{**SMALL_MODEL, **own})
    small_data, tiny_data = (_squares(ours) if recipe.square else ours for ours in (SMALL_DATA, TINY_DATA))
    return {
        "paper": Preset(options, recipe),
        **(published or {}),
        "small": narrow(replace(small, num_queries=100), small_data, **NARROW_RESNET18),
        "tiny": narrow(replace(small, num_queries=40, encoder_layers=min(small.encoder_layers, 1)), tiny_data, **NARROW_RESNET10),
    }


def _squares(recipe: Recipe) -> Recipe:
    """In one size, since squares of several would be padded to each other."""
    return replace(recipe, square=True, augment=replace(recipe.augment, scales=(1.0,)))
