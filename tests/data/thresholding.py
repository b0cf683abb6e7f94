"""Detection without learning, as well as it goes: threshold, connected components, and the class from an oracle.

The built-in scenes must not be solvable this way. To leave no doubt, every component is given the class of the object it overlaps most,
something that no such method could know.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy import ndimage
from scipy.cluster.vq import kmeans2

from boxquery.data.dataset import Record

Masks = Callable[[np.ndarray], list[np.ndarray]]
MIN_SIDE, MAX_SIDE = 0.04, 0.7  # of the image; the baseline is told how large objects are


def from_median(image: np.ndarray) -> list[np.ndarray]:
    """Far from the image's median colour, by Otsu's threshold."""
    distance = np.linalg.norm(image - np.median(image, (0, 1)), axis=2)
    return [distance > otsu(distance)]


def from_border(image: np.ndarray) -> list[np.ndarray]:
    """Far from every colour on the image's border, by Otsu's threshold."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])[::16]
    distance = np.linalg.norm(image[:, :, None] - border, axis=3).min(2)
    return [distance > otsu(distance)]


def from_surroundings(image: np.ndarray) -> list[np.ndarray]:
    """Far from the colour around, at three scales, by Otsu's threshold."""
    masks = []
    for sigma in (0.05, 0.12, 0.25):
        ground = ndimage.gaussian_filter(image, (sigma * len(image), sigma * len(image), 0))
        distance = np.linalg.norm(image - ground, axis=2)
        masks.append(distance > otsu(distance))
    return masks


def from_brightness(image: np.ndarray) -> list[np.ndarray]:
    """Brighter or darker than Otsu's threshold, in grey and in each channel."""
    planes = [image.mean(2), *np.moveaxis(image, 2, 0)]
    above = [plane > otsu(plane) for plane in planes]
    return [*above, *(~mask for mask in above)]


def from_clusters(image: np.ndarray) -> list[np.ndarray]:
    """Each of eight colour clusters."""
    _, labels = kmeans2(image.reshape(-1, 3), 8, minit="++", seed=0)
    labels = labels.reshape(image.shape[:2])
    return [labels == k for k in range(8)]


METHODS: list[Masks] = [from_median, from_border, from_surroundings, from_brightness, from_clusters]


def otsu(values: np.ndarray) -> float:
    """The threshold that leaves the least variance within the two sides."""
    counts, edges = np.histogram(values, 128)
    middle = (edges[:-1] + edges[1:]) / 2
    below, total = counts.cumsum(), (counts * middle).cumsum()
    above = below[-1] - below
    gap = total / np.maximum(below, 1) - (total[-1] - total) / np.maximum(above, 1)
    return float(middle[(below * above * gap**2).argmax()])


def components(image: np.ndarray, method: Masks) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [n, 4] xyxy of plausible size and their scores [n]: how different they are from the ground beside them."""
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (1, 1, 0))
    boxes, scores = [], []
    for mask in method(smooth):
        regions, _ = ndimage.label(ndimage.binary_opening(mask))
        for k, (rows, columns) in enumerate(ndimage.find_objects(regions), 1):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            touches = rows.start == 0 or columns.start == 0 or rows.stop == len(image) or columns.stop == len(image)
            if touches or not all(MIN_SIDE * len(image) <= side <= MAX_SIDE * len(image) for side in (height, width)):
                continue
            window = (slice(max(rows.start - 3, 0), rows.stop + 3), slice(max(columns.start - 3, 0), columns.stop + 3))
            inside = regions[window] == k
            beside = ndimage.binary_dilation(inside, iterations=3) & ~ndimage.binary_dilation(inside)
            boxes.append((columns.start, rows.start, columns.stop, rows.stop))
            scores.append(np.linalg.norm(smooth[window][inside].mean(0) - smooth[window][beside].mean(0)))
    return _without_duplicates(np.array(boxes, dtype=float).reshape(-1, 4), np.array(scores))


def _without_duplicates(boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best of every group of boxes that overlap by half, best first."""
    order = np.argsort(-scores)
    boxes, scores = boxes[order], scores[order]
    alike = overlaps(boxes, boxes) > 0.5
    keep: list[int] = []
    for i in range(len(boxes)):
        if not alike[i, keep].any():
            keep.append(i)
    return boxes[keep], scores[keep]


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [n, 4] and [m, 4]: [n, m]."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    both = np.clip(sides, 0, None).prod(2)
    area = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return both / (area[0][:, None] + area[1][None, :] - both)


def oracle_ap50(scenes: Iterable[tuple[Record, np.ndarray]], method: Masks, classes: int) -> float:
    """Mean over classes of the area under precision over recall at IoU 0.5, the class of each detection being known."""
    hits: list[list[tuple[float, bool]]] = [[] for _ in range(classes)]
    objects = np.zeros(classes)
    for record, image in scenes:
        boxes, scores = components(image, method)
        iou = overlaps(boxes, record.boxes)
        objects += np.bincount(record.labels, minlength=classes)
        taken: set[int] = set()
        for i in np.argsort(-scores):
            best = int(iou[i].argmax())
            hit = iou[i, best] >= 0.5 and best not in taken
            taken |= {best} if hit else set()
            hits[record.labels[best]].append((float(scores[i]), bool(hit)))
    return float(np.mean([_area(found, count) for found, count in zip(hits, objects, strict=True)]))


def _area(found: list[tuple[float, bool]], count: float) -> float:
    right = np.array([hit for _, hit in sorted(found, reverse=True)], dtype=float)
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best * right).sum() / count)
