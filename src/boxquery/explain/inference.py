"""Run a detector on a split and keep what every query predicts, for the tables over a data set."""

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
from boxquery.evaluation.predictions import read_batches, warn_skipped
from boxquery.models.base import DetectionTransformer
from boxquery.parts.boxes import cxcywh_to_xyxy
from boxquery.parts.output import Output


def open_split(detector: Detector, data: str | Path | Data, split: str, strict: bool = False) -> tuple[str, Split]:
    """The data's name, and a split of it with labels that are indices of ``detector.classes``.

    Raises ``UserError`` if the data lacks the split or has a class that the detector does not know.
    """
    opened = open_data(data, strict=strict) if isinstance(data, str | Path) else data
    return str(opened.source), map_labels(opened, split, detector.classes)


def split_batches(detector: Detector, records: Split, strict: bool, skipped: list[str]) -> Iterator[Batch]:
    """The images of a split on the detector's device, 8 per batch.

    An image whose pixels cannot be read is named on stderr and in ``skipped``, and replaced by another, perhaps for the second time; with
    ``strict`` it is fatal.
    """

    def skip(line: str) -> None:
        skipped.append(line)
        warn_skipped(line)

    for batch in read_batches(DetectionDataset(records, detector.transform, strict=strict), range(len(records)), warn=skip):
        yield batch.to(detector.device)


@torch.inference_mode()
def run_model(
    detector: Detector,
    images: Tensor,
    mask: Tensor | None = None,
    *,
    model: DetectionTransformer | None = None,
    last_only: bool = False,
    trace: bool = False,
) -> Output:
    """The output of the detector's model, or of another ``model``, with logit -inf in the columns without a class name."""
    return detector.hide_unnamed((model or detector.transformer).eval()(images, mask, last_only=last_only, trace=trace))


def pixel_boxes(out: Output, image: int, record: Record) -> np.ndarray:
    """float64 [L, Q, 4]: the boxes of one image of a batch, xyxy in pixels of the record, not clipped."""
    scale = torch.tensor([record.width, record.height] * 2, dtype=torch.float32)
    return (cxcywh_to_xyxy(out.boxes[:, image].float().cpu()) * scale).double().numpy()


def without_self_attention(model: DetectionTransformer) -> DetectionTransformer:
    """The model with self-attention in which every query attends to itself alone. The parameters are shared, ``model`` does not change."""

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
    alone.inference_layers = model.inference_layers
    return alone.eval()
