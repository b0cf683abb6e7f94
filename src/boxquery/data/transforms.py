"""Transforms from upright images and boxes to a model's input: resizing, DETR's augmentation, normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from boxquery.augment import DETR, Augment, name_of
from boxquery.data.preprocessing import Preprocessing, Resize, resized_size
from boxquery.errors import UserError

#: objects are left out where mixing or rotation left less of their area, or pixels of a side, than these
LEAST_SHARE, LEAST_SIDE = 0.2, 2


class Augmented(NamedTuple):
    """A training image: ``image`` float [3, H, W] normalised, ``boxes`` float32 [N, 4] cxcywh in 0..1, ``labels`` int64 [N]."""

    image: Tensor
    boxes: Tensor
    labels: Tensor


class Labelled(NamedTuple):
    """An upright image with its objects: ``image`` uint8 [3, H, W], ``boxes`` float32 [N, 4] xyxy in its pixels, ``labels`` int64 [N]."""

    image: Tensor
    boxes: Tensor
    labels: Tensor


class Shown(NamedTuple):
    """What training shows of one image or several: ``image`` uint8 [3, H, W], ``fractions`` float32 [N, 4] boxes xyxy in 0..1 of it,
    ``labels`` int64 [N]."""

    image: Tensor
    fractions: Tensor
    labels: Tensor


#: draws another image of the split with the random numbers of a generator
Others = Callable[[torch.Generator], Labelled]


class ResizeTransform:
    """Resizing as in evaluation, prediction and export, for who normalises batches."""

    def __init__(self, resize: Resize):
        self.resize = resize

    @property
    def preprocessing(self) -> Preprocessing:
        return self.resize.preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        """An upright RGB image as the model's input: here uint8 [3, h, w]."""
        return self.finish(self.pixels(image))

    def pixels(self, image: Image.Image) -> Tensor:
        """What is kept where images are cached: uint8 [3, h, w]."""
        return torch.from_numpy(self.resize(image))

    def finish(self, pixels: Tensor) -> Tensor:
        """From what is kept to the model's input."""
        return pixels


class EvalTransform(ResizeTransform):
    """Resizing and normalisation, as in evaluation, prediction and export: float32 [3, h, w]."""

    def __init__(self, preprocessing: Preprocessing):
        super().__init__(Resize(preprocessing))

    def finish(self, pixels: Tensor) -> Tensor:
        return normalize(pixels, self.preprocessing)


