"""One set of pairs for the boxes of all layers: a query learns the object that most of them give it (D-FINE, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from boxquery.matching.hungarian import Assignment


def union(found: Sequence[Assignment]) -> tuple[list[Assignment], int]:
    """Every pair of any layer and assignment, in each layer of each; and how many these are in one layer.

    A query keeps the object that it has most often, on ties the one that comes first in its image. Layers in which the query was pruned
    do not have the pair.
    """
    pairs, times = np.unique(np.concatenate([a.pairs[1:] for a in found], 1), axis=1, return_counts=True)
    image, query, target = pairs
    pairs = pairs[:, np.lexsort((target, -times, query, image))]
    pairs = pairs[:, np.insert((pairs[:2, 1:] != pairs[:2, :-1]).any(0), 0, [True] * min(pairs.shape[1], 1))]
    return [_everywhere(pairs, a) for a in found], pairs.shape[1]


def _everywhere(pairs: np.ndarray, like: Assignment) -> Assignment:
    """Pairs [3, P] (image, query, target) in each layer of an assignment where the query was not pruned."""
    layers, batch = np.shape(like.counts)
    every = np.stack((np.repeat(np.arange(layers), pairs.shape[1]), *np.tile(pairs, layers)))
    if like.alive is not None:
        every = every[:, like.alive[every[0], every[1], every[2]]]
    counts = np.bincount(every[0] * batch + every[1], minlength=layers * batch).reshape(layers, batch)
    return Assignment(every, tuple(map(tuple, counts.tolist())), like.alive)
