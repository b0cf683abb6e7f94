"""From an upright image and its boxes to what the model sees: sizes by DETR's rule, DETR's augmentation, normalisation.

DETR speaks of images whose short side is 800 pixels. Here ``image_size`` S stands for those 800 and every other length keeps its ratio
to it, so that a small S is the same recipe on a smaller picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from boxquery.errors import UserError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Augment:
    """What training does to an image; the defaults are DETR's.

    Attributes:
        scales: short sides that are drawn from, as fractions of S.
        crop: probability of a crop before the resize, 0..1.
        crop_short: short sides of the image that the crop is taken from, as fractions of S.
        crop_sides: least and largest side of the crop, as fractions of S.
        flip, vertical_flip: probabilities, 0..1.
        colour: largest relative change of brightness, contrast and saturation, 0..1; hue turns by a fifth of it.
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


class Augmented(NamedTuple):
    """A training image: ``image`` float [3, H, W] normalised, ``boxes`` float32 [N, 4] cxcywh in 0..1, ``labels`` int64 [N]."""

    image: Tensor
    boxes: Tensor
    labels: Tensor


def long_side(image_size: int) -> int:
    """The largest long side that goes with a short side: 1333 for 800."""
    return round(image_size * 1333 / 800)


def resized(height: int, width: int, short: int, long: int | None = None) -> tuple[int, int]:
    """DETR's rule for a new size with the same aspect ratio.

    The short side becomes ``short``, or less if the long side would exceed ``long``; that is rounded first and the other side computed from
    it and truncated, so that it may exceed ``long`` by the rounding. Sides are at least 1.
    """
    low, high = min(height, width), max(height, width)
    if long is not None and high / low * short > long:
        short = round(long * low / high)
    short = max(short, 1)
    if low == short:
        return height, width
    return (int(short * height / width), short) if width < height else (short, int(short * width / height))


class EvalTransform:
    """Resize and normalise: what evaluation, prediction and export do.

    Args:
        image_size: the short side in pixels; the long side is at most 1333/800 of it.
        mean, std: per channel, of pixels in 0..1.
    """

    def __init__(self, image_size: int, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD):
        self.image_size = checked_size(image_size)
        self.mean, self.std = mean, std

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image of ``height`` x ``width`` is given."""
        return resized(height, width, self.image_size, long_side(self.image_size))

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """An upright RGB image, PIL or uint8 [3, H, W], as float32 [3, h, w]."""
        pixels = F.pil_to_tensor(image) if isinstance(image, Image.Image) else image
        size = self.size(*pixels.shape[-2:])
        return normalised(F.resize(pixels, list(size), antialias=True), self.mean, self.std)


class TrainTransform:
    """DETR's augmentation: flip; half the time a crop; a resize to a random short side; normalise.

    DETR's crop is taken from a resized image and resized again. Here the crop is found in the image as it is and resized once: the same
    pictures, sharper and sooner.

    Args:
        image_size: S, the short side of evaluation in pixels; the long side is at most 1333/800 of it.
        augment: what is drawn, and how often.
        mean, std: per channel, of pixels in 0..1.
    """

    def __init__(self, image_size: int, augment: Augment = DETR, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD):
        self.image_size = checked_size(image_size)
        self.augment = augment
        self.mean, self.std = mean, std

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, generator: torch.Generator) -> Augmented:
        """An augmented copy.

        Args:
            image: uint8 [3, H, W], upright RGB.
            boxes: float32 [N, 4], xyxy in its pixels.
            labels: int64 [N].
            generator: the only source of chance.
        """
        augment = self.augment
        objects = _as_boxes(boxes, image)
        if _uniform(generator) < augment.flip:
            image, objects = F.horizontal_flip(image), F.horizontal_flip(objects)
        if _uniform(generator) < augment.vertical_flip:
            image, objects = F.vertical_flip(image), F.vertical_flip(objects)
        if _uniform(generator) < augment.crop:
            height, width = image.shape[-2:]
            part = self.draw_crop(height, width, generator)
            image, objects = F.crop(image, *part), F.crop(objects, *part)
        boxes = objects.as_subclass(Tensor)
        seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        height, width = image.shape[-2:]
        boxes = relative(boxes[seen], height, width)
        short = _side(self.image_size, augment.scales, generator)
        image = F.resize(image, list(resized(height, width, short, long_side(self.image_size))), antialias=True)
        image = _recoloured(image, augment.colour, generator)
        return Augmented(normalised(image, self.mean, self.std), boxes, labels[seen])

    def draw_crop(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop in pixels of an image of ``height`` x ``width``."""
        low, high = (round(self.image_size * side) for side in self.augment.crop_sides)
        rows, columns = resized(height, width, _side(self.image_size, self.augment.crop_short, generator))
        part_width = _integer(min(low, columns), min(high, columns), generator)
        part_height = _integer(min(low, rows), min(high, rows), generator)
        top, left = _integer(0, rows - part_height, generator), _integer(0, columns - part_width, generator)
        down, across = height / rows, width / columns
        top, bottom = round(top * down), round((top + part_height) * down)
        left, right = round(left * across), round((left + part_width) * across)
        top, left = min(top, height - 1), min(left, width - 1)
        return top, left, max(bottom - top, 1), max(right - left, 1)


def relative(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes float [N, 4], xyxy in pixels of an image, as cxcywh in 0..1 of it."""
    x1, y1, x2, y2 = (boxes / torch.tensor([width, height, width, height], dtype=boxes.dtype)).unbind(1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), 1)


def normalised(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """A uint8 image [3, H, W] as float32, each channel minus ``mean`` over ``std`` of pixels in 0..1."""
    offset, scale = (torch.tensor(values).mul(255).view(-1, 1, 1) for values in (mean, std))
    return image.to(torch.float32).sub_(offset).div_(scale)


def checked_size(image_size: int) -> int:
    """``image_size`` itself. Raises UserError if no image could have it."""
    if not 16 <= image_size <= 8192:
        raise UserError(f"image_size={image_size} is out of range; choose 16 to 8192 pixels for the short side")
    return image_size


def _as_boxes(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes that torchvision knows to be boxes, in pixels of an image [3, H, W]."""
    size = (image.shape[-2], image.shape[-1])
    return tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)  # pyright: ignore[reportCallIssue]


def _recoloured(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    if strength == 0:
        return image
    brightness, contrast, saturation, hue = (torch.rand(4, generator=generator) * 2 - 1).mul(strength).tolist()
    image = F.adjust_brightness(image, 1 + brightness)
    image = F.adjust_contrast(image, 1 + contrast)
    image = F.adjust_saturation(image, 1 + saturation)
    return F.adjust_hue(image, hue / 5)


def _side(image_size: int, fractions: tuple[float, ...], generator: torch.Generator) -> int:
    return round(image_size * fractions[_integer(0, len(fractions) - 1, generator)])


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """One of low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
