"""The Hungarian assignment of queries to objects, for all layers and images with one transfer to the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from boxquery.errors import UserError
from boxquery.parts.output import Matches


@dataclass(frozen=True)
class PaddedTargets:
    """The objects of a batch, padded: ``labels`` int64 [B, N], ``boxes`` [B, N, 4] cxcywh; N is the largest of ``counts``."""

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


def hungarian(costs: Sequence[Tensor], counts: Sequence[int], alive: Sequence[Tensor | None] | None = None) -> list[Matches]:
    """The cheapest one-to-one assignment of every layer and image.

    Args:
        costs: tensors [L, B, Q, N], the objects of image b being the first ``counts[b]`` columns; L and Q may differ between tensors.
        alive: for each [L, B, Q] bool, which queries may be matched; None: all. A layer that has fewer than an image has objects, where
            another layer has more, is a ``UserError``.

    A cost that is not finite is a ``UserError`` that names layer and image: it is never replaced by a number.
    """
    device = costs[0].device
    flat = torch.cat([c.detach().flatten() for c in costs]).cpu().numpy()
    out, start = [], 0
    for cost, kept in zip(costs, alive or [None] * len(costs), strict=True):
        block = flat[start : start + cost.numel()].reshape(cost.shape)
        start += cost.numel()
        out.append(_assign(block, counts, device, None if kept is None else kept.cpu().numpy()))
    return out


def _assign(block: np.ndarray, counts: Sequence[int], device: torch.device, alive: np.ndarray | None) -> Matches:
    layers, _, num_queries, _ = block.shape
    sizes = tuple(min(num_queries if alive is None else int(alive[0, image].sum()), n) for image, n in enumerate(counts))
    rows, columns = np.empty((layers, sum(sizes)), np.int64), np.empty((layers, sum(sizes)), np.int64)
    for layer in range(layers):
        start = 0
        for image, (n, size) in enumerate(zip(counts, sizes, strict=True)):
            cost, kept = block[layer, image, :, :n], None
            if alive is not None:
                kept = np.flatnonzero(alive[layer, image])
                cost = cost[kept]
                if len(kept) < size:
                    raise UserError(
                        f"image {image} of the batch has {n} objects, but decoder layer {layer} keeps {len(kept)} queries: "
                        "give num_queries at least as many in every layer"
                    )
            if not np.isfinite(cost).all():
                raise UserError(
                    f"the matching cost of decoder layer {layer}, image {image} of the batch is NaN or inf: so are the model's predictions "
                    "(learning rate too high, or broken weights) or a target box"
                )
            queries, columns[layer, start : start + size] = linear_sum_assignment(cost)
            rows[layer, start : start + size] = queries if kept is None else kept[queries]
            start += size
    image = np.tile(np.repeat(np.arange(len(sizes)), sizes), layers)
    vectors = np.stack((np.repeat(np.arange(layers), sum(sizes)), image, rows.ravel(), columns.ravel()))
    layer, image, query, target = torch.from_numpy(vectors).to(device).unbind()
    return Matches(layer, image, query, target, (sizes,) * layers)
