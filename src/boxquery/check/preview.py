"""A picture of images with their boxes as the network will see them: cropped, flipped, resized, recoloured."""

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
HEIGHT = 260  # pixels of every picture
_GAP = 6


def grid(data: Data, image_size: int, augment: Augment, seed: int) -> Image.Image:
    """Training images, evenly over the split, as epoch 0 of a run with this seed shows them."""
    split = data.splits["train"]
    count = min(COLUMNS * ROWS, len(split))
    dataset = DetectionDataset(split, TrainTransform(Preprocessing(image_size), augment), seed=seed)
    pictures = [_picture(dataset, round(i), data.names) for i in np.linspace(0, len(split) - 1, count)]
    rows = [pictures[i : i + COLUMNS] for i in range(0, count, COLUMNS)]
    width = max(sum(p.width + _GAP for p in row) for row in rows) - _GAP
    sheet = Image.new("RGB", (width, len(rows) * (HEIGHT + _GAP) - _GAP), "white")
    for number, row in enumerate(rows):
        left = 0
        for picture in row:
            sheet.paste(picture, (left, number * (HEIGHT + _GAP)))
            left += picture.width + _GAP
    return sheet


def _picture(dataset: DetectionDataset, index: int, names: list[str]) -> Image.Image:
    sample = dataset[index]
    image = to_picture(sample["image"], dataset.transform.preprocessing)
    scale = HEIGHT / image.height
    image = image.resize((max(round(image.width * scale), 1), HEIGHT), Image.Resampling.BICUBIC)
    middle, size = sample["target"]["boxes"].split(2, 1)
    corners = torch.cat((middle - size / 2, middle + size / 2), 1) * torch.tensor([image.width, image.height] * 2)
    return draw(image, corners.numpy(), sample["target"]["labels"].numpy(), names)
