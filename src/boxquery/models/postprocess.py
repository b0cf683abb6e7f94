"""From a layer's logits and boxes to detections, as a module of tensor operations alone, so that it can be exported with the model."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from boxquery.matching.criterion import Classification
from boxquery.parts.box_coder_3d import to_boxes
from boxquery.parts.boxes import at_least_float32, chosen_rows, cxcywh_to_xyxy


class Detections(NamedTuple):
    """Per image, best first: scores [B, K], labels [B, K], boxes [B, K, 4] xyxy in pixels, unclipped, and the index of each one's query
    [B, K]."""

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    queries: Tensor


class SceneDetections(NamedTuple):
    """As ``Detections`` with boxes [B, K, 9] in metres (``boxquery.boxes3d``)."""

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    queries: Tensor


class BestQueries(nn.Module):
    """The best classes and queries of each image.

    Args:
        classification: how logits are scored. A softmax gives each query one class; a sigmoid may give it several.
        top_k: detections per image where a query may have several classes; 0: as many as queries.
    """

    def __init__(self, classification: Classification, top_k: int = 100):
        super().__init__()
        self.classification, self.top_k = classification, top_k

    def best(self, logits: Tensor, top_k: int | None, one_label: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [B, Q, C] -> scores, labels and queries of the best, [B, K] each; see ``PostProcess.forward``."""
        scores = self.classification.scores(logits)
        queries, classes = scores.shape[1:]
        if one_label or self.classification.has_no_object:
            scores, labels = scores.max(-1)
            scores, index = scores.topk(queries if top_k is None else min(top_k, queries))
            return scores, labels.gather(1, index), index
        scores, flat = scores.flatten(1).topk(min(top_k or self.top_k or queries, queries * classes))
        return scores, flat % classes, flat // classes


def of_kept(logits: Tensor, boxes: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """[B, Q, ...] at the indices ``kept`` [B, K], None: all; in float32 at least."""
    logits, boxes = at_least_float32(logits, boxes)
    return (logits, boxes) if kept is None else (chosen_rows(logits, kept), chosen_rows(boxes, kept))


class PostProcess(BestQueries):
    """The best detections of each image."""

    def forward(
        self,
        logits: Tensor,
        boxes: Tensor,
        sizes: Tensor,
        kept: Tensor | None = None,
        *,
        top_k: int | None = None,
        one_label: bool = False,
    ) -> Detections:
        """The detections, best first.

        Args:
            logits, boxes: [B, Q, C], and [B, Q, 4] cxcywh in [0, 1].
            sizes: [B, 2], (height, width) of the original images.
            kept: [B, K] indices of the queries that were not pruned; None: all.
            top_k: instead of the module's own; with one class per query at most Q.
            one_label: only the best class of each query.
        """
        logits, boxes = of_kept(logits, boxes, kept)
        scores, labels, index = self.best(logits, top_k, one_label)
        scale = sizes.flip(-1).repeat(1, 2).to(boxes)
        chosen = cxcywh_to_xyxy(chosen_rows(boxes, index)) * scale[:, None]
        return Detections(scores, labels, chosen, index if kept is None else kept.gather(1, index))


class ScenePostProcess(BestQueries):
    """The best detections of each scene."""

    def forward(
        self, logits: Tensor, codes: Tensor, kept: Tensor | None = None, *, top_k: int | None = None, one_label: bool = False
    ) -> SceneDetections:
        """As ``PostProcess.forward``, of codes [B, Q, 10] (``boxquery.parts.box_coder_3d``)."""
        logits, codes = of_kept(logits, codes, kept)
        scores, labels, index = self.best(logits, top_k, one_label)
        return SceneDetections(scores, labels, to_boxes(chosen_rows(codes, index)), index if kept is None else kept.gather(1, index))
