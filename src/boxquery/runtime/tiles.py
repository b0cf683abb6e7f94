"""Detection in tiles of a large image, for objects that are small in it: where they lie, and one result from those of all. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxquery.limits import DEFAULT_OVERLAP, check_tiles

#: IoU, in what two views both show, from which two boxes of a class are one object
_AGREE = 0.5
#: a box that is cut has to be so much surer than one that is not, which may be the whole image's, and coarse
_CUT = 0.5
#: share of a tile's side within which a box that ends near the border of its tile counts as cut by it
_NEAR = 0.01


@dataclass(frozen=True, slots=True)
class Tiles:
    """Squares that cover an image, each of which is looked at beside the whole.

    Attributes:
        side: of a tile, in pixels of the image.
        overlap: share of it that neighbours have in common at least.
    """

    side: int
    overlap: float = DEFAULT_OVERLAP

    def __post_init__(self) -> None:
        check_tiles(self.side, self.overlap)

    def views(self, height: int, width: int) -> np.ndarray:
        """What is looked at, int64 [V, 4] xyxy: the whole image, then tiles row by row, if it is larger than one.

        All tiles have one size, so that they can run together: the last of a row or column ends where the image does.
        """
        ys, xs = self._starts(height), self._starts(width)
        high, wide = min(height, self.side), min(width, self.side)
        tiles = [(x, y, x + wide, y + high) for y in ys for x in xs]
        return np.array([(0, 0, width, height), *(tiles if len(tiles) > 1 else [])], np.int64)

    def count_cut(self, height: int, width: int, boxes: np.ndarray) -> int:
        """How many of the boxes [N, 4] in an image end where every tile does that holds them: parts, perhaps, of what is larger than the
        overlap."""
        views = self.views(height, width).astype(np.float64)
        cut, whole = np.zeros(len(boxes), bool), np.zeros(len(boxes), bool)
        for frame in views[1:]:
            near = _NEAR * (frame[2:] - frame[:2]).max()
            inside = (boxes[:, :2] >= frame[:2] - near).all(1) & (boxes[:, 2:] <= frame[2:] + near).all(1)
            ends = _is_cut(boxes, np.broadcast_to(frame, boxes.shape), views[0])
            cut, whole = cut | inside & ends, whole | inside & ~ends
        return int((cut & ~whole).sum())

    def _starts(self, length: int) -> list[int]:
        room = max(length - self.side, 0)
        steps = -(-room // max(1, int(self.side * (1 - self.overlap))))
        return [round(i * room / steps) for i in range(steps)] + [room] if steps else [0]


def merge_views(views: np.ndarray, found: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [K, 4] of the image, scores [K] and labels [K], best first, from those of its views.

    Two boxes of a class from two views are one object if they agree, by their IoU, on what both views show: a part that a tile cuts
    off then agrees with the whole object, however small the part. What a view sees twice, its detector has kept apart, and so it stays.

    1. A box that its tile cuts, while another tile shows all of it and more, is left to that tile.
    2. Of boxes that agree the best one stays that no tile cuts, with the best score of all.
    3. Where every one is cut, or those that are not have less than half of the score (as of what the whole image hardly shows), the hull of
       the parts stays: the object is larger than the overlap.

    Args:
        views: of ``Tiles.views``: the whole image, then tiles.
        found: per view its boxes [N, 4] xyxy in pixels of the view, scores [N] and labels [N].
    """
    view = np.repeat(np.arange(len(found)), [len(scores) for _, scores, _ in found])
    frames = views[view].astype(np.float64)
    boxes = np.concatenate([np.asarray(each, np.float64).reshape(-1, 4) for each, _, _ in found]) + np.tile(frames[:, :2], 2)
    boxes = np.clip(boxes, np.tile(frames[:, :2], 2), np.tile(frames[:, 2:], 2))
    scores, labels = (np.concatenate([each[column] for each in found]) for column in (1, 2))
    cut = _is_cut(boxes, frames, views[0])
    kept = ~_shown_better(boxes, view, cut, views)
    merged: list[tuple[np.ndarray, float, int]] = []
    for label in np.unique(labels[kept]):
        mine = np.flatnonzero(kept & (labels == label))
        mine = mine[np.argsort(-scores[mine] * np.where(cut[mine], _CUT, 1), kind="stable")]
        merged += [(box, score, int(label)) for box, score in _merge(boxes[mine], scores[mine], view[mine], cut[mine], views)]
    merged.sort(key=lambda each: -each[1])
    return (
        np.array([box for box, _, _ in merged], np.float32).reshape(-1, 4),
        np.array([score for _, score, _ in merged], np.float32),
        np.array([label for _, _, label in merged], np.int64),
    )


def _is_cut(boxes: np.ndarray, frames: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Which boxes [N, 4] end at a border of their view [N, 4] that is not one of the image: bool [N]."""
    near = _NEAR * (frames[:, 2:] - frames[:, :2]).max(1, initial=0, keepdims=True)
    return ((np.abs(boxes - frames) <= near) & (frames != whole)).any(1)


def _shown_better(boxes: np.ndarray, view: np.ndarray, cut: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Which cut boxes lie in another tile that does not cut them: bool [N]."""
    better = np.zeros(len(boxes), bool)
    for number, frame in enumerate(views[1:], 1):
        inside = (boxes[:, :2] >= frame[:2]).all(1) & (boxes[:, 2:] <= frame[2:]).all(1)
        frames = np.broadcast_to(frame.astype(np.float64), boxes.shape)
        better |= cut & inside & (view != number) & ~_is_cut(boxes, frames, views[0])
    return better


def _merge(boxes: np.ndarray, scores: np.ndarray, view: np.ndarray, cut: np.ndarray, views: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Of one class, the best first."""
    free = np.ones(len(boxes), bool)
    merged = []
    for head in range(len(boxes)):
        if not free[head]:
            continue
        free[head] = False
        group, waiting = [head], [head]
        while waiting:
            more = np.flatnonzero(free & _agree(boxes, view, waiting.pop(), views))
            free[more] = False
            group += more.tolist()
            waiting += [int(i) for i in more if cut[i]] if cut[head] else []  # a long object is a chain of parts
        parts = [i for i in group if cut[i]]
        box = np.concatenate([boxes[parts, :2].min(0), boxes[parts, 2:].max(0)]) if cut[head] else boxes[head]
        merged.append((box, float(scores[group].max())))
    return merged


def _agree(boxes: np.ndarray, view: np.ndarray, head: int, views: np.ndarray) -> np.ndarray:
    """Which boxes are, by what their view and that of one of them both show, the same object: bool [N]."""
    low = np.maximum(views[view, :2], views[view[head], :2])
    high = np.minimum(views[view, 2:], views[view[head], 2:])
    mine = np.clip(np.broadcast_to(boxes[head], boxes.shape), np.tile(low, 2), np.tile(np.maximum(low, high), 2))
    theirs = np.clip(boxes, np.tile(low, 2), np.tile(np.maximum(low, high), 2))
    shared = (np.minimum(mine[:, 2:], theirs[:, 2:]) - np.maximum(mine[:, :2], theirs[:, :2])).clip(0).prod(1)
    union = (mine[:, 2:] - mine[:, :2]).prod(1) + (theirs[:, 2:] - theirs[:, :2]).prod(1) - shared
    return (view != view[head]) & (shared >= _AGREE * union) & (union > 0)
