"""The picture of a check: images with their boxes as the network will see them (cropped, flipped, resized, recoloured), and the images
that findings speak of as they are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw

from boxquery.check.box_fit import MOVES
from boxquery.check.duplicates import title
from boxquery.check.findings import Finding, ImageRef
from boxquery.data.dataset import Data
from boxquery.data.loading import DetectionDataset, Item
from boxquery.data.transforms import TrainTransform, to_picture
from boxquery.errors import UserError
from boxquery.pages.drawing import draw, font_for
from boxquery.pages.images import resize_to

COLUMNS, ROWS = 4, 3
HEIGHT, WIDTH = 260, 780  # pixels that an image has room in
_GAP, _TEXT = 6, 15


def draw_augmented(data: Data, transform: TrainTransform, seed: int) -> Image.Image:
    """Training images, evenly over the split, a row each: as it is, then as the first epochs of a run with this seed show it."""
    split, rows = data.splits["train"], []
    dataset = DetectionDataset(split, transform, seed=seed)
    for index in np.unique(np.linspace(0, len(split) - 1, ROWS).round().astype(int)).tolist():
        if (image := _draw_image(data, ("train", index), "")) is not None:
            seen = [_draw_sample(dataset, Item(epoch, index), data.names) for epoch in range(COLUMNS)]
            rows.append((f"train/{title(data, ('train', index))}, and in {COLUMNS} epochs", [image, *seen]))
    return _sheet(rows)


def draw_picture(data: Data, transform: TrainTransform, seed: int, findings: Sequence[Finding]) -> Image.Image:
    """A grid of training images, evenly over the split, as epoch 0 of a run with this seed shows them; then a row for every finding that
    speaks of images."""
    split = data.splits["train"]
    count = min(COLUMNS * ROWS, len(split))
    dataset = DetectionDataset(split, transform, seed=seed)
    images = [_draw_sample(dataset, Item(0, round(i)), data.names) for i in np.linspace(0, len(split) - 1, count)]
    rows = [("", images[i : i + COLUMNS]) for i in range(0, count, COLUMNS)]
    for finding in findings:
        if shown := [image for ref in finding.images if (image := _draw_image(data, ref, finding.undo)) is not None]:
            rows.append((f"{finding.name}: {', '.join(f'{split}/{title(data, (split, i))}' for split, i in finding.images)}", shown))
    return _sheet(rows)


def _sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> Image.Image:
    """Rows of images below each other, each under its title."""
    font = font_for([text for text, _ in rows], _TEXT - 3)
    heights = [max(image.height for image in row) + _GAP + (2 * _TEXT if text else 0) for text, row in rows]
    width = max(sum(image.width + _GAP for image in row) for _, row in rows) - _GAP
    sheet, top = Image.new("RGB", (width, sum(heights) - _GAP), "white"), 0
    pen = ImageDraw.Draw(sheet)
    for (text, row), height in zip(rows, heights, strict=True):
        if text:
            pen.text((2, top + _TEXT // 2), text, fill="black", font=font)
        left = 0
        for image in row:
            sheet.paste(image, (left, top + (2 * _TEXT if text else 0)))
            left += image.width + _GAP
        top += height
    return sheet


def _draw_image(data: Data, ref: ImageRef, undo: str) -> Image.Image | None:
    """An image with its boxes as they are, and dashed with a move undone; None if it cannot be read."""
    split, record = data.splits[ref[0]], data.splits[ref[0]][ref[1]]
    try:
        image, scale = resize_to(split.read(ref[1]), WIDTH, HEIGHT)
    except UserError:
        return None
    size = np.array([record.width, record.height] * 2, np.float32)
    moved = (MOVES[undo](record.boxes / size) * size * scale, record.labels) if undo else None
    return draw(image, record.boxes * scale, record.labels, data.names, dashed=moved)


def _draw_sample(dataset: DetectionDataset, item: Item, names: list[str]) -> Image.Image:
    sample = dataset[item]
    seen = to_picture(sample["image"], dataset.transform.preprocessing)
    image, scale = resize_to(seen, WIDTH, HEIGHT)
    centre, size = sample["target"]["boxes"].split(2, 1)
    corners = torch.cat((centre - size / 2, centre + size / 2), 1) * torch.tensor([seen.width, seen.height] * 2) * scale
    return draw(image, corners.numpy(), sample["target"]["labels"].numpy(), names)
