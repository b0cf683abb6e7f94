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
from boxquery.pages.images import resize_to

COLUMNS, ROWS = 4, 3
HEIGHT, WIDTH = 260, 780  # pixels that an image has room in
_GAP = 6


def draw_preview(data: Data, preprocessing: Preprocessing, augment: Augment, seed: int) -> Image.Image:
    """A grid of training images, evenly over the split, as epoch 0 of a run with this seed shows them."""
    split = data.splits["train"]
    count = min(COLUMNS * ROWS, len(split))
    dataset = DetectionDataset(split, TrainTransform(preprocessing, augment), seed=seed)
    images = [_draw_sample(dataset, round(i), data.names) for i in np.linspace(0, len(split) - 1, count)]
    rows = [images[i : i + COLUMNS] for i in range(0, count, COLUMNS)]
    width = max(sum(image.width + _GAP for image in row) for row in rows) - _GAP
    heights = [max(image.height for image in row) + _GAP for row in rows]
    sheet = Image.new("RGB", (width, sum(heights) - _GAP), "white")
    for number, row in enumerate(rows):
        left = 0
        for image in row:
            sheet.paste(image, (left, sum(heights[:number])))
            left += image.width + _GAP
    return sheet


def _draw_sample(dataset: DetectionDataset, index: int, names: list[str]) -> Image.Image:
    sample = dataset[index]
    seen = to_picture(sample["image"], dataset.transform.preprocessing)
    image, scale = resize_to(seen, WIDTH, HEIGHT)
    centre, size = sample["target"]["boxes"].split(2, 1)
    corners = torch.cat((centre - size / 2, centre + size / 2), 1) * torch.tensor([seen.width, seen.height] * 2) * scale
    return draw(image, corners.numpy(), sample["target"]["labels"].numpy(), names)