class TrainTransform:
    """Augmentation, resizing and normalisation, as in training.

    Args:
        most_objects: an image is mixed with others only if no more objects than these come together; None: any number.
    """

    def __init__(self, preprocessing: Preprocessing, augment: Augment = DETR, *, most_objects: int | None = None):
        self.preprocessing, self.augment, self.most_objects = preprocessing, augment, most_objects

    def __call__(
        self, image: Tensor, boxes: Tensor, labels: Tensor, generator: torch.Generator, others: Others | None = None, plain: bool = False
    ) -> Augmented:
        """An augmented copy.

        Args:
            image: uint8 [3, H, W], upright RGB.
            boxes: float32 [N, 4], xyxy in its pixels.
            labels: int64 [N].
            generator: the only source of randomness.
            others: draws the images that this one is mixed with; None: it is not mixed.
            plain: whether this is the end of the run, where only the mild parts are left (``Augment.plain``).
        """
        augment = self.augment.plain() if plain else self.augment
        first = self._own(Labelled(image, boxes, labels), generator)
        shown = None
        if others is not None and augment.mosaic and _uniform(generator) < augment.mosaic:
            shown = self._mosaic([first, *(self._own(others(generator), generator) for _ in range(3))], generator)
        if shown is None or self._too_many(shown):
            shown = self._single(first, augment, generator)
        if augment.rotation:
            shown = _rotate(shown, (2 * _uniform(generator) - 1) * augment.rotation, self._fill())
        if others is not None and augment.mixup and _uniform(generator) < augment.mixup:
            mixed = self._mixup(shown, self._own(others(generator), generator), generator)
            shown = shown if self._too_many(mixed) else mixed
        image = _jitter_colour(shown.image, augment.colour, generator)
        return Augmented(normalize(image, self.preprocessing), _centred(shown.fractions), shown.labels)

    def reduction(self, height: int, width: int) -> int:
        """1, 2, 4 or 8: by which an image may be read smaller (much faster), its longest side still twice that of what training shows of it
        at its largest. 1 with a transform of the user's own, which may count in pixels."""
        if self.augment.own is not None:
            return 1
        largest = round(self.preprocessing.image_size * max(*self.augment.scales, *self.augment.crop_short, 1.0))
        shown = max(self.preprocessing.size(height, width, largest))
        return next(factor for factor in (8, 4, 2, 1) if factor == 1 or max(height, width) >= 2 * shown * factor)

    def _single(self, picture: Labelled, augment: Augment, generator: torch.Generator) -> Shown:
        """One image flipped, cropped, and resized to the size of a training image, or to less on a canvas of that size.

        Where the augmentation has one scale, a crop gets the size that the whole image would have, so that nothing is padded.
        """
        image, boxes, labels = self._flip(picture, generator)
        whole = _size(image)
        objects = _as_boxes(boxes, image)
        if _uniform(generator) < augment.crop:
            height, width = image.shape[-2:]
            part = self.draw_crop(height, width, generator)
            image, objects = F.crop(image, *part), F.crop(objects, *part)
        boxes = objects.as_subclass(Tensor)
        seen = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        picture = Labelled(image, boxes[seen], labels[seen])
        height, width = image.shape[-2:]
        size = self.preprocessing.size(
            *(whole if len(augment.scales) == 1 else (height, width)), self._draw_side(augment.scales, generator)
        )
        if augment.zoom_out and _uniform(generator) < augment.zoom_out:
            canvas = self._canvas(size)
            return _paste(canvas, [self._window(picture, _times(size, augment.zoom_out_scales, generator), (0, 0, *size), generator)])
        return Shown(_resize(image, size, self.preprocessing), _fractions(picture.boxes, height, width), picture.labels)

    def _flip(self, picture: Labelled, generator: torch.Generator) -> Labelled:
        image, objects = picture.image, _as_boxes(picture.boxes, picture.image)
        if _uniform(generator) < self.augment.flip:
            image, objects = F.horizontal_flip(image), F.horizontal_flip(objects)
        if _uniform(generator) < self.augment.vertical_flip:
            image, objects = F.vertical_flip(image), F.vertical_flip(objects)
        return Labelled(image, objects.as_subclass(Tensor), picture.labels)

    def _mosaic(self, pictures: list[Labelled], generator: torch.Generator) -> Shown:
        """Four images around a random point, of the size that the first would have.

        Each has a random scale, at which a random window of it fills its quarter, or all of it lies somewhere in there. Only that window is
        resized, so that a mosaic costs about as much as four small images.
        """
        side = self._draw_side(self.augment.scales, generator)
        sizes = [self.preprocessing.size(*_size(picture.image), side) for picture in pictures]
        height, width = sizes[0]
        y, x = (round(extent * (0.3 + 0.4 * _uniform(generator))) for extent in (height, width))
        areas = (0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)
        tiles = []
        for picture, size, area in zip(pictures, sizes, areas, strict=True):
            tile, place = self._window(picture, _times(size, self.augment.mosaic_scales, generator), area, generator)
            tiles.append((self._flip(tile, generator), place))
        return _paste(self._canvas((height, width)), tiles)

    def _mixup(self, shown: Shown, other: Labelled, generator: torch.Generator) -> Shown:
        """Two images blended where the second lies, which is as large as fits into the first."""
        (height, width), (high, wide) = _size(shown.image), _size(other.image)
        scale = min(height / high, width / wide)
        size = max(round(high * scale), 1), max(round(wide * scale), 1)
        tile, place = self._window(other, size, (0, 0, height, width), generator)
        tile, weight = self._flip(tile, generator), 0.45 + 0.1 * _uniform(generator)
        top, left = place
        part = shown.image[:, top : top + tile.image.shape[-2], left : left + tile.image.shape[-1]]
        blended = torch.lerp(tile.image.float(), part.float(), weight).round_().to(torch.uint8)
        both = _paste(shown.image.clone(), [(tile._replace(image=blended), place)])
        return Shown(both.image, torch.cat((shown.fractions, both.fractions)), torch.cat((shown.labels, both.labels)))

    def _window(
        self, picture: Labelled, size: tuple[int, int], area: tuple[int, int, int, int], generator: torch.Generator
    ) -> tuple[Labelled, tuple[int, int]]:
        """What an image, resized, shows in an area (top, left, bottom, right) of a canvas if it lies there at random, and where it begins.

        In a direction in which the image is larger than the area it fills it; otherwise it lies inside. Objects of which too little is left
        are left out.
        """
        high, wide = _size(picture.image)
        tops, rows = _overlap(size[0], area[2] - area[0], high, generator)
        lefts, columns = _overlap(size[1], area[3] - area[1], wide, generator)
        window = picture.image[:, tops[0] : tops[1], lefts[0] : lefts[1]]
        tile = _resize(window, (rows[1] - rows[0], columns[1] - columns[0]), self.preprocessing)
        offset = torch.tensor([lefts[0], tops[0]] * 2)
        scale = torch.tensor([tile.shape[-1] / window.shape[-1], tile.shape[-2] / window.shape[-2]] * 2)
        boxes = (picture.boxes - offset) * scale
        return _clip(Labelled(tile, boxes, picture.labels), _areas(boxes)), (area[0] + rows[0], area[1] + columns[0])

    def _own(self, picture: Labelled, generator: torch.Generator) -> Labelled:
        """The image after the user's own transform, if there is one."""
        return picture if self.augment.own is None else apply_own(self.augment.own, picture, generator)

    def _too_many(self, shown: Shown) -> bool:
        return self.most_objects is not None and len(shown.labels) > self.most_objects

    def _fill(self) -> list[float]:
        """The colour of what no image covers, per channel in 0..255: the mean, which is 0 to the model."""
        return [float(round(255 * value)) for value in self.preprocessing.mean or (0.447, 0.447, 0.447)]

    def _canvas(self, size: tuple[int, int]) -> Tensor:
        return torch.tensor(self._fill(), dtype=torch.uint8).view(3, 1, 1).expand(3, *size).clone()

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
    return _centred(_fractions(boxes, height, width))


