"""How an image becomes a model's input, as a record that is saved with the model, and the sizes that follow from it. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from boxquery.data.dataset import Split
from boxquery.errors import UserError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
#: limit of what is subtracted from pixels in 0..1 and multiplied with them, beyond which a float has no digit left for them; and of a ratio
MOST = 1e6
INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Resizing and normalisation; the defaults are DETR's.

    DETR's shortest side is 800 pixels. Here ``image_size`` stands for those 800 and other lengths keep their ratio to it, so that a small
    ``image_size`` is the same recipe on smaller images.

    Attributes:
        image_size: shortest side in pixels; of a square, every side.
        longest_ratio: longest side allowed, as a multiple of ``image_size``.
        square: resize to a square whatever the aspect ratio. Otherwise it is kept, and a batch is padded to its largest image.
        mean, std: per channel, for pixels in 0..1; both None: pixels stay in 0..1.
        interpolation: "bilinear" or "bicubic", always with antialiasing.
    """

    image_size: int = 800
    longest_ratio: float = 1333 / 800
    square: bool = False
    mean: tuple[float, ...] | None = MEAN
    std: tuple[float, ...] | None = STD
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int) or isinstance(self.image_size, bool) or not 16 <= self.image_size <= 8192:
            raise UserError(f"image_size={self.image_size} is out of range; choose 16 to 8192 pixels for the shortest side")
        if not 1 <= self.longest_ratio <= MOST:
            raise UserError(f"preprocessing: longest_ratio={self.longest_ratio}: must be a number from 1 to {MOST:g}")
        if not isinstance(self.square, bool):
            raise UserError(f"preprocessing: square={self.square!r}: must be true or false")
        if (self.mean is None) != (self.std is None) or not all(len(values) == 3 for values in (self.mean, self.std) if values is not None):
            raise UserError(f"preprocessing: mean={self.mean} and std={self.std} should be three numbers each, or both None")
        for name, values, least in (("mean", self.mean, -MOST), ("std", self.std, 1 / MOST)):
            if values is not None and not all(isinstance(v, int | float) and least <= v <= MOST for v in values):
                raise UserError(f"preprocessing: {name}={values} should be numbers from {least:g} to {MOST:g}")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(f"preprocessing: interpolation={self.interpolation!r}: choose {' or '.join(INTERPOLATIONS)}")

    @classmethod
    def of(cls, image_size: int, *, square: bool, normalize: bool) -> Preprocessing:
        """As a recipe has it: ``normalize`` is by ImageNet's mean and standard deviation."""
        return cls(image_size, square=square) if normalize else cls(image_size, square=square, mean=None, std=None)

    def size(self, height: int, width: int, image_size: int | None = None) -> tuple[int, int]:
        """Height and width that an image is resized to; ``image_size`` in place of the record's own, for multi-scale training."""
        side = image_size or self.image_size
        return (side, side) if self.square else resized_size(height, width, side, round(self.image_size * self.longest_ratio))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """From what ``to_dict`` gave, perhaps through JSON. Raises ``UserError`` for values or names that no record has."""
        if "image_size" not in values:
            raise UserError("preprocessing: no image_size; the file is cut short or was edited")
        if unknown := sorted(set(values) - {field.name for field in fields(cls)}):
            raise UserError(f"preprocessing: unknown {', '.join(unknown)}; written by a newer version?")
        try:
            triples: dict[str, Any] = {name: tuple(values[name]) for name in ("mean", "std") if values.get(name) is not None}
            return cls(**{**values, **triples})
        except TypeError as error:
            raise UserError(f"preprocessing: {error}") from error


@dataclass(frozen=True, slots=True)
class Resize:
    """From an image to the pixels of a model's input: one routine for evaluation, prediction and exported models.

    It is Pillow's, in which the authors' code resizes, too. Training resizes tensors by torchvision, which rounds some pixels differently.

    Attributes:
        preprocessing: the model's record.
        fixed: (height, width) of every input whatever the image's aspect ratio; None: as the record says.
    """

    preprocessing: Preprocessing
    fixed: tuple[int, int] | None = None

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that an image is resized to."""
        return self.fixed or self.preprocessing.size(height, width)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An upright RGB image as uint8 [3, h, w]."""
        height, width = self.size(image.height, image.width)
        resized = image.resize((width, height), Image.Resampling[self.preprocessing.interpolation.upper()])
        return np.asarray(resized).transpose(2, 0, 1).copy()


def resized_size(height: int, width: int, shortest: int, longest: int | None = None) -> tuple[int, int]:
    """Height and width after resizing by DETR's rule, which keeps the aspect ratio.

    The shortest side becomes ``shortest``, or less where the other would exceed ``longest``. It is rounded first; the other side is
    computed from it and truncated, and may exceed ``longest`` by the rounding. Sides are at least 1.
    """
    low, high = min(height, width), max(height, width)
    if longest is not None and high / low * shortest > longest:
        shortest = round(longest * low / high)
    shortest = max(shortest, 1)
    if low == shortest:
        return height, width
    return (int(shortest * height / width), shortest) if width < height else (shortest, int(shortest * width / height))


def object_sizes(split: Split, preprocessing: Preprocessing) -> list[np.ndarray]:
    """Per image [N, 2]: width and height of its objects, without ignored ones, in pixels of the model's input."""
    sizes = (preprocessing.size(record.height, record.width) for record in split)
    return [shares * [width, height] for shares, (height, width) in zip(object_shares(split), sizes, strict=True)]


def object_shares(split: Split) -> list[np.ndarray]:
    """Per image [N, 2]: width and height of its objects, without ignored ones, as shares of the image's."""
    boxes = ((record, record.boxes[~record.ignore]) for record in split)
    return [(each[:, 2:] - each[:, :2]) / [record.width, record.height] for record, each in boxes]
