"""Predictions of the decoder layers, collected while the decoder runs."""

from __future__ import annotations

import torch
from torch import Tensor

from boxquery.parts.heads import Prediction
from boxquery.parts.state import QueryState


class DecoderOutputs:
    """Predictions of the decoder layers, expanded to all queries of the first layer.

    Args:
        last_only: compute only the last layer's, and boxes of layers after which queries were pruned.
    """

    def __init__(self, last_only: bool):
        self.last_only = last_only
        self.predictions: list[Prediction] = []
        #: which queries of the first layer each layer had; None: all
        self.indices: list[Tensor | None] = []

    def append(self, prediction: Prediction, state: QueryState) -> None:
        self.predictions.append(prediction if self.last_only else prediction.computed())
        self.indices.append(state.query_index)

    def stacked(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Logits [L, B, Q, C], boxes [L, B, Q, 4] and, where queries were pruned, alive [L, B, Q]; a pruned query keeps its last box and
        has logits of -inf."""
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        alive: list[Tensor] = []
        last = len(self.predictions) - 1
        for i, (prediction, index) in enumerate(zip(self.predictions, self.indices, strict=True)):
            if self.last_only and i < last and self.indices[i + 1] is index:
                continue
            layer_boxes, kept = prediction.boxes, torch.ones_like(prediction.boxes[..., 0], dtype=torch.bool)
            if index is not None:
                layer_boxes = boxes[-1].scatter(1, index[..., None].expand_as(layer_boxes), layer_boxes)
                kept = torch.zeros_like(alive[-1]).scatter(1, index, kept)
            boxes.append(layer_boxes)
            alive.append(kept)
            if self.last_only and i < last:
                continue
            layer_logits = prediction.logits
            if index is not None:
                empty = layer_logits.new_full((*layer_boxes.shape[:2], layer_logits.shape[-1]), -torch.inf)
                layer_logits = empty.scatter(1, index[..., None].expand_as(layer_logits), layer_logits)
            logits.append(layer_logits)
        rows = slice(-1, None) if self.last_only else slice(None)
        return torch.stack(logits), torch.stack(boxes[rows]), None if self.indices[-1] is None else torch.stack(alive[rows])
