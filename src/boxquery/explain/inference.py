"""A model over a split, a batch at a time, with what every query says: where the tables over a data set begin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from boxquery.data.classes import map_labels
from boxquery.data.dataset import Data, Record, Split
from boxquery.data.loading import Batch, DetectionDataset
from boxquery.data.open import open_data
from boxquery.detector import Detector
from boxquery.evaluation.coco_matching import coco_match, flatten_detections
from boxquery.evaluation.errors import IOU_RIGHT
from boxquery.evaluation.predictions import read_batches, warn_skipped
from boxquery.models.base import DetectionTransformer
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.output import Output


def records_of(detector: Detector, data: str | Path | Data, split: str, strict: bool = False) -> tuple[str, Split]:
    """What the user named, and the split with labels that are positions in ``detector.classes``.

    Raises ``UserError`` where the data lacks the split or has a class that the detector does not know.
    """
    opened = open_data(data, strict=strict) if isinstance(data, str | Path) else data
    return str(opened.source), map_labels(opened, split, detector.classes)


def batches_of(detector: Detector, records: Split, strict: bool, skipped: list[str]) -> Iterator[Batch]:
    """The images of a split on the detector's device, 8 at once. One whose pixels cannot be read is named on stderr and in ``skipped``,
    and another stands in for it, perhaps for the second time; with ``strict`` it is fatal."""

    def skip(line: str) -> None:
        skipped.append(line)
        warn_skipped(line)

    for batch in read_batches(DetectionDataset(records, detector.transform, strict=strict), range(len(records)), warn=skip):
        yield batch.to(detector.device)


@torch.inference_mode()
def answer(
    detector: Detector,
    images: Tensor,
    mask: Tensor | None = None,
    *,
    model: DetectionTransformer | None = None,
    last_only: bool = False,
    trace: bool = False,
) -> Output:
    """What the model answers; columns without a name have logit -inf.

    Args:
        images, mask: on the detector's device, as a model takes them.
        model: another model than the detector's, for the same images.
        last_only: the last layer alone.
        trace: with what every query did.
    """
    return detector.hide_unnamed((model or detector.transformer).eval()(images, mask, last_only=last_only, trace=trace))


def pixels(out: Output, image: int, record: Record) -> np.ndarray:
    """float64 [L, Q, 4]: every layer's boxes of one image of the batch, xyxy in pixels of the record, not clipped."""
    scale = torch.tensor([record.width, record.height] * 2, dtype=torch.float32)
    return (cxcywh_to_xyxy(out.boxes[:, image].float().cpu()) * scale).double().numpy()


def outcomes(
    record: Record, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, classes: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which queries of an image are detections, and what COCO's greedy matching at IoU 0.5 says of them.

    Args:
        boxes, scores, labels: [Q, 4] xyxy pixels, [Q], [Q]: each query's best class, as ``Detector.predict`` answers.

    Returns detection bool [Q]; outcome int64 [Q]: RIGHT, WRONG or IGNORED, WRONG also where no detection is; object int64 [Q]: the place in
    ``record.boxes``, -1 where not RIGHT.
    """
    detection = (scores >= threshold) & (scores > 0)
    chosen = np.flatnonzero(detection)
    chosen = chosen[np.lexsort((-scores[chosen], labels[chosen]))]  # the order of ``gather``, so that its rows are these
    table = flatten_detections([record], {0: (boxes[chosen], scores[chosen], labels[chosen])}, classes, max(1, len(scores)))
    outcome, found = np.zeros(len(scores), np.int64), np.full(len(scores), -1)
    outcome[chosen], found[chosen] = coco_match([record], table, IOU_RIGHT)
    return detection, outcome, found


def without_self_attention(model: DetectionTransformer) -> DetectionTransformer:
    """The same model, made of the same parts, in which every query sees itself alone: self-attention returns its own value.

    Nothing of the given model changes; both share their parameters.
    """

    def locate(state, memory, layer):
        state, geometry = model.locate(state, memory, layer)
        alone = ~torch.eye(state.content.shape[1], dtype=torch.bool, device=state.content.device)
        return state, replace(geometry, self_mask=alone)

    alone = DetectionTransformer(
        image=(model.backbone, model.neck, model.tokens),
        encoder=model.encoder,
        queries=model.queries,
        layers=list(model.layers),
        norm=model.norm,
        heads=[model.head(i) for i in range(len(model.heads))],
        criterion=model.criterion,
        locate=locate,
        refine=model.refine,
        top_k=model.postprocessor.top_k,
    )
    alone.prune, alone.num_queries_per_layer = model.prune, model.num_queries_per_layer
    return alone.eval()
