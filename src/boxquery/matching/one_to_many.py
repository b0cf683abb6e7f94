"""Mixed supervision: the ordinary queries learn several to an object before the feed-forward network, and one to one after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from boxquery.matching.hungarian import PaddedTargets, PairMeasures, check_finite
from boxquery.parts.output import LayerPredictions


@dataclass(frozen=True)
class OneToMany:
    """Several queries per object by the quality of their predictions (MS-DETR, Zhao et al. 2024, arXiv:2401.03989, section 3.3).

    The quality of a query for an object is ``iou`` x IoU + ``score`` x the probability of its class. A query goes to the object for which
    it is best, and learns it if that quality is at least ``threshold``, or if it is the best query of some object; of these a random
    ``share`` of all queries at most, and then at most the best ``most`` per object.
    """

    iou: float = 0.7
    score: float = 0.3
    threshold: float = 0.4
    share: float = 0.25
    most: int = 6

    def measure(self, criterion: PairMeasures, predictions: LayerPredictions, targets: PaddedTargets) -> Tensor:
        return self.iou * criterion.overlap(predictions.boxes, targets) + self.score * criterion.probability(predictions.logits, targets)

    def __call__(
        self, measured: np.ndarray, counts: Sequence[int], alive: np.ndarray | None
    ) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
        layers, batch, queries, objects = measured.shape
        chance = torch.rand(layers, batch, queries).numpy()
        if not objects:
            return np.empty((4, 0), np.int64), ((0,) * batch,) * layers
        present = np.arange(objects) < np.asarray(counts)[:, None]
        possible = np.broadcast_to(present[:, None], measured.shape)
        if alive is not None:
            possible = possible & alive[..., None]
        if len(wrong := np.argwhere(~np.isfinite(measured) & possible)):
            check_finite(measured[tuple(wrong[0])], int(wrong[0, 0]), int(wrong[0, 1]), "quality")
        quality = np.where(possible, measured, -1.0)
        target, best = quality.argmax(-1), quality.max(-1)
        chosen = best >= self.threshold
        layer, image, number = np.nonzero(quality.max(2) >= 0)
        chosen[layer, image, quality.argmax(2)[layer, image, number]] = True
        rank = np.where(chosen, -chance, 1.0).argsort(-1).argsort(-1)
        layer, image, query = (chosen & (rank < max(int(self.share * queries), 1))).nonzero()
        target, best = target[layer, image, query], best[layer, image, query]
        # the rank of every pair within its object
        owner = (layer * batch + image) * objects + target
        order = np.lexsort((-best, owner))
        rank = np.arange(len(order)) - np.searchsorted(owner[order], owner[order])
        kept = np.sort(order[rank < self.most])
        pairs = np.stack((layer, image, query, target))[:, kept]
        found = np.bincount(pairs[0] * batch + pairs[1], minlength=layers * batch).reshape(layers, batch)
        return pairs, tuple(map(tuple, found.tolist()))