def _fractions(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes xyxy in pixels as fractions of an image."""
    return boxes / torch.tensor([width, height, width, height], dtype=boxes.dtype)


def _centred(boxes: Tensor) -> Tensor:
    """Boxes xyxy as cxcywh."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), 1)


def normalize(image: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Images uint8 [..., 3, H, W] as float32: pixels in 0..1, minus the mean over the std where the record has them."""
    if preprocessing.mean is None or preprocessing.std is None:
        return image.to(torch.float32).div_(255)
    offset, scale = (torch.tensor(values).mul(255).view(-1, 1, 1).to(image.device) for values in (preprocessing.mean, preprocessing.std))
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
    return tv_tensors.BoundingBoxes(boxes, format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=_size(image))  # pyright: ignore[reportCallIssue]


def apply_own(own: Callable[..., Any], picture: Labelled, generator: torch.Generator) -> Labelled:
    """What a user's transform makes of an image; boxes are clipped to it, and those outside are left out.

    Raises ``UserError`` for anything else than an image, boxes and labels of the kinds that it was given.
    """
    made, name = own(*picture, generator), name_of(own)
    if not isinstance(made, tuple | list) or len(made) != 3:
        raise UserError(f"augment: {name} returned a {type(made).__name__}; it must return image, boxes and labels")
    image, boxes, labels = made
    kinds = {"image": (image, torch.uint8, "[3, H, W]"), "boxes": (boxes, torch.float32, "[N, 4]"), "labels": (labels, torch.int64, "[N]")}
    for what, (value, dtype, shape) in kinds.items():
        if not isinstance(value, Tensor) or value.dtype != dtype or value.dim() != shape.count(",") + 1:
            found = f"{str(value.dtype)[6:]} {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UserError(f"augment: {name} returned as {what} {found}; must be a tensor, {str(dtype)[6:]} {shape}")
    if image.shape[0] != 3 or min(image.shape) < 1 or boxes.shape[1] != 4 or len(boxes) != len(labels):
        shapes = ", ".join(f"{what} {list(value.shape)}" for what, (value, _, _) in kinds.items())
        raise UserError(f"augment: {name} returned {shapes}; must be [3, H, W], [N, 4] and [N]")
    if not torch.isfinite(boxes).all():
        raise UserError(f"augment: {name} returned boxes that are NaN or inf")
    objects = _limited(boxes.as_subclass(Tensor), image)
    seen = (objects[:, 2] > objects[:, 0]) & (objects[:, 3] > objects[:, 1])
    return Labelled(image.as_subclass(Tensor), objects[seen], labels[seen])


def _times(size: tuple[int, int], scales: tuple[float, ...], generator: torch.Generator) -> tuple[int, int]:
    """A size times a factor between the two scales."""
    factor = scales[0] + (scales[1] - scales[0]) * _uniform(generator)
    return max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)


def _overlap(length: int, room: int, pixels: int, generator: torch.Generator) -> tuple[tuple[int, int], tuple[int, int]]:
    """In one direction, what an image that is ``length`` long there shows in a room if it lies at random: from where to where among its own
    ``pixels``, and in the room."""
    start = _integer(min(room - length, 0), max(room - length, 0), generator)
    first, last = max(start, 0), min(start + length, room)
    begin = min(round((first - start) * pixels / length), pixels - 1)
    return (begin, max(round((last - start) * pixels / length), begin + 1)), (first, last)


def _paste(canvas: Tensor, tiles: list[tuple[Labelled, tuple[int, int]]]) -> Shown:
    """Images on a canvas, which is written to, each from its top and left on."""
    boxes = []
    for tile, (top, left) in tiles:
        canvas[:, top : top + tile.image.shape[-2], left : left + tile.image.shape[-1]] = tile.image
        boxes.append(tile.boxes + torch.tensor([left, top] * 2))
    return Shown(canvas, _fractions(torch.cat(boxes), *_size(canvas)), torch.cat([tile.labels for tile, _ in tiles]))


def _rotate(shown: Shown, angle: float, fill: list[float]) -> Shown:
    """An image turned by degrees around its centre; boxes enclose what they became."""
    (height, width), image = _size(shown.image), F.rotate(shown.image, angle, InterpolationMode.BILINEAR, fill=fill)
    boxes = shown.fractions * torch.tensor([width, height] * 2)
    sine, cosine = abs(math.sin(math.radians(angle))), abs(math.cos(math.radians(angle)))
    wide, high = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    whole = (wide * cosine + high * sine) * (wide * sine + high * cosine)
    turned = F.rotate(_as_boxes(boxes, image), angle).as_subclass(Tensor)
    left = _clip(Labelled(image, turned, shown.labels), whole)
    return Shown(image, _fractions(left.boxes, height, width), left.labels)


def _clip(picture: Labelled, whole: Tensor) -> Labelled:
    """Objects limited to the image, without those of which too little is left of their ``whole`` area."""
    boxes = _limited(picture.boxes, picture.image)
    left = (_areas(boxes) >= LEAST_SHARE * whole) & ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1)
    return Labelled(picture.image, boxes[left], picture.labels[left])


def _limited(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes cut off at the edges of an image."""
    height, width = image.shape[-2:]
    return boxes.clamp(min=0).minimum(torch.tensor([width, height] * 2))


def _size(image: Tensor) -> tuple[int, int]:
    """Height and width."""
    return image.shape[-2], image.shape[-1]


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def _jitter_colour(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    if strength == 0:
        return image
    brightness, contrast, saturation, hue = (torch.rand(4, generator=generator) * 2 - 1).mul(strength).tolist()
    return recolour(image, 1 + brightness, 1 + contrast, 1 + saturation, hue / 5)


def recolour(image: Tensor, brightness: float, contrast: float, saturation: float, hue: float) -> Tensor:
    """A uint8 image [3, H, W] in other colours, by one linear map of its pixels (torchvision's four functions take eight times as long).

    Args:
        brightness, contrast, saturation: factors, as torchvision's: on pixels, on their distance to the mean grey, and to their own grey.
        hue: rotation around the grey axis, as a part of the circle; a third exchanges red, green and blue, as in HSV.
    """
    pixels, one = image.reshape(3, -1).float(), torch.ones(3, 1)
    grey = torch.tensor([[0.2989, 0.587, 0.114]])
    saturate = saturation * torch.eye(3) + (1 - saturation) * one @ grey
    cosine, sine = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue) / math.sqrt(3)
    turn = cosine * torch.eye(3) + (1 - cosine) / 3 + sine * torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    matrix = turn @ saturate
    mean = grey @ pixels.mean(1, keepdim=True) * brightness
    changed = torch.addmm(matrix @ one * mean * (1 - contrast), matrix * (brightness * contrast), pixels)
    return changed.clamp_(0, 255).round_().to(torch.uint8).view(image.shape)


def _uniform(generator: torch.Generator) -> float:
    return torch.rand((), generator=generator).item()


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    """One of low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
