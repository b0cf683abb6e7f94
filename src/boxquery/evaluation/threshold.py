"""The score from which detections are right most often for what they miss. NumPy only."""

from __future__ import annotations

import numpy as np


def best_threshold(scores: np.ndarray, right: np.ndarray, objects: int) -> float | None:
    """The score with the best F1 of the detections at or above it; None where none is right.

    Args:
        scores, right: [K], of all detections that count.
        objects: how many there are to find.
    """
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    if not len(scores) or hits[-1] == 0:
        return None
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + objects)
    f1[:-1][scores[:-1] == scores[1:]] = -1  # equal scores are kept or dropped together
    return float(scores[int(np.argmax(f1))])


def rates(right: int, wrong: int, objects: int) -> dict[str, float | None]:
    """Precision, recall and F1 of so many detections and objects; None where there is nothing to divide by."""
    shown = right + wrong
    return {
        "precision": right / shown if shown else None,
        "recall": right / objects if objects else None,
        "f1": 2 * right / (shown + objects) if objects else None,
    }
