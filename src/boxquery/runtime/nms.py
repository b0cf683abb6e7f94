"""Non-maximum suppression within each class, in NumPy."""

from __future__ import annotations

import numpy as np


def nms_per_class(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """Which boxes are kept: of two of a class with an IoU above ``threshold`` the one with the higher score.

    Args:
        boxes: float [K, 4] xyxy; scores [K]; labels [K].

    Returns their indices, best first; of equal scores the earlier first.
    """
    order = np.argsort(-scores, kind="stable")
    x1, y1, x2, y2 = boxes[order].T
    areas, sorted_labels = (x2 - x1) * (y2 - y1), labels[order]
    alive, kept = np.ones(len(order), bool), []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        rest = i + 1 + np.flatnonzero(alive[i + 1 :] & (sorted_labels[i + 1 :] == sorted_labels[i]))
        width = np.minimum(x2[rest], x2[i]) - np.maximum(x1[rest], x1[i])
        height = np.minimum(y2[rest], y2[i]) - np.maximum(y1[rest], y1[i])
        shared = width.clip(min=0) * height.clip(min=0)
        alive[rest[shared > threshold * (areas[rest] + areas[i] - shared)]] = False
    return order[kept]
