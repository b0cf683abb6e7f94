"""Dense supervision: a training-only head on the encoder's tokens, in which several tokens learn each object.

Auxiliary one-to-many heads as in Co-DETR (Zong et al. 2023, arXiv:2211.12860), assigned by task alignment (TOOD, Feng et al. 2021,
arXiv:2108.07755, section 3.2): backbone and encoder are taught at every place near an object, not at one query per object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.matching.hungarian import PaddedTargets
from boxquery.parts.boxes import at_least_float32, cxcywh_to_xyxy, giou, iou
from boxquery.parts.heads import MLP
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory
from boxquery.parts.output import DensePredictions


class DenseHead(nn.Module):
    """Classes and a box for every token, the box as distances from its cell's centre to the sides, in cells.

    Args:
        dim: features of a token.
        classes: number of classes.
    """

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.classes = Linear(dim, classes)
        self.sides = MLP(dim, dim, 4, 2)
        nn.init.constant_(self.classes.bias, -math.log(99))
        last = self.sides.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, math.log(2.0))

    def forward(self, memory: Memory) -> DensePredictions:
        tokens = self.norm(memory.tokens)
        centres, cells = memory.centres(), memory.cells()
        sides = self.sides(tokens).to(centres.dtype).clamp(max=6).exp()
        low, high = sides.split(2, -1)
        boxes = torch.cat((centres + (high - low) * cells / 2, (high + low) * cells), -1)
        return DensePredictions(self.classes(tokens), boxes, centres, cells, memory.mask)


@dataclass(frozen=True)
class DenseTargets:
    """What every token is to learn: ``positive`` [B, S] bool, ``target`` int64 [B, S] within its image, ``quality`` [B, S] in [0, 1]."""

    positive: Tensor
    target: Tensor
    quality: Tensor


@dataclass(frozen=True)
class TaskAlignedLoss:
    """Task-aligned assignment and the losses of a dense head.

    A token is a candidate for an object if its centre lies in the box, or in the cell-sized box around the box's centre. Alignment is
    p^alpha IoU^beta (TOOD, equation 1); the best ``top`` candidates of an object learn it. Their class target is their alignment, scaled so
    that of each object the largest target is the largest IoU.

    Args:
        alpha, beta: exponents of probability and IoU.
        top: candidates per object.
        gamma: focusing exponent; a token and class weigh the distance to their target to that power (TOOD, equation 4).
        weight: of all terms together, beside those of the decoder.
        box: weight of 1 - GIoU beside the class loss.
    """

    alpha: float = 0.5
    beta: float = 6.0
    top: int = 10
    gamma: float = 2.0
    weight: float = 1.0
    box: float = 5.0

    @property
    def weights(self) -> dict[str, float]:
        """Of the terms in the whole loss."""
        return {"class": self.weight, "giou": self.weight * self.box}

    @torch.no_grad()
    def assign(self, out: DensePredictions, targets: PaddedTargets) -> DenseTargets:
        """[B, S] of each token; without a host sync."""
        logits, boxes = at_least_float32(out.logits, out.boxes)
        batch, tokens, _ = logits.shape
        objects = targets.labels.shape[1]
        if not objects:
            none = torch.zeros(batch, tokens, device=logits.device)
            return DenseTargets(none.bool(), none.long(), none)
        present = torch.arange(objects) < torch.tensor(targets.counts)[:, None]
        present = present.to(logits.device, non_blocking=True)
        # [B, N, S]
        overlap = iou(cxcywh_to_xyxy(boxes)[:, None], cxcywh_to_xyxy(targets.boxes)[:, :, None])[0].nan_to_num(0.0)
        scores = logits.sigmoid().transpose(1, 2).gather(1, targets.labels[..., None].expand(-1, -1, tokens))
        centre, size = targets.boxes[:, :, None].split(2, -1)
        reach = torch.maximum(size / 2, out.cells[:, None] / 2)
        inside = ((out.centres[:, None] - centre).abs() <= reach).all(-1) & present[..., None]
        if out.mask is not None:
            inside = inside & ~out.mask[:, None]
        alignment = (scores**self.alpha * overlap**self.beta).masked_fill(~inside, -1.0)
        best = alignment.topk(min(self.top, tokens), -1).indices
        chosen = torch.zeros_like(inside).scatter_(-1, best, True) & inside
        # a token of several objects learns the one that it overlaps most
        target = overlap.masked_fill(~chosen, -1.0).argmax(1)
        chosen = chosen & F.one_hot(target, objects).transpose(1, 2).bool()
        alignment = alignment.masked_fill(~chosen, 0.0)
        largest = overlap.masked_fill(~chosen, 0.0).amax(-1, keepdim=True)
        quality = (alignment * largest / alignment.amax(-1, keepdim=True).clamp(min=1e-9)).amax(1)
        return DenseTargets(chosen.any(1), target, quality)

    def terms(self, out: DensePredictions, targets: PaddedTargets) -> dict[str, Tensor]:
        """``class`` and ``giou``, unweighted, [] each."""
        logits, boxes = at_least_float32(out.logits, out.boxes)
        learned = self.assign(out, targets)
        quality = learned.quality
        if not targets.labels.shape[1]:
            wanted, box_term = torch.zeros_like(logits), boxes.sum() * 0
        else:
            labels = targets.labels.gather(1, learned.target)
            wanted = F.one_hot(labels, logits.shape[-1]) * quality[..., None]
            own = targets.boxes.gather(1, learned.target[..., None].expand(-1, -1, 4))
            box_term = ((1 - giou(cxcywh_to_xyxy(boxes), cxcywh_to_xyxy(own))) * quality).sum()
        wanted = wanted.to(logits.dtype)
        focal = (wanted - logits.sigmoid()).abs() ** self.gamma
        losses = focal * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        if out.mask is not None:
            losses = losses.masked_fill(out.mask[..., None], 0.0)
        normalizer = mean_over_processes(quality.sum())
        return {"class": losses.sum() / normalizer, "giou": box_term / normalizer}


def mean_over_processes(total: Tensor) -> Tensor:
    """[], at least 1; the same on every process."""
    total = total.clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    return total.clamp(min=1)
