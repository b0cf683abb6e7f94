"""Fewer queries in later decoder layers: after a layer only those with the best scores are kept (docs/options.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from boxquery.parts.heads import Prediction
from boxquery.parts.state import QueryState

#: ``(layer, state, prediction)`` -> the same for the queries that the next layer keeps
Prune = Callable[[int, QueryState, Prediction], tuple[QueryState, Prediction]]


def keep_all(layer: int, state: QueryState, prediction: Prediction) -> tuple[QueryState, Prediction]:
    """Every query is kept for the next layer, as in all papers."""
    return state, prediction


@dataclass(frozen=True)
class TopKPruning:
    """Keeps the ordinary queries with the highest class probability, and all training-only ones.

    Args:
        num_queries: of every layer, none larger than the one before.
        scores: logits [..., C] -> class probabilities.
    """

    num_queries: Sequence[int]
    scores: Callable[[Tensor], Tensor]

    def __call__(self, layer: int, state: QueryState, prediction: Prediction) -> tuple[QueryState, Prediction]:
        num_kept = self.num_kept(layer, state)
        if not num_kept:
            return state, prediction
        chosen = topk_queries(self.scores(prediction.logits.detach()), state.training_only(), num_kept)
        return state.only(chosen), prediction.only(chosen)

    def num_kept(self, layer: int, state: QueryState) -> int:
        """Number of ordinary queries kept for the next layer; 0 if none are dropped."""
        if layer + 1 >= len(self.num_queries):
            return 0
        here, following = self.num_queries[layer : layer + 2]
        return following if following < min(here, state.content.shape[1] - state.training_only()) else 0


@torch.no_grad()
def topk_queries(scores: Tensor, first: int, count: int) -> Tensor:
    """Scores [B, Q, C] -> positions [B, first + count]: the ``first`` (training-only) queries, and of the others those with the highest
    score; on ties the earlier ones. They stay in their order."""
    best = scores[:, first:].amax(-1)
    # which of equal ones topk takes is open in torch, but not in exported graphs, which lack a stable sort
    best = best.topk(count).indices if torch.compiler.is_exporting() else best.sort(descending=True, stable=True).indices[:, :count]
    best = best.sort().values
    always = torch.arange(first, device=best.device).expand(best.shape[0], -1)
    return torch.cat((always, best + first), 1)
