"""Whether two splits mean the same by their labels: what boxes look like, learned from train, against the labels of another split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from boxquery.check.findings import Finding
from boxquery.check.samples import GREEN, LIGHT, SampledImage, labels_of

PER_CLASS = 8  # boxes of a class, in each of two splits, below which it is left out
#: a permutation is reported if it is more likely than the labels by so many nats, agrees so well, and by so much better (0..1)
LIKELIER, AGREES, BETTER = 25.0, 0.6, 0.15
#: nats and agreement from which that is strong evidence
SURE, MATCHES = 60.0, 0.75
_SHOWN = 2  # images of each split in the picture
_THUMB, _FINE, _ANGLES = 8, 16, 8  # sides of the thumbnail and of what gradients are taken from; bins of a histogram
_SHRINK = (0.05, 0.2, 0.5, 0.8)  # shares of the identity in the covariance, of which the best on held-out boxes of train is taken
_FOLDS = 4


@dataclass(frozen=True, slots=True)
class LabelFit:
    """How the labels of a split fit the looks of train's classes.

    Attributes:
        known: the labels that were compared.
        train: share of held-out boxes of train that are recognised; chance is one in ``len(known)``.
        as_is, permuted: agreement of the split's confusion table with that of train, 0..1, as it is labelled and best permuted.
        gain: by how much the permutation is more likely than the labels, in nats.
        looks_like: to each of ``known``, the class of train whose looks its boxes have.
    """

    known: list[int]
    train: float
    as_is: float
    permuted: float
    gain: float
    looks_like: list[int]


def features(images: Sequence[SampledImage]) -> np.ndarray:
    """Of every box: logarithms of its sides, mean colour, an 8 x 8 thumbnail, and histograms of the gradient's direction: [N, 133]."""
    return np.concatenate([_features(image) for image in images])


