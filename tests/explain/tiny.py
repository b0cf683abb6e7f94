"""A detector of the smallest size on a fixed picture, for the tests of explanations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from boxquery.api import Detector
from boxquery.data.preprocessing import Preprocessing
from tests.models.builders import create, shaken

CLASSES = ("cat", "dog", "owl")
SIZE = 64


def detector(name: str, threshold: float = 0.0, classes: Sequence[str] = CLASSES, **options: Any) -> Detector:
    """With 12 queries by default."""
    model = create(name, len(classes), **{"num_queries": 12, **options})
    return Detector(shaken(model), list(classes), list(range(1, len(classes) + 1)), Preprocessing(SIZE), threshold)


def photo(width: int = 96, height: int = 72, seed: int = 0) -> Image.Image:
    rough = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(rough).resize((width, height), Image.Resampling.BICUBIC)
