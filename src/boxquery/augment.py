"""What training does to its images and their boxes, as a record. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from boxquery.errors import UserError


@dataclass(frozen=True, slots=True)
class Augment:
    """What training does to an image; the defaults are DETR's.

    Attributes:
        scales: shortest sides to draw from, as fractions of ``image_size``.
        crop: probability of a crop before resizing, 0..1.
        crop_short: shortest sides of the image that the crop is taken from, as fractions of ``image_size``.
        crop_sides: smallest and largest side of the crop, as fractions of ``image_size``.
        flip, vertical_flip: probabilities, 0..1.
        colour: largest relative change of brightness, contrast and saturation, 0..1; hue changes by up to a fifth of it.
    """

    scales: tuple[float, ...] = tuple(side / 800 for side in range(480, 801, 32))
    crop: float = 0.5
    crop_short: tuple[float, ...] = (400 / 800, 500 / 800, 600 / 800)
    crop_sides: tuple[float, float] = (384 / 800, 600 / 800)
    flip: float = 0.5
    vertical_flip: float = 0.0
    colour: float = 0.0

    def __post_init__(self) -> None:
        for name in ("crop", "flip", "vertical_flip", "colour"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation: {name}={getattr(self, name)} is out of range; choose 0 to 1")
        for name in ("scales", "crop_short", "crop_sides"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise UserError(f"augmentation: {name}={getattr(self, name)} should be positive fractions of the image size")
        if self.crop_sides[0] > self.crop_sides[1]:
            raise UserError(f"augmentation: crop_sides={self.crop_sides} should be the least and the largest side")


DETR = Augment()
