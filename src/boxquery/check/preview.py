"""The preview: images with their boxes as the network will see them: cropped, flipped, resized, recoloured."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from boxquery.data.dataset import Data
from boxquery.data.loading import DetectionDataset
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.transforms import Augment, TrainTransform, to_picture
from boxquery.pages.drawing import draw

COLUMNS, ROWS = 4, 3
HEIGHT = 260  # pixels of every image
_GAP = 6


def draw_preview(data: Data, preprocessing: Preprocessing, augment: Augment, seed: int) -> Image.Image:
    """A grid of training images, evenly over the split, as epoch 0 of a run with this seed shows them."""
    split = data.splits["train"]
    count = min(COLUMNS * ROWS, len(split))
    dataset = DetectionDataset(split, TrainTransform(preprocessing, augment), seed=seed)
    images = [_draw_sample(dataset, round(i), data.names) for i in np.linspace(0, len(split) - 1, count)]
    rows = [images[i : i + COLUMNS] for i in range(0, count, COLUMNS)]
    width = max(sum(image.width + _GAP for image in row) for row in rows) - _GAP
    sheet = Image.new("RGB", (width, len(rows) * (HEIGHT + _GAP) - _GAP), "white")
    for number, row in enumerate(rows):
        left = 0
        for image in row:
            sheet.paste(image, (left, number * (HEIGHT + _GAP)))
            left += image.width + _GAP
    return sheet


def _draw_sample(dataset: DetectionDataset, index: int, names: list[str]) -> Image.Image:
    sample = dataset[index]
    image = to_picture(sample["image"], dataset.transform.preprocessing)
    image = image.resize((max(round(image.width * HEIGHT / image.height), 1), HEIGHT), Image.Resampling.BICUBIC)
    centre, size = sample["target"]["boxes"].split(2, 1)
    corners = torch.cat((centre - size / 2, centre + size / 2), 1) * torch.tensor([image.width, image.height] * 2)
    return draw(image, corners.numpy(), sample["target"]["labels"].numpy(), names)
