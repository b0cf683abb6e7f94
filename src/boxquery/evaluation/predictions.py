"""A model over a split: what ``evaluate`` needs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from boxquery.data.loading import Batch, DetectionDataset, collate
from boxquery.data.validation import fail_if_too_many
from boxquery.errors import UserError
from boxquery.parts.boxes import nms_per_class

if TYPE_CHECKING:
    from boxquery.data.dataset import Split
    from boxquery.detector import Detector

DetectionsByImage = dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]
_ANSWER = ("boxes", "scores", "labels")
T = TypeVar("T")


def say(line: str) -> None:
    print(f"skipped: {line}", file=sys.stderr)


def batches(
    dataset: DetectionDataset, order: Iterable[int], *, batch_size: int = 8, workers: int = 0, skipped: Callable[[str], None] = say
) -> Iterator[Batch]:
    """The images of a data set in an order. In the place of one whose pixels cannot be read stands another, perhaps for the second
    time; ``skipped`` is told once of each."""
    told: set[str] = set()
    for batch in DataLoader(dataset, batch_size, sampler=order, collate_fn=collate, num_workers=workers):
        for line in batch.unreadable:
            if line not in told:
                told.add(line)
                skipped(line)
        yield batch


def predict_split(
    detector: Detector,
    split: Split,
    *,
    batch_size: int = 8,
    workers: int = 0,
    only: Sequence[int] | None = None,
    cached: DetectionDataset | None = None,
    nms: float | None = None,
    strict: bool = False,
    skipped: Callable[[str], None] = say,
) -> DetectionsByImage:
    """Position in the split -> (boxes [K, 4] xyxy pixels, scores [K], labels [K]), as ``evaluate`` takes them.

    Args:
        only: positions to predict (one process's share); None: all.
        cached: a data set over this split that keeps decoded images.
        nms: IoU of suppression, see ``Model.postprocess``.
        strict: an image whose pixels cannot be read is fatal.
        skipped: told once of each image whose pixels cannot be read; it has no entry (see
            ``drop_unreadable``). Printed on stderr by default.
    """
    if batch_size < 1 or workers < 0:
        raise UserError(f"batch_size={batch_size}, workers={workers}: at least 1 image at once, by 0 or more processes")
    dataset = cached or DetectionDataset(split, detector.transform, strict=strict)
    order = list(range(len(split)) if only is None else only)
    found: DetectionsByImage = {}
    for batch in batches(dataset, order, batch_size=batch_size, workers=workers, skipped=skipped):
        sizes = [(split[i].height, split[i].width) for i in batch.indices]
        for i, answer in zip(batch.indices, detector.answers(batch.images, batch.mask, sizes, nms=nms), strict=True):
            found[i] = tuple(answer[name].cpu().numpy() for name in _ANSWER)  # pyright: ignore[reportArgumentType]
    return {i: found[i] for i in order if i in found}  # not those that only stood in for others


def suppressed(found: DetectionsByImage, iou: float) -> DetectionsByImage:
    """What ``predict_split`` gives with ``nms=iou``, from what it gave without, of a model that suppresses nothing by itself."""
    kept: DetectionsByImage = {}
    for place, answer in found.items():
        named = {name: torch.from_numpy(values) for name, values in zip(_ANSWER, answer, strict=True)}
        left = nms_per_class(named, iou)
        kept[place] = tuple(left[name].numpy() for name in _ANSWER)  # pyright: ignore[reportArgumentType]
    return kept


def drop_unreadable(split: Split, found: dict[int, T]) -> tuple[Split, dict[int, T]]:
    """The images of a whole split that were predicted, and what was found in them by position among them.

    Raises ``UserError`` where more than a tenth could not be read: their average precision would be that of another data set.
    """
    if len(found) == len(split):
        return split, found
    kept = sorted(found)
    fail_if_too_many(len(split) - len(kept), len(split), f"images of split {split.name!r} cannot be read")
    return replace(split, records=[split[i] for i in kept]), {new: found[i] for new, i in enumerate(kept)}
