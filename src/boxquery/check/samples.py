"""A sample of a split as small images with integral images, from which any box's means are read. NumPy and Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from boxquery.data.dataset import Split
from boxquery.data.images import read_image
from boxquery.errors import UserError

SAMPLE = 64  # most images per split
SIDE = 256  # long side to which larger images are reduced
_MOST_BOXES = 24  # boxes of an image that are measured
_SMALLEST = 1e-3  # gradient, 0..1 per pixel, below which it counts as noise

#: the six planes: brightness, two chroma (red - blue and green - magenta), logarithm of the gradient, gradient along x and along y
PLANES = LIGHT, RED_BLUE, GREEN, TEXTURE, ALONG_X, ALONG_Y = range(6)


@dataclass(frozen=True, slots=True, eq=False)
class SampledImage:
    """A small image and its boxes.

    Attributes:
        index: in its split.
        sums: [h + 1, w + 1, 6], the integral image of ``PLANES``.
        boxes: [N, 4] xyxy in 0..1; labels: [N].
    """

    index: int
    sums: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray

    @property
    def size(self) -> np.ndarray:
        """Width and height."""
        return np.array(self.sums.shape[1::-1]) - 1

    def integrals(self, x: np.ndarray, y: np.ndarray, planes: slice = slice(None)) -> np.ndarray:
        """The integral image at points in 0..1, clipped to the image and interpolated: [..., planes]."""
        height, width = self.sums.shape[0] - 1, self.sums.shape[1] - 1
        x, y = np.clip(x, 0, 1) * width, np.clip(y, 0, 1) * height
        left, top = np.minimum(x.astype(np.intp), width - 1), np.minimum(y.astype(np.intp), height - 1)
        x, y = (x - left)[..., None], (y - top)[..., None]
        flat, row = self.sums.reshape(-1, len(PLANES))[:, planes], width + 1
        at = top * row + left
        upper = flat[at] * (1 - x) + flat[at + 1] * x
        return upper * (1 - y) + (flat[at + row] * (1 - x) + flat[at + row + 1] * x) * y

    def sum(self, boxes: np.ndarray, planes: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Per box [..., 4]: the sums of planes inside it and the image [..., planes], and how many pixels that are [..., 1]."""
        boxes = np.clip(boxes, 0, 1)
        corners = self.integrals(boxes[..., [0, 2, 0, 2]], boxes[..., [1, 1, 3, 3]], planes)
        sizes = (boxes[..., 2:] - boxes[..., :2]).clip(0) * self.size
        return corners[..., 3, :] - corners[..., 2, :] - corners[..., 1, :] + corners[..., 0, :], sizes.prod(-1, keepdims=True)


def sample_images(split: Split, count: int = SAMPLE) -> list[SampledImage]:
    """Images with boxes, evenly over the split, the same ones in every call. An image that cannot be read is left out."""
    filled = [i for i in evenly(len(split), 50 * SAMPLE) if len(split[i].boxes)]
    with ThreadPoolExecutor(4) as pool:
        chosen = pool.map(lambda i: _sampled(split, filled[i]), evenly(len(filled), count))
        return [image for image in chosen if image is not None]


def evenly(total: int, count: int) -> list[int]:
    return list(range(total)) if count >= total else [round(i) for i in np.linspace(0, total - 1, count)]


def small_image(split: Split, index: int, side: int) -> Image.Image | None:
    """An image of a split, its long side reduced to ``side``; None if it cannot be read."""
    record = split[index]
    try:
        image = split.read(index) if record.path is None else read_image(record.path, at_least=side)
    except UserError:
        return None
    scale = min(side / max(image.size), 1)
    size = max(round(image.width * scale), 8), max(round(image.height * scale), 8)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _sampled(split: Split, index: int) -> SampledImage | None:
    image, record = small_image(split, index, SIDE), split[index]
    if image is None:
        return None
    chosen = evenly(len(record.boxes), _MOST_BOXES)
    boxes = record.boxes[chosen] / np.array([record.width, record.height] * 2, np.float32)
    return SampledImage(index, integral_image(np.asarray(image, np.float32) / 255), boxes.astype(np.float64), record.labels[chosen])


def integral_image(pixels: np.ndarray) -> np.ndarray:
    """``SampledImage.sums`` of RGB pixels [h, w, 3], 0..1."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    light = (red + green + blue) / 3
    along_y, along_x = np.gradient(light)
    planes = np.stack([
        light, red - blue, green - (red + blue) / 2, np.log(np.hypot(along_x, along_y) + _SMALLEST), np.abs(along_x), np.abs(along_y),
    ], -1)  # fmt: skip
    sums = np.zeros((pixels.shape[0] + 1, pixels.shape[1] + 1, len(PLANES)))
    sums[1:, 1:] = planes.cumsum(0, dtype=np.float64).cumsum(1)
    return sums


def labels_of(images: Sequence[SampledImage]) -> np.ndarray:
    return np.concatenate([image.labels for image in images]) if images else np.zeros(0, np.int64)
