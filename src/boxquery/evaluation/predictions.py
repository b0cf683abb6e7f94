"""The detections of a model on every image of a split, as ``evaluate`` takes them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from torch.utils.data import DataLoader

from boxquery.data.loading import Batch, DetectionDataset, collate
from boxquery.data.transforms import ResizeTransform
from boxquery.data.validation import fail_if_too_many
from boxquery.errors import UserError
from boxquery.evaluation.coco_matching import ImageDetections
from boxquery.limits import MAX_DETECTIONS
from boxquery.runtime.nms import nms_per_class

if TYPE_CHECKING:
    from boxquery.data.dataset import AnySplit, Split
    from boxquery.runtime.predictor import Predictor
    from boxquery.runtime.tiles import Tiles

DetectionsByImage = dict[int, ImageDetections]
"""Position in a split -> its detections."""
T = TypeVar("T")
S = TypeVar("S", bound="AnySplit")


def warn_skipped(line: str) -> None:
    """Name an image that is left out on stderr."""
    print(f"skipped: {line}", file=sys.stderr)


def read_batches(
    dataset: DetectionDataset, order: Iterable[int], *, batch_size: int = 8, workers: int = 0, warn: Callable[[str], None] = warn_skipped
) -> Iterator[Batch]:
    """Images of a data set, each with others of its shape: none is padded, so that what is found in it depends on it alone.

    One whose pixels cannot be read is replaced by another, perhaps for the second time; ``warn`` is called once for each.
    """
    shapes = dataset.shapes()
    by_shape: dict[tuple[int, int, int], list[int]] = {}
    for i in order:
        by_shape.setdefault(shapes[i], []).append(i)
    chunks = [alike[start : start + batch_size] for alike in by_shape.values() for start in range(0, len(alike), batch_size)]
    warned: set[str] = set()
    for batch in DataLoader(dataset, batch_sampler=chunks, collate_fn=collate, num_workers=workers):
        for line in batch.unreadable:
            if line not in warned:
                warned.add(line)
                warn(line)
        yield batch


def predict_split(
    detector: Predictor,
    split: Split,
    *,
    batch_size: int = 8,
    workers: int = 0,
    only: Sequence[int] | None = None,
    cached: DetectionDataset | None = None,
    nms: float | None = None,
    max_detections: int = MAX_DETECTIONS,
    tiles: Tiles | None = None,
    strict: bool = False,
    warn: Callable[[str], None] = warn_skipped,
    done: Callable[[int], None] = lambda count: None,
) -> DetectionsByImage:
    """Position in the split -> (boxes [K, 4] xyxy pixels, scores [K], labels [K]), as ``evaluate`` takes them.

    Args:
        max_detections: as ``evaluate`` will be given. The model is asked for the paper's own number per image, unless this or an image's
            objects are more than COCO's 100: then for one per query at least.
        only: positions to predict, such as one process's share; None: all.
        cached: a data set over this split that keeps images as ``detector.resize`` makes them.
        nms: IoU threshold of NMS, see ``Model.postprocess``.
        tiles: looked at beside each whole image, ``batch_size`` at once; images are then read one by one in this process.
        strict: an image whose pixels cannot be read is fatal.
        warn: called once for each image whose pixels cannot be read, which has no entry (see ``drop_unreadable``); prints on stderr by
            default.
        done: called with the number of images of every batch.
    """
    if batch_size < 1 or workers < 0:
        raise UserError(f"batch_size={batch_size}, workers={workers}: a batch has at least 1 image, and workers is 0 or more")
    order = list(range(len(split)) if only is None else only)
    needed = max([max_detections, *(len(record.boxes) for record in split)])
    top_k = max(needed, detector.num_queries) if needed > MAX_DETECTIONS else None
    found: DetectionsByImage = {}
    if tiles is not None:
        for i in order:
            try:
                image = split.read(i)
            except UserError as error:
                if strict:
                    raise
                warn(error.line())
            else:
                found[i] = detector.detect_in_tiles(image, tiles, batch_size=batch_size, top_k=top_k, nms=nms)
            done(1)
        return found
    dataset = cached or DetectionDataset(split, ResizeTransform(detector.resize), strict=strict)
    for batch in read_batches(dataset, order, batch_size=batch_size, workers=workers, warn=warn):
        sizes = [(split[i].height, split[i].width) for i in batch.indices]
        found |= zip(batch.indices, detector.detect(batch.images.numpy(), sizes, top_k=top_k, nms=nms), strict=True)
        done(len(sizes))
    return {i: found[i] for i in order if i in found}  # without those that only replaced others


def apply_nms(found: DetectionsByImage, iou: float) -> DetectionsByImage:
    """``predict_split(nms=iou)`` from its result without, for a model that applies no NMS by itself."""
    kept: DetectionsByImage = {}
    for position, (boxes, scores, labels) in found.items():
        left = nms_per_class(boxes, scores, labels, iou)
        kept[position] = boxes[left], scores[left], labels[left]
    return kept


def keep_labels(found: DetectionsByImage, labels: Sequence[int]) -> DetectionsByImage:
    """The detections of some classes alone."""
    kept: DetectionsByImage = {}
    for position, (boxes, scores, own) in found.items():
        wanted = np.isin(own, labels)
        kept[position] = boxes[wanted], scores[wanted], own[wanted]
    return kept


def drop_unreadable(split: S, found: dict[int, T]) -> tuple[S, dict[int, T]]:
    """The images of a split that have an entry in ``found``, and the entries by position among those.

    Raises ``UserError`` where more than a tenth have none, since they could not be read: AP would be that of another data set.
    """
    if len(found) == len(split):
        return split, found
    kept = sorted(found)
    fail_if_too_many(len(split) - len(kept), len(split), f"images of split {split.name!r} cannot be read")
    return replace(split, records=[split[i] for i in kept]), {new: found[i] for new, i in enumerate(kept)}
