"""A model over a split: what ``evaluate`` needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import DataLoader

from boxquery.data.loading import DetectionDataset, collate
from boxquery.errors import UserError

if TYPE_CHECKING:
    from boxquery.data.dataset import Data, Split
    from boxquery.detector import Detector

Found = dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]


def predict_split(
    detector: Detector,
    split: Split,
    *,
    batch_size: int = 8,
    workers: int = 0,
    only: Sequence[int] | None = None,
    cached: DetectionDataset | None = None,
    nms: float | None = None,
) -> Found:
    """Position in the split -> (boxes [K, 4] xyxy pixels, scores [K], labels [K]), as ``evaluate`` takes them.

    Args:
        only: positions to predict (one process's share); None: all.
        cached: a data set over this split that keeps decoded images.
        nms: IoU of suppression, see ``Model.postprocess``.
    """
    dataset = cached or DetectionDataset(split, detector.transform)
    order = list(range(len(split)) if only is None else only)
    found: Found = {}
    for batch in DataLoader(dataset, batch_size, sampler=order, collate_fn=collate, num_workers=workers):
        sizes = [(split[i].height, split[i].width) for i in batch.indices]
        for i, answer in zip(batch.indices, detector.answers(batch.images, batch.mask, sizes, nms=nms), strict=True):
            found[i] = tuple(answer[k].cpu().numpy() for k in ("boxes", "scores", "labels"))  # pyright: ignore[reportArgumentType]
    return found


def relabelled(data: Data, split: str, classes: Sequence[str | None]) -> Split:
    """A split with labels that are positions in the detector's classes, matched by name."""
    known = {name: i for i, name in enumerate(classes) if name is not None}
    used = {int(label) for record in data.splits[split] for label in np.unique(record.labels)}
    if unknown := sorted({data.names[i] for i in used} - known.keys()):
        raise UserError(f"{data.source}: the detector does not know {', '.join(unknown)}; it knows {', '.join(known)}")
    if list(data.names) == list(classes):
        return data.splits[split]
    table = np.array([known.get(name, -1) for name in data.names], dtype=np.int64)
    return replace(data.splits[split], records=[replace(r, labels=table[r.labels]) for r in data.splits[split]])
