"""Whether the images of one split are BGR where those of another are RGB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from boxquery.check.box_fit import FEWEST
from boxquery.check.findings import Finding
from boxquery.check.samples import GREEN, LIGHT, RED_BLUE, SampledImage

#: shares of the images: reported if this share of train has its own colours and of the other split has them swapped; then as strong
USUAL, ALL = 0.75, 0.9
#: and only if the other split is nearly train's once they are exchanged: a split of other light is not
NEAR = 0.2
_SHOWN = 2  # images of each split in the picture
_GRID, _FOLDS, _SHRINK = 6, 4, 0.3
_SATURATED = 0.05  # red minus blue, 0..1, beyond which it counts as no more


@dataclass(frozen=True, slots=True)
class ColourFit:
    """In which share of images red and blue are where they are in train, rather than swapped (0.5 is chance).

    Attributes:
        train: of train itself, each image judged by others.
        other: of the other split.
        apart: how far the other split is from train with the two exchanged, as a share of how far it is as it is (squared distances).
    """

    train: float
    other: float
    apart: float


def _features(image: SampledImage) -> np.ndarray:
    """[D] numbers that change their sign, and nothing else, where red and blue are swapped: red minus blue in parts of the image, in the
    boxes, in bright and in green places."""
    edges = np.linspace(0, 1, _GRID + 1)
    x, y = np.meshgrid(edges, edges)
    cells = np.diff(np.diff(image.integrals(x, y, slice(LIGHT, GREEN + 1)), axis=0), axis=1) / image.size.prod() * _GRID**2
    red_blue, light, green = cells[..., RED_BLUE], cells[..., LIGHT], cells[..., GREEN]
    sums, pixels = image.sum(image.boxes)
    boxes = (sums[:, RED_BLUE] / np.maximum(pixels[:, 0], 1e-9)).mean()
    third = _GRID // 3
    return np.array([
        *(red_blue[i * third : (i + 1) * third].mean() for i in range(3)), boxes, boxes - red_blue.mean(),
        *(np.tanh(red_blue[i * third : (i + 1) * third] / _SATURATED).mean() for i in range(3)), np.tanh(boxes / _SATURATED),
        (red_blue * (light - light.mean())).mean(), (red_blue * green).mean(), (red_blue * (green - green.mean())).mean(),
    ])  # fmt: skip


def _covariance(x: np.ndarray) -> np.ndarray:
    """[D, D] of images [N, D], shrunk towards a multiple of the identity."""
    covariance = np.cov(x.T)
    return (1 - _SHRINK) * covariance + _SHRINK * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


def _direction(x: np.ndarray) -> np.ndarray:
    """Fisher's direction between images [N, D] and the same images with red and blue swapped, whose features are -x."""
    return np.linalg.solve(_covariance(x), x.mean(0))


def _distance(x: np.ndarray, y: np.ndarray) -> float:
    """Between the means of two samples, squared, in their own spread."""
    difference = x.mean(0) - y.mean(0)
    return float(difference @ np.linalg.solve(_covariance(x) + _covariance(y), difference))


def compare_colours(train: Sequence[SampledImage], other: Sequence[SampledImage]) -> ColourFit | None:
    """The colours of two splits; None where one is too small."""
    if min(len(train), len(other)) < FEWEST:
        return None
    x, y = np.stack([_features(image) for image in train]), np.stack([_features(image) for image in other])
    scale = np.sqrt((x**2).mean(0)) + 1e-6
    x, y, fold = x / scale, y / scale, np.arange(len(x)) % _FOLDS
    held_out = np.zeros(len(x), bool)
    for k in range(_FOLDS):
        held_out[fold == k] = x[fold == k] @ _direction(x[fold != k]) > 0
    apart = _distance(x, -y) / max(_distance(x, y), 1e-9)
    return ColourFit(float(held_out.mean()), float((y @ _direction(x) > 0).mean()), apart)


def check_colours(train: Sequence[SampledImage], other: Sequence[SampledImage], split: str, fit: ColourFit) -> Finding | None:
    """What the colours of a split mean."""
    least = min(fit.train, 1 - fit.other)
    if least < USUAL or fit.apart > NEAR:
        return None
    return Finding(
        "colours-swapped", "warning",
        f"Red and blue look swapped between train and {split}: {1 - fit.other:.0%} of the images of {split} fit the colours of train only "
        f"with the two exchanged, {1 - fit.train:.0%} of train itself: one of them is BGR instead of RGB.",
        "If colours are wrong in one of the two, write its images again in RGB (OpenCV reads and writes BGR).",
        "strong" if least >= ALL else "weak",
        tuple((name, image.index) for name, images in (("train", train), (split, other)) for image in images[:_SHOWN]),
    )  # fmt: skip
