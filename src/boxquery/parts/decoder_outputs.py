"""Predictions of the decoder layers, collected while the decoder runs."""

from __future__ import annotations

import torch
from torch import Tensor

from boxquery.parts.heads import Prediction
from boxquery.parts.output import LayerPredictions
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

    def stacked(self) -> tuple[LayerPredictions, Tensor | None]:
        """Of all layers or the last; and, where queries were pruned, alive [L, B, Q]. A pruned query keeps its last box, and its last raw
        numbers, and has logits of -inf."""
        logits: list[Tensor] = []
        boxes: list[Tensor] = []
        raws: list[Tensor] = []
        alive: list[Tensor] = []
        last, first = len(self.predictions) - 1, self.predictions[0]
        for i, (prediction, index) in enumerate(zip(self.predictions, self.indices, strict=True)):
            if self.last_only and i < last and self.indices[i + 1] is index:
                continue
            kept = torch.ones_like(prediction.boxes[..., 0], dtype=torch.bool)
            boxes.append(_kept(prediction.boxes, index, boxes))
            alive.append(kept if index is None else torch.zeros_like(alive[-1]).scatter(1, index, kept))
            if self.last_only and i < last:
                continue
            if prediction.keeps_raw and not self.last_only:
                raws.append(_kept(prediction.raw, index, raws))
            layer_logits = prediction.logits
            if index is not None:
                empty = layer_logits.new_full((*boxes[-1].shape[:2], layer_logits.shape[-1]), -torch.inf)
                layer_logits = empty.scatter(1, index[..., None].expand_as(layer_logits), layer_logits)
            logits.append(layer_logits)
        rows = slice(-1, None) if self.last_only else slice(None)
        initial = None if self.last_only or first.initial is None else first.initial
        predictions = LayerPredictions(
            torch.stack(logits),
            torch.stack(boxes[rows]),
            raw=torch.stack(raws) if raws else None,
            anchor=first.anchor if raws else None,
            initial=None if initial is None else LayerPredictions(initial.logits[None], initial.boxes[None]),
        )
        return predictions, None if self.indices[-1] is None else torch.stack(alive[rows])

    def contents(self) -> Tensor:
        """[L, B, Q, D], what the predictions of the same layers were made from; zero of a pruned query."""
        rows = slice(-1, None) if self.last_only else slice(None)
        size = self.predictions[0].content.shape
        out = []
        for prediction, index in list(zip(self.predictions, self.indices, strict=True))[rows]:
            content = prediction.content
            out.append(content if index is None else _kept(content, index, [content.new_zeros(size)]))
        return torch.stack(out)


def _kept(values: Tensor, index: Tensor | None, before: list[Tensor]) -> Tensor:
    """Values [B, K, n] of the queries at ``index`` [B, K] -> of all queries, the others as ``before``; None: they are all."""
    return values if index is None else before[-1].scatter(1, index[..., None].expand_as(values), values)
