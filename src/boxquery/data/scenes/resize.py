"""How the images of a scene become a model's input: all of one size, with the calibration that holds for these pixels. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from boxquery.data.preprocessing import Preprocessing, Resize


@dataclass(frozen=True, slots=True)
class SceneResize:
    """From the images of a scene to the pixels of a model's input: one routine for training, prediction and exported models.

    Attributes:
        preprocessing: the model's record.
        images: (height, width) of the images that it was trained on; all images are resized as one of this size is.
        fixed: (height, width) of the input whatever the record says; None: as it says.
    """

    preprocessing: Preprocessing
    images: tuple[int, int]
    fixed: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of every image of the model's input."""
        return self.fixed or self.preprocessing.size(*self.images)

    def pixels(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Upright RGB images as uint8 [V, 3, H, W]."""
        resize = Resize(self.preprocessing, self.size)
        return np.stack([resize(image) for image in images])

    def lidar2img(self, matrices: np.ndarray, sizes: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
        """The calibration [V, 4, 4] of ``pixels``, from that of images of so many pixels, (width, height)."""
        height, width = self.size
        return np.stack([zoom(width / w, height / h) for w, h in sizes]) @ matrices


def zoom(x: float, y: float) -> np.ndarray:
    """The matrix [4, 4] that makes an image wider and higher by such factors."""
    return np.diag([x, y, 1.0, 1.0])
