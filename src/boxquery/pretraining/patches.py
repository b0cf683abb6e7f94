"""Patches of images, drawn at random as UP-DETR draws them, and the data sets that cut them out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from boxquery.augment import Augment
from boxquery.data.dataset import Record, Split
from boxquery.data.loading import DetectionDataset, Item, Sample, generator
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.transforms import TrainTransform, normalize, recolour

#: shortest side of a patch in pixels of its image, which must have twice as many
LEAST = 8
#: what a patch is resized to, in pixels, where images have a short side of at most ``OF``; in proportion elsewhere
SIDE, OF = 128, 480
#: sides of patches are multiples of this
STEP = 16
#: largest relative change of brightness, contrast and saturation, and of the hue; blur in pixels of a patch of ``SIDE``
JITTER, HUE, BLUR = 0.4, 0.1, (0.1, 2.0)
#: probabilities of other colours, of grey and of blur
COLOUR, GREY, BLURRED = 0.8, 0.2, 0.5


def patch_side(image_size: int) -> int:
    """Pixels of a patch as the model gets it, for images with a short side of ``image_size`` at most."""
    return max(round(image_size * SIDE / OF / STEP), 2) * STEP


def draw_boxes(height: int, width: int, count: int, chance: torch.Generator) -> Tensor:
    """int64 [count, 4] xyxy in pixels of an image whose sides are at least ``2 * LEAST`` (UP-DETR, section 3.2).

    Width and height are drawn evenly from ``LEAST`` to that much less than the image's, then the place from all where the patch fits.
    """
    low, corner = [], []
    for extent in (width, height):
        side = torch.randint(LEAST, extent - LEAST + 1, (count,), generator=chance)
        start = (torch.rand(count, generator=chance, dtype=torch.float64) * (extent - side + 1)).long()
        low.append(start)
        corner.append(start + side)
    return torch.stack([*low, *corner], 1)


def fixed_boxes(record: Record, count: int) -> np.ndarray:
    """float32 [count, 4] xyxy in pixels, always the same of an image: where its patches are evaluated."""
    return draw_boxes(record.height, record.width, count, generator(0, 0, f"patches of {record.id!r}")).numpy().astype(np.float32)


def with_patches(split: Split, count: int) -> Split:
    """The images of a split with ``fixed_boxes`` as their objects, each of a class of its own."""
    labels, ignore = np.arange(count), np.zeros(count, bool)
    records = []
    for record in split:
        boxes = fixed_boxes(record, count)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        records.append(replace(record, boxes=boxes, labels=labels, ignore=ignore, areas=areas))
    return replace(split, records=records)


class PatchDataset(DetectionDataset):
    """Images without labels as samples of patch detection: targets are ``boxes``, ``labels`` of one class, and ``patches`` [P, 3, s, s].

    Args:
        split: from ``with_patches``.
        preprocessing, augment: of the images; what moves or mirrors them belongs to the detection of objects.
        count: patches of each image.
        drawn: patches and the size of the image are drawn anew in every epoch, and patches are recoloured; False: those of the records, as
            they are.
    """

    def __init__(
        self, split: Split, preprocessing: Preprocessing, augment: Augment, count: int, *, drawn: bool, seed: int = 0, strict: bool = False
    ):
        self.count, self.drawn, self.side = count, drawn, patch_side(preprocessing.image_size)
        self.whole = TrainTransform(preprocessing, augment)
        super().__init__(split, self.whole, seed=seed, cache=True, strict=strict)

    def __getitem__(self, item: int | tuple[int, int] | Item) -> Sample:
        """As of a ``DetectionDataset``; the random numbers depend on (seed, epoch, image id)."""
        epoch, wanted, *_ = (0, item) if isinstance(item, int) else item
        unreadable: list[str] = []
        picture, index = self._readable(wanted, unreadable)
        record, image = self.split[index], picture.image
        chance = generator(self.seed, epoch, record.id)
        height, width = image.shape[1:]
        boxes = draw_boxes(record.height, record.width, self.count, chance).float() if self.drawn else torch.from_numpy(record.boxes)
        # the file may have been read at a part of its size
        boxes = boxes * torch.tensor([width / record.width, height / record.height] * 2)
        patches = torch.stack([self.cut(image, box, chance) for box in boxes])
        shown, objects, labels = self.whole(image, boxes, torch.zeros(len(boxes), dtype=torch.int64), chance)
        target = {"labels": labels, "boxes": objects, "patches": patches}
        return {"image": shown, "target": target, "index": index, "unreadable": unreadable}

    def cut(self, image: Tensor, box: Tensor, chance: torch.Generator) -> Tensor:
        """One patch of a uint8 image, as the model gets it."""
        height, width = image.shape[1:]
        x1, y1, x2, y2 = box.round().int().tolist()
        x1, y1 = min(x1, width - 1), min(y1, height - 1)
        patch = image[:, y1 : max(y2, y1 + 1), x1 : max(x2, x1 + 1)]
        patch = F.resize(patch, [self.side, self.side], antialias=True)
        return normalize(self.recoloured(patch, chance) if self.drawn else patch, self.whole.preprocessing)

    def recoloured(self, patch: Tensor, chance: torch.Generator) -> Tensor:
        """In other colours, in grey, or blurred (SimCLR, as UP-DETR has it), so that colours alone do not say where it was."""

        def within(low: float, high: float) -> float:
            return low + (high - low) * torch.rand((), generator=chance).item()

        if within(0, 1) < COLOUR:
            brightness, contrast, saturation = (within(1 - JITTER, 1 + JITTER) for _ in range(3))
            patch = recolour(patch, brightness, contrast, saturation, within(-HUE, HUE))
        if within(0, 1) < GREY:
            patch = recolour(patch, 1, 1, 0, 0)
        if within(0, 1) < BLURRED:
            sigma = within(*BLUR) * self.side / SIDE
            patch = F.gaussian_blur(patch, [2 * math.ceil(2 * sigma) + 1] * 2, [sigma] * 2)
        return patch


def too_small(record: Record) -> bool:
    """Whether an image has no room for patches."""
    return min(record.width, record.height) < 2 * LEAST + 1
