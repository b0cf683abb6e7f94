"""What training does to its images and their boxes: every part by name, and levels of all together. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from boxquery.errors import UserError

#: parts that are the probability of something
_PROBABILITIES = ("crop", "flip", "vertical_flip", "colour", "zoom_out", "mosaic", "mixup", "plain_end")
#: parts that are the least and the largest of a range
_RANGES = ("crop_sides", "zoom_out_scales", "mosaic_scales")


@dataclass(frozen=True, slots=True)
class Augment:
    """What training does to an image; the defaults are DETR's. Parts that are off draw no random number.

    Attributes:
        scales: shortest sides to draw from, as fractions of ``image_size``.
        crop: probability of a crop before resizing, 0..1.
        crop_short: shortest sides of the image that the crop is taken from, as fractions of ``image_size``.
        crop_sides: smallest and largest side of the crop, as fractions of ``image_size``.
        flip, vertical_flip: probabilities, 0..1.
        colour: largest relative change of brightness, contrast and saturation, 0..1; hue changes by up to a fifth of it.
        zoom_out: probability that the image is shrunk onto a grey canvas (SSD's expansion), 0..1.
        zoom_out_scales: smallest and largest size of the shrunk image, as fractions of its ordinary one.
        rotation: largest angle in degrees, 0..180. Boxes enclose the rotated box, so they grow and fit more loosely than labelled ones.
        mosaic: probability of a mosaic of four images, of the size of one, 0..1.
        mosaic_scales: smallest and largest size of an image in a mosaic, as fractions of its ordinary one.
        mixup: probability that a second image is blended in; the objects of both count, 0..1.
        plain_end: share of the run at whose end images are neither mixed, rotated nor zoomed out, 0..1.
        own: a user's transform that is applied before all else: (image uint8 [3, H, W], boxes float32 [N, 4] xyxy in its pixels, labels
            int64 [N], generator) -> the first three anew.
    """

    scales: tuple[float, ...] = tuple(side / 800 for side in range(480, 801, 32))
    crop: float = 0.5
    crop_short: tuple[float, ...] = (400 / 800, 500 / 800, 600 / 800)
    crop_sides: tuple[float, ...] = (384 / 800, 600 / 800)
    flip: float = 0.5
    vertical_flip: float = 0.0
    colour: float = 0.0
    zoom_out: float = 0.0
    zoom_out_scales: tuple[float, ...] = (0.4, 1.0)
    rotation: float = 0.0
    mosaic: float = 0.0
    mosaic_scales: tuple[float, ...] = (0.4, 1.0)
    mixup: float = 0.0
    plain_end: float = 0.1
    own: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation: {name}={getattr(self, name)} is out of range; choose 0 to 1")
        if not 0 <= self.rotation <= 180:
            raise UserError(f"augmentation: rotation={self.rotation} is out of range; choose 0 to 180 degrees")
        for name in ("scales", "crop_short", *_RANGES):
            values = getattr(self, name)
            if not values or not all(0 < value < math.inf for value in values):
                raise UserError(f"augmentation: {name}={values} should be positive fractions, like [0.5, 1.0]")
        for name in _RANGES:
            values = getattr(self, name)
            if len(values) != 2 or values[0] > values[1]:
                raise UserError(f"augmentation: {name}={values} should be the least and the largest, like [0.5, 1.0]")

    @property
    def mixes(self) -> bool:
        """Whether an image may show objects of others."""
        return self.mosaic > 0 or self.mixup > 0

    def plain(self) -> Augment:
        """Without what makes images that no camera takes: for the end of a run."""
        return replace(self, mosaic=0.0, mixup=0.0, rotation=0.0, zoom_out=0.0)

    def values(self) -> dict[str, Any]:
        """For a file: lists in place of tuples, and the name of ``own``."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return listed | {"own": None if self.own is None else name_of(self.own)}


def name_of(own: Callable[..., Any]) -> str:
    """A function's module and name, or those of an object's class."""
    return f"{own.__module__}.{getattr(own, '__qualname__', type(own).__qualname__)}"


DETR = Augment()

#: by ``--augment``; ``default`` is the preset's own
LEVELS = {
    "none": Augment(scales=(1.0,), crop=0.0, flip=0.0),
    "light": Augment(scales=(0.9, 1.0, 1.1), crop=0.0, colour=0.1),
    # of the ladder of recipes (docs/augmentation.md): mosaic and colour gained .02 to .03 AP; mixup and zoom-out are not measured
    "strong": Augment(scales=(0.8, 0.9, 1.0, 1.1, 1.2), colour=0.2, mosaic=0.5, mosaic_scales=(0.5, 1.0)),
}
DEFAULT_LEVEL = "default"
_PARTS = {field.name: field.default for field in fields(Augment) if field.name != "own"}


def augment_parts(given: object) -> dict[str, Any]:
    """What a user asked for, as ``level``, parts by name and ``own``: of a level, a mapping, a function, or None. Raises ``UserError``."""
    if given is None:
        return {}
    if isinstance(given, str):
        given = {"level": given}
    elif callable(given):
        given = {"own": given}
    if not isinstance(given, Mapping):
        raise UserError(f"augment={given!r}: give a level ({_levels()}), parts by name like {{'flip': 0}}, or a function")
    parts = {str(name): _part(str(name), value) for name, value in given.items()}
    augmentation(parts, DETR)  # which checks the ranges
    return parts


def recorded(values: Mapping[str, Any], own: Callable[..., Any] | None = None) -> Augment:
    """An augmentation from its ``values``, with the function that they only name. Raises ``UserError`` for other values."""
    parts = {name: _part(name, value) for name, value in values.items() if name != "own"}
    return augmentation(parts | {"own": own}, DETR)


def augmentation(asked: Mapping[str, Any], recipe: Augment) -> Augment:
    """What ``augment_parts`` make of a recipe. Raises ``UserError`` for values that no part can have."""
    level = asked.get("level", DEFAULT_LEVEL)
    start = recipe if level == DEFAULT_LEVEL else LEVELS[level]
    parts = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items() if name != "level"}
    return replace(start, **parts)


def _part(name: str, value: Any) -> Any:
    """The value of a part. Raises ``UserError`` for an unknown name, or a value of another type."""
    if name == "level":
        if value not in (DEFAULT_LEVEL, *LEVELS):
            raise UserError(f"augment: no level {value!r}; levels: {_levels()}; parts, as name=value: {', '.join(_PARTS)}")
        return value
    if name == "own":
        if not callable(value):
            raise UserError(f"augment: own={value!r}: must be a function, which only boxquery.train in Python can be given")
        return value
    if name not in _PARTS:
        raise UserError(f"augment: no part {name!r}; parts: {', '.join(_PARTS)}; levels: {_levels()}")
    several = isinstance(_PARTS[name], tuple)
    numbers: list[Any] = list(value) if several and isinstance(value, list | tuple) else [value]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise UserError(f"augment: {name}={value!r}: must be {'numbers, like [0.8, 1.0, 1.2]' if several else 'a number; 0 is off'}")
    numbers = [float(number) for number in numbers]
    return numbers if several else numbers[0]


def _levels() -> str:
    return ", ".join(("none", "light", DEFAULT_LEVEL, "strong"))
