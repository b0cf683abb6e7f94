"""Transforms from upright images and boxes to a model's input: resizing, DETR's augmentation, normalisation."""

from __future__ import annotations

from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from boxquery.augment import DETR, Augment
from boxquery.data.preprocessing import Preprocessing, resized_size


class Augmented(NamedTuple):
    """A training image: ``image`` float [3, H, W] normalised, ``boxes`` float32 [N, 4] cxcywh in 0..1, ``labels`` int64 [N]."""

    image: Tensor
    boxes: Tensor
    labels: Tensor


class EvalTransform:
    """Resizing and normalisation, as in evaluation, prediction and export."""

    def __init__(self, preprocessing: Preprocessing):
        self.preprocessing = preprocessing

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """An upright RGB image, PIL or uint8 [3, H, W], as float32 [3, h, w]."""
        pixels = F.pil_to_tensor(image) if isinstance(image, Image.Image) else image
        size = self.preprocessing.size(*pixels.shape[-2:])
        return normalize(_resize(pixels, size, self.preprocessing), self.preprocessing)


class TrainTransform:
    """Augmentation, resizing and normalisation, as in training."""

    def __init__(self, preprocessing: Preprocessing, augment: Augment = DETR):
        self.preprocessing, self.augment = preprocessing, augment

    def __call__(self, image: Tensor, boxes: Tensor, labels: Tensor, generator: torch.Generator) -> Augmented:
        """An augmented copy.

        Args:
            image: uint8 [3, H, W], upright RGB.
            boxes: float32 [N, 4], xyxy in its pixels.
            labels: int64 [N].
            generator: the only source of randomness.
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
        side = self._draw_side(augment.scales, generator)
        image = _resize(image, self.preprocessing.size(height, width, side), self.preprocessing)
        image = _jitter_colour(image, augment.colour, generator)
        return Augmented(normalize(image, self.preprocessing), boxes, labels[seen])

    def draw_crop(self, height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop in pixels of an image of ``height`` x ``width``."""
        low, high = (round(self.preprocessing.image_size * side) for side in self.augment.crop_sides)
        rows, columns = resized_size(height, width, self._draw_side(self.augment.crop_short, generator))
        part_width = _integer(min(low, columns), min(high, columns), generator)
        part_height = _integer(min(low, rows), min(high, rows), generator)
        top, left = _integer(0, rows - part_height, generator), _integer(0, columns - part_width, generator)
        down, across = height / rows, width / columns
        top, bottom = round(top * down), round((top + part_height) * down)
        left, right = round(left * across), round((left + part_width) * across)
        top, left = min(top, height - 1), min(left, width - 1)
        return top, left, max(bottom - top, 1), max(right - left, 1)

    def _draw_side(self, fractions: tuple[float, ...], generator: torch.Generator) -> int:
        return round(self.preprocessing.image_size * fractions[_integer(0, len(fractions) - 1, generator)])


def relative(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes float [N, 4], xyxy in pixels of an image, as cxcywh in 0..1 of it."""
    x1, y1, x2, y2 = (boxes / torch.tensor([width, height, width, height], dtype=boxes.dtype)).unbind(1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), 1)


def normalize(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """A uint8 image [3, H, W] as float32: pixels in 0..1, minus the mean over the std where the record has them."""
    if preprocessing.mean is None or preprocessing.std is None:
        return image.to(torch.float32).div_(255)
    offset, scale = (torch.tensor(values).mul(255).view(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return image.to(torch.float32).sub_(offset).div_(scale)


def to_picture(image: Tensor, preprocessing: Preprocessing) -> Image.Image:
    """A normalised image [3, H, W] as the picture that it was made from."""
    if preprocessing.mean is not None and preprocessing.std is not None:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        image = image * std + mean
    return F.to_pil_image((image.clamp(0, 1) * 255).round().to(torch.uint8))


def _resize(image: Tensor, size: tuple[int, int], preprocessing: Preprocessing) -> Tensor:
    return F.resize(image, list(size), InterpolationMode(preprocessing.interpolation), antialias=True)


def _as_boxes(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes that torchvision knows to be boxes, in pixels of an image [3, H, W]."""
    size = (image.shape[-2], image.shape[-1])
    return tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=size)  # pyright: ignore[reportCallIssue]


def _jitter_colour(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    if strength == 0:
        return image
    brightness, contrast, saturation, hue = (torch.rand(4, generator=generator) * 2 - 1).mul(strength).tolist()
    image = F.adjust_brightness(image, 1 + brightness)
    image = F.adjust_contrast(image, 1 + contrast)
    image = F.adjust_saturation(image, 1 + saturation)
    return F.adjust_hue(image, hue / 5)


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """One of low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
