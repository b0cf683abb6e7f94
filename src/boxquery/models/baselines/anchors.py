"""Anchors: their positions, and their sizes and ratios by default or from the objects of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

#: least number of objects from which a level's sizes are measured; with fewer it keeps its default
ENOUGH = 10
#: height over width, where nothing was measured (Faster R-CNN, section 3.1.1)
RATIOS = (0.5, 1.0, 2.0)


class GridAnchors(AnchorGenerator):
    """torchvision's anchors, at the strides that the maps have and in float32 at least.

    torchvision divides the size of the padded batch by that of the map, so that anchors would move with the padding; and it takes the
    map's precision, in which bf16 has no odd pixels above 256.

    Args:
        sizes: pixels, square root of the area; equally many per level.
        ratios: height over width, for every size.
        strides: pixels from one cell of a level to the next.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]):
        super().__init__(tuple(map(tuple, sizes)), (tuple(ratios),) * len(sizes))
        self.strides = list(strides)

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """The same [N, 4] for every image, xyxy in pixels: level by level, row by row, cell by cell."""
        like = feature_maps[0]
        self.set_cell_anchors(torch.promote_types(like.dtype, torch.float32), like.device)
        grids = [list(features.shape[-2:]) for features in feature_maps]
        anchors = torch.cat(self.grid_anchors(grids, [[stride, stride] for stride in self.strides]))  # pyright: ignore[reportArgumentType]
        return [anchors] * len(image_list.image_sizes)


def default_sizes(strides: Sequence[int], per_stride: float, scales: int) -> list[list[float]]:
    """``per_stride`` strides and up to, not including, twice that, in equal ratios: the papers' own sizes on the papers' own strides."""
    return [[round(per_stride * stride * 2 ** (i / scales), 3) for i in range(scales)] for stride in strides]


def measured_sizes(objects: np.ndarray, strides: Sequence[int], per_stride: float, scales: int) -> list[list[float]]:
    """Sizes from the objects' widths and heights [N, 2] in pixels of the input.

    A level is for objects of ``per_stride`` of its strides and up to the next level's, the finest also for all smaller ones and the
    coarsest for all larger ones. Its ``scales`` sizes are evenly spaced quantiles of the sizes (square root of the area) of its objects:
    the middles of ``scales`` equal shares. A level of fewer than ``ENOUGH`` objects keeps its default.
    """
    size = np.sqrt(objects.prod(axis=1))
    edges = [0.0, *(per_stride * stride for stride in strides[1:]), np.inf]
    own = [size[(low <= size) & (size < high)] for low, high in pairwise(edges)]
    defaults = default_sizes(strides, per_stride, scales)
    return [_quantiles(mine, scales) if len(mine) >= ENOUGH else default for mine, default in zip(own, defaults, strict=True)]


def measured_ratios(objects: np.ndarray) -> list[float]:
    """As many ratios as ``RATIOS`` has: the middles of equal shares of the objects; ``RATIOS`` for too few."""
    return _quantiles(objects[:, 1] / objects[:, 0], len(RATIOS)) if len(objects) >= ENOUGH else list(RATIOS)


def _quantiles(values: np.ndarray, count: int) -> list[float]:
    return [round(float(q), 3) for q in np.quantile(values, (np.arange(count) + 0.5) / count)]
