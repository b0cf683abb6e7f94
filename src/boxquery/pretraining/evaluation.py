"""How well the patches of held-out images are found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from boxquery.data.dataset import Record
from boxquery.evaluation.coco_matching import ImageDetections
from boxquery.evaluation.predictions import DetectionsByImage, read_batches
from boxquery.pretraining.model import PatchDetection
from boxquery.pretraining.patches import PatchDataset


@torch.inference_mode()
def find_patches(
    model: PatchDetection, dataset: PatchDataset, only: Sequence[int], *, batch_size: int, warn: Callable[[str], None]
) -> DetectionsByImage:
    """Position in the split -> every query's box in pixels, its score, and the patch that it was told to look for.

    Args:
        dataset: patches that are not drawn anew.
        only: positions.
        warn: called once for each image that cannot be read, which has no entry.
    """
    device = next(model.eval().parameters()).device
    found: DetectionsByImage = {}
    for batch in read_batches(dataset, only, batch_size=batch_size, warn=warn):
        sizes = [(dataset.split[i].height, dataset.split[i].width) for i in batch.indices]
        moved = batch.to(device)
        out = model(*moved.inputs, targets=moved.targets, last_only=True)
        for index, image in zip(batch.indices, model.postprocess(out, sizes), strict=True):
            found[index] = (image["boxes"].cpu().numpy(), image["scores"].cpu().numpy(), image["labels"].cpu().numpy())
    return {i: found[i] for i in only if i in found}


def mean_iou(records: Sequence[Record], found: Mapping[int, ImageDetections]) -> float:
    """The mean over all patches of the IoU with the box that its own queries are most sure of; 0 where it has none."""
    total, number = 0.0, 0
    for i, record in enumerate(records):
        boxes, scores, labels = found.get(i, (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64)))
        for box, label in zip(record.boxes, record.labels, strict=True):
            number += 1
            own = labels == label
            if own.any():
                total += _iou(boxes[own][scores[own].argmax()], box)
    return total / max(number, 1)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    common = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    both = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common
    return float(common / both) if both > 0 else 0.0
