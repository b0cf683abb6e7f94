"""Rivals: the queries that competed for one object, what became of them, and the self-attention between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from boxquery.evaluation.coco_matching import iou

#: IoU from which a box is on an object
OVERLAP = 0.5
#: a query competes from this share of the threshold, and is silenced below this share of its own best score
SHARE = 0.2

DUPLICATE, OTHER_CLASS, MOVED, SILENCED, WEAK = "duplicate", "other class", "moved away", "silenced", "below threshold"


@dataclass(frozen=True)
class Rival:
    """A query that competed with another one, the winner, for its object. Lists have one entry per decoder layer.

    Attributes:
        query: its number; ``name``: the class that it predicts in the last layer.
        competed: the layers in which its score was at least ``SHARE`` of the threshold, and its box was on the winner's last box (IoU of
            ``OVERLAP``) or its reference (or the reference's centre) inside that box.
        scores: of its best class; ``overlaps``: IoU of its box with the winner's last box.
        attention_to_winner: the share of its self-attention on the winner, mean over heads; ``attention_from_winner``: the reverse.
            Uniform attention over Q queries is 1 / Q.
        fate: what it is in the last layer. If a detection: ``duplicate`` on the winner's box with the same class, ``other class`` with
            another, ``moved away`` elsewhere. If not: ``silenced`` if it was one in an earlier layer or fell below ``SHARE`` of its best
            score, else ``below threshold``.
        silent_from: the layer from which on it is no detection; None if it is one.
    """

    query: int
    name: str
    competed: list[int]
    scores: list[float]
    overlaps: list[float]
    attention_to_winner: list[float]
    attention_from_winner: list[float]
    fate: str
    silent_from: int | None

    def summary(self) -> dict[str, Any]:
        return asdict(self)


def find_rivals(
    queries: Sequence[int],
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    references: np.ndarray | None,
    attention: np.ndarray,
    classes: Sequence[str | None],
    threshold: float,
    most: int | None = None,
) -> list[list[Rival]]:
    """The rivals of each of n queries, those with the best scores while they competed first; all, or the first ``most``.

    Args:
        boxes, scores, labels, references, classes, threshold: see ``Explanation``.
        attention: [L, Q, Q], self-attention of the row's query to the column's, mean over heads.
    """
    goals = boxes[-1, queries].astype(np.float64)
    overlaps = np.stack([iou(each.astype(np.float64), goals) for each in boxes])  # [L, Q, n]
    there = overlaps >= OVERLAP
    if references is not None:
        there |= _within(references, goals)
    competed = there & (scores >= SHARE * threshold)[..., None]
    competed[:, queries, range(len(queries))] = False
    best = np.where(competed, scores[..., None], -1.0).max(0)
    strongest, counts = np.argsort(-best, axis=0, kind="stable")[:most], np.count_nonzero(best >= 0, axis=0)
    return [
        [
            Rival(
                query=other,
                name=str(classes[labels[-1, other]]),
                competed=np.flatnonzero(competed[:, other, at]).tolist(),
                scores=scores[:, other].tolist(),
                overlaps=overlaps[:, other, at].tolist(),
                attention_to_winner=attention[:, other, query].tolist(),
                attention_from_winner=attention[:, query, other].tolist(),
                fate=_fate(scores[:, other], threshold, overlaps[-1, other, at] >= OVERLAP, labels[-1, other] == labels[-1, query]),
                silent_from=_silent_from(scores[:, other], threshold),
            )
            for other in strongest[: counts[at], at].tolist()
        ]
        for at, query in enumerate(queries)
    ]


def _within(references: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """bool [L, Q, n]: whether the point, or the centre of the box, is inside each of ``boxes`` [n, 4]."""
    points = references if references.shape[-1] == 2 else (references[..., :2] + references[..., 2:]) / 2
    return np.all((points[:, :, None] >= boxes[:, :2]) & (points[:, :, None] <= boxes[:, 2:]), axis=-1)


def _silent_from(scores: np.ndarray, threshold: float) -> int | None:
    detected = np.flatnonzero(scores >= threshold)
    silent_from = int(detected[-1]) + 1 if len(detected) else 0
    return silent_from if silent_from < len(scores) else None


def _fate(scores: np.ndarray, threshold: float, on_object: bool, same_class: bool) -> str:
    if scores[-1] >= threshold:
        return MOVED if not on_object else DUPLICATE if same_class else OTHER_CLASS
    fell = scores.max() >= threshold or scores[-1] < SHARE * scores.max()
    return SILENCED if fell else WEAK
