"""Which queries wanted the same object, and how that ended: the self-attention's part of an explanation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from boxquery.evaluation.coco_matching import iou

if TYPE_CHECKING:
    from torch import Tensor

    from boxquery.explain.explanation import Explanation

#: IoU from which a box lies on the object
OVERLAP = 0.5
#: of the threshold, from which a query has a say; of its own best score, under which it has fallen
SHARE = 0.2

FATES = DUPLICATE, OTHER_CLASS, MOVED, SILENCED, WEAK = "duplicate", "other class", "moved away", "silenced", "below threshold"


@dataclass(frozen=True)
class Rival:
    """A query that wanted the object of another one, the winner. Lists have one entry a decoder layer.

    Attributes:
        query: its number; ``name``: the class that it answers with in the end.
        competed: the layers in which it had a say (at least ``SHARE`` of the threshold) and its box lay on the winner's last one (IoU of
            ``OVERLAP``) or its reference (the centre of one that is a box) within it.
        scores: of its best class; ``overlaps``: IoU of its box with the winner's last one.
        read_winner: the share of its self-attention that fell on the winner, mean over heads; ``read_by_winner``: the other way round. With
            Q queries an even reading gives 1 / Q to each.
        fate: what it is in the last layer. A detection: ``duplicate`` if it lies on the winner's box with the same class, ``other class``
            with another, ``moved away`` if it lies elsewhere. No detection: ``silenced`` if it had been one in an earlier layer or fell
            under ``SHARE`` of its best score, else ``below threshold``.
        silent_from: the layer from which on it was no detection; None if it is one.
    """

    query: int
    name: str
    competed: list[int]
    scores: list[float]
    overlaps: list[float]
    read_winner: list[float]
    read_by_winner: list[float]
    fate: str
    silent_from: int | None

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def rivals(story: Explanation, queries: Sequence[int], most: int | None = None) -> list[list[Rival]]:
    """For each of n queries those that competed with it for what its last box holds, the best scores while they did first; all, or the
    first ``most``."""
    goals = story.boxes[-1, queries].astype(np.float64)
    overlaps = np.stack([iou(boxes.astype(np.float64), goals) for boxes in story.boxes])  # [L, Q, n]
    there = overlaps >= OVERLAP
    if story.references is not None:
        there |= _within(story.references, goals)
    competed = there & (story.scores >= SHARE * story.threshold)[..., None]
    competed[:, queries, range(len(queries))] = False
    best = np.where(competed, story.scores[..., None], -1.0).max(0)
    strongest, counts = np.argsort(-best, axis=0, kind="stable")[:most], np.count_nonzero(best >= 0, axis=0)
    read, read_by = _read(story, queries)
    return [
        [
            Rival(
                query=other,
                name=story.name(other),
                competed=np.flatnonzero(competed[:, other, at]).tolist(),
                scores=story.scores[:, other].tolist(),
                overlaps=overlaps[:, other, at].tolist(),
                read_winner=read[:, other, at].tolist(),
                read_by_winner=read_by[:, other, at].tolist(),
                fate=_fate(story, query, other, bool(overlaps[-1, other, at] >= OVERLAP)),
                silent_from=_silent_from(story.scores[:, other], story.threshold),
            )
            for other in strongest[: counts[at], at].tolist()
        ]
        for at, query in enumerate(queries)
    ]


def _within(references: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[L, Q, n] bool: the point, or the centre of the box, lies in each of ``boxes`` [n, 4]."""
    points = references if references.shape[-1] == 2 else (references[..., :2] + references[..., 2:]) / 2
    return np.all((points[:, :, None] >= boxes[:, :2]) & (points[:, :, None] <= boxes[:, 2:]), axis=-1)


def _read(story: Explanation, queries: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Two [L, Q, n]: how much every query read each of n, and each of n every query."""
    layers = [cast("Tensor", layer.self_attention)[0] for layer in story.trace.layers]
    read = [layer[:, :, queries].mean(0) for layer in layers]
    read_by = [layer[:, queries].mean(0).T for layer in layers]
    return np.stack([each.float().cpu().numpy() for each in read]), np.stack([each.float().cpu().numpy() for each in read_by])


def _silent_from(scores: np.ndarray, threshold: float) -> int | None:
    spoken = np.flatnonzero(scores >= threshold)
    silent_from = int(spoken[-1]) + 1 if len(spoken) else 0
    return silent_from if silent_from < len(scores) else None


def _fate(story: Explanation, winner: int, query: int, on_object: bool) -> str:
    scores = story.scores[:, query]
    if scores[-1] >= story.threshold:
        if not on_object:
            return MOVED
        return DUPLICATE if story.labels[-1, query] == story.labels[-1, winner] else OTHER_CLASS
    fell = scores.max() >= story.threshold or scores[-1] < SHARE * scores.max()
    return SILENCED if fell else WEAK