def _features(image: SampledImage) -> np.ndarray:
    boxes = image.boxes
    sides = np.log(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-4))
    fine = _thumbnails(image, boxes, _FINE)
    colour = fine.mean((1, 2))
    light = fine[..., LIGHT] - colour[:, None, None, LIGHT]
    light = light / (light.std((1, 2), keepdims=True) + 0.02)
    thumb = light.reshape(len(boxes), _THUMB, _FINE // _THUMB, _THUMB, _FINE // _THUMB).mean((2, 4))
    return np.concatenate((sides, colour, thumb.reshape(len(boxes), -1), _histograms(light)), 1)


def _thumbnails(image: SampledImage, boxes: np.ndarray, side: int) -> np.ndarray:
    """Mean brightness and chroma in a grid of cells over each box: [N, side, side, 3]."""
    grid = np.linspace(0, 1, side + 1)
    x = boxes[:, 0, None] + grid * (boxes[:, 2] - boxes[:, 0])[:, None]
    y = boxes[:, 1, None] + grid * (boxes[:, 3] - boxes[:, 1])[:, None]
    columns, rows = np.broadcast_arrays(x[:, None, :], y[:, :, None])
    sums = image.integrals(columns, rows, slice(LIGHT, GREEN + 1))
    cells = np.diff(np.diff(sums, axis=1), axis=2)
    pixels = (np.diff(x, axis=1)[:, None, :] * np.diff(y, axis=1)[:, :, None] * image.size.prod())[..., None]
    return cells / np.maximum(pixels, 1e-9)


def _histograms(light: np.ndarray) -> np.ndarray:
    """Histograms of the gradient's direction (without sign) in the four quarters of each box: [N, 4 * angles], of one length for all."""
    along_y, along_x = np.gradient(light, axis=(1, 2))
    strength = np.hypot(along_x, along_y)
    angle = (np.arctan2(along_y, along_x) % np.pi) / np.pi * _ANGLES
    bins = (angle[..., None].astype(int) % _ANGLES == np.arange(_ANGLES)) * strength[..., None]
    count, half = len(light), _FINE // 2
    quarters = bins.reshape(count, 2, half, 2, half, _ANGLES).sum((2, 4)).reshape(count, -1)
    return quarters / (np.linalg.norm(quarters, axis=1, keepdims=True) + 1e-6) * 4


def _discriminant(x: np.ndarray, labels: np.ndarray, known: Sequence[int], shrink: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights [D, C] and bias [C] of a linear discriminant with equal priors; its covariance is shrunk towards a multiple of one."""
    centres = np.stack([x[labels == label].mean(0) for label in known])
    residual = x - centres[np.searchsorted(known, labels)]
    covariance = residual.T @ residual / max(len(x) - len(known), 1)
    level = np.trace(covariance) / len(covariance) + 1e-9
    weights = np.linalg.solve((1 - shrink) * covariance + shrink * level * np.eye(len(covariance)), centres.T)
    return weights, -0.5 * (weights * centres.T).sum(0)


def _held_out(x: np.ndarray, labels: np.ndarray, known: Sequence[int], fold: np.ndarray, shrink: float) -> np.ndarray:
    """Predictions, as positions in ``known``, for each fold from the others."""
    predicted = np.zeros(len(x), int)
    for k in range(_FOLDS):
        weights, bias = _discriminant(x[fold != k], labels[fold != k], known, shrink)
        predicted[fold == k] = (x[fold == k] @ weights + bias).argmax(1)
    return predicted


def _table(labels: np.ndarray, predicted: np.ndarray, known: Sequence[int]) -> np.ndarray:
    return np.array([[(predicted[labels == label] == i).sum() for i in range(len(known))] for label in known], float)


def compare_labels(train: Sequence[SampledImage], other: Sequence[SampledImage]) -> LabelFit | None:
    """The labels of another split, judged by what the classes of train look like; None where fewer than two classes have enough boxes."""
    a, b = labels_of(train), labels_of(other)
    known = [int(label) for label in np.unique(a) if min((a == label).sum(), (b == label).sum()) >= PER_CLASS]
    if len(known) < 2:
        return None
    image = np.repeat(np.arange(len(train)), [len(sample.labels) for sample in train])
    x, y, fold = features(train)[np.isin(a, known)], features(other)[np.isin(b, known)], (image % _FOLDS)[np.isin(a, known)]
    a, b = a[np.isin(a, known)], b[np.isin(b, known)]
    if any(not np.isin(known, a[fold != k]).all() for k in range(_FOLDS)):
        return None
    mean, spread = x.mean(0), x.std(0) + 1e-3
    x, y = (x - mean) / spread, (y - mean) / spread
    tables = {shrink: _table(a, _held_out(x, a, known, fold, shrink), known) for shrink in _SHRINK}
    shrink = max(tables, key=lambda s: float((np.diag(tables[s]) / tables[s].sum(1)).mean()))
    weights, bias = _discriminant(x, a, known, shrink)
    expected = (tables[shrink] + 0.5) / (tables[shrink] + 0.5).sum(1, keepdims=True)
    found = _table(b, (y @ weights + bias).argmax(1), known)
    rows, looks = linear_sum_assignment(-(found @ np.log(expected).T))
    shares = found / found.sum(1, keepdims=True)
    agreement = 1 - np.abs(shares[:, None] - expected[None]).sum(-1) / 2
    per_label = (found[rows] * (np.log(expected[looks]) - np.log(expected[rows]))).sum(1)
    return LabelFit(
        known, float((np.diag(tables[shrink]) / tables[shrink].sum(1)).mean()), float(np.diag(agreement).mean()),
        float(agreement[rows, looks].mean()), float(per_label.sum()), [known[j] for j in looks],
    )  # fmt: skip


def check_labels(
    train: Sequence[SampledImage], other: Sequence[SampledImage], split: str, names: Sequence[str], fit: LabelFit
) -> Finding | None:
    """What the fit of a split's labels means."""
    if fit.gain < LIKELIER or fit.permuted < max(AGREES, fit.as_is + BETTER):
        return None
    moved = [(own, looks) for own, looks in zip(fit.known, fit.looks_like, strict=True) if own != looks]
    swaps = ", ".join(f"labelled {names[own]} look like train's {names[looks]}" for own, looks in moved)
    labels = [own for own, _ in moved]
    shown = [
        (name, image.index)
        for name, images in (("train", train), (split, other))
        for image in sorted(images, key=lambda image: -len(set(image.labels.tolist()) & set(labels)))[:_SHOWN]
    ]
    return Finding(
        "labels-shifted", "warning",
        f"Labels of train and {split} do not mean the same: by their looks, objects of {split} {swaps} "
        f"({fit.permuted:.0%} agree so, {fit.as_is:.0%} as labelled).",
        "If names are wrong in one of the two, compare the class lists that they were exported with.",
        "strong" if fit.gain >= SURE and fit.permuted >= MATCHES else "weak", tuple(shown),
    )  # fmt: skip
