"""What a model answers."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from boxquery.matching.hungarian import Matches
from boxquery.parts.trace import Trace


@dataclass(frozen=True)
class LayerPredictions:
    """Raw answers: ``logits`` [L, B, N, C] and ``boxes`` [L, B, N, 4] (cxcywh in [0, 1] of the unpadded extent), a row per layer."""

    logits: Tensor
    boxes: Tensor


@dataclass(frozen=True)
class TrainingGroupOutput(LayerPredictions):
    """Answers of queries that exist in training only, with the objects that they are taught.

    ``matches`` holds for all layers; ``times``: how often each object stands in it, by which the loss is divided.
    """

    matches: Matches
    times: int


@dataclass(frozen=True)
class Output(LayerPredictions):
    """What ``model(images, mask)`` returns; shapes as in ``LayerPredictions`` with N = Q ordinary queries, the last row is final.

    Attributes:
        proposals: the encoder's own answers where the model is two-stage (L = 1, N = tokens or chosen tokens).
        alive: [L, B, Q] bool where queries are dropped between layers.
        extra: named groups of queries that exist in training only, made from the targets.
        trace: what each query did, with ``trace=True``.
    """

    proposals: LayerPredictions | None = None
    alive: Tensor | None = None
    extra: dict[str, TrainingGroupOutput] = field(default_factory=dict)
    trace: Trace | None = None
