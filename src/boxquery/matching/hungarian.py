"""Which queries learn which objects, for all layers, images and groups of queries with one copy to the host; the Hungarian assignment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from boxquery.errors import UserError
from boxquery.parts.output import LayerPredictions, Matches


@dataclass(frozen=True)
class PaddedTargets:
    """The objects of a batch, padded: ``labels`` int64 [B, N], ``boxes`` [B, N, 4] cxcywh (3-D: [B, N, 9]); N is the most of ``counts``."""

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.counts)


def pad_targets(targets: Sequence[dict], like: Tensor, batch: int, classes: int) -> PaddedTargets:
    """Per-image dictionaries -> padded tensors on the device and in the (at least float32) dtype of ``like``, without a host sync.

    Raises ``UserError`` for another number of images than ``batch``, and for a label that is not in 0..``classes`` - 1. Labels on another
    device are not checked, since that would wait for it; a training run checks all of its data beforehand.
    """
    if len(targets) != batch:
        raise UserError(f"{len(targets)} targets for a batch of {batch} images: give one dictionary per image, empty ones too")
    counts = tuple(len(t["labels"]) for t in targets)
    dtype = torch.promote_types(like.dtype, torch.float32)
    labels = pad_sequence([t["labels"] for t in targets], batch_first=True)
    if labels.device.type == "cpu" and labels.numel():
        least, most = labels.numpy().min(), labels.numpy().max()
        if least < 0 or most >= classes:
            raise UserError(
                f"targets hold the label {least if least < 0 else most}: labels of {classes} classes go from 0 to {classes - 1}"
            )
    boxes = pad_sequence([t["boxes"].to(dtype) for t in targets], batch_first=True, padding_value=0.5)
    return PaddedTargets(labels.to(like.device, non_blocking=True), boxes.to(like.device, non_blocking=True), counts)


class PairMeasures(Protocol):
    """What a matcher may ask of a ``SetCriterion``: numbers of every query with every object, [L, B, Q, N], without gradient."""

    def cost(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Tensor: ...
    def overlap(self, boxes: Tensor, targets: PaddedTargets) -> Tensor: ...
    def probability(self, logits: Tensor, targets: PaddedTargets) -> Tensor: ...


class Matcher(Protocol):
    """Decides which query learns which object, on the host, from numbers of every query with every object that the device computed."""

    def measure(self, criterion: PairMeasures, predictions: LayerPredictions, targets: PaddedTargets) -> Tensor:
        """Of every query with every object, [L, B, Q, N], without gradient."""
        ...

    def __call__(
        self, measured: np.ndarray, counts: Sequence[int], alive: np.ndarray | None
    ) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
        """[L, B, Q, N] -> pairs [4, P] (layer, image, query, target, in this order of ranks) and their counts [L][B].

        Args:
            counts: objects per image, the first columns.
            alive: [L, B, Q] bool, which queries may be matched; None: all.
        """
        ...


@dataclass(frozen=True)
class Problem:
    """One assignment of a step: what a matcher measured [L, B, Q, N], and which queries may be matched [L, B, Q] (None: all)."""

    matcher: Matcher
    measured: Tensor
    alive: Tensor | None = None


@dataclass(frozen=True)
class Assignment:
    """What a matcher found, on the host.

    Attributes:
        pairs: int64 [4, P] (layer, image, query, target), in the order of the first three.
        counts: pairs of each layer and image, [L][B].
        alive: [L, B, Q] bool, which queries could be matched; None: all.
    """

    pairs: np.ndarray
    counts: tuple[tuple[int, ...], ...]
    alive: np.ndarray | None = None

    def matches(self, device: torch.device) -> Matches:
        layer, image, query, target = torch.from_numpy(self.pairs).to(device).unbind()
        return Matches(layer, image, query, target, self.counts)


def assign(problems: Sequence[Problem], counts: Sequence[int]) -> list[Matches]:
    """The matches of several problems over the same objects, with one copy to the host for all of them."""
    return [assignment.matches(problems[0].measured.device) for assignment in solve(problems, counts)]


def solve(problems: Sequence[Problem], counts: Sequence[int]) -> list[Assignment]:
    """The same as they are found, on the host."""
    tensors = [t.detach().flatten() for p in problems for t in (p.measured, p.alive) if t is not None]
    flat, out, start = torch.cat([t.to(tensors[0].dtype) for t in tensors]).cpu().numpy(), [], 0
    for problem in problems:
        measured, alive = problem.measured, problem.alive
        block = flat[start : start + measured.numel()].reshape(measured.shape)
        start += measured.numel()
        kept = None
        if alive is not None:
            kept = flat[start : start + alive.numel()].reshape(alive.shape) > 0
            start += alive.numel()
        out.append(Assignment(*problem.matcher(block, counts, kept), kept))
    return out


@dataclass(frozen=True)
class Hungarian:
    """The cheapest assignment of every layer and image: one query per object (DETR, section 3.1), or several.

    Args:
        parts: equal runs of consecutive queries, in each of which all objects are matched (Group DETR, section 3.2).
        repeats: queries per object in each of them (H-DETR, section 3.2).
    """

    parts: int = 1
    repeats: int = 1

    def measure(self, criterion: PairMeasures, predictions: LayerPredictions, targets: PaddedTargets) -> Tensor:
        return criterion.cost(predictions.logits, predictions.boxes, targets)

    def __call__(
        self, measured: np.ndarray, counts: Sequence[int], alive: np.ndarray | None
    ) -> tuple[np.ndarray, tuple[tuple[int, ...], ...]]:
        """A cost that is not finite is a ``UserError`` that names layer and image: it is never replaced by a number. So is a layer with
        fewer queries than an image has objects where the first layer has more."""
        layers, batch, num_queries, _ = measured.shape
        runs = np.arange(num_queries).reshape(self.parts, -1)
        rows, columns, found = [], [], np.zeros((layers, batch), np.int64)
        for (layer, image), run in itertools.product(np.ndindex(layers, batch), runs):
            n = counts[image]
            if alive is not None:
                available, run = int(alive[0, image, run].sum()), run[alive[layer, image, run]]
                if len(run) < min(available, n):
                    raise UserError(
                        f"image {image} of the batch has {n} objects, but decoder layer {layer} keeps {len(run)} queries: "
                        "give num_queries at least as many in every layer"
                    )
            cost = measured[layer, image, run, :n]
            check_finite(cost, layer, image, "matching cost")
            query, target = linear_sum_assignment(np.tile(cost, (1, self.repeats)))
            rows.append(run[query])
            columns.append(target % max(n, 1))
            found[layer, image] += len(query)
        ranks = np.repeat(np.arange(layers), found.sum(1)), np.repeat(np.tile(np.arange(batch), layers), found.ravel())
        return np.stack((*ranks, np.concatenate(rows), np.concatenate(columns))), tuple(map(tuple, found.tolist()))


def check_finite(measured: np.ndarray, layer: int, image: int, what: str) -> None:
    """Raises ``UserError`` where a matcher's numbers of an image are NaN or inf."""
    if not np.isfinite(measured).all():
        raise UserError(
            f"the {what} of decoder layer {layer}, image {image} of the batch is NaN or inf: so are the model's predictions "
            "(learning rate too high, or broken weights) or a target box"
        )
