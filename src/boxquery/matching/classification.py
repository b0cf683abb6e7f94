"""Two class losses: softmax with a no-object column (DETR), and a sigmoid per class with focal loss (all others).

``quality()`` gives the IoU [P] of every matched pair, for losses that depend on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from boxquery.matching.hungarian import PaddedTargets
from boxquery.parts.output import Matches


@dataclass(frozen=True)
class Softmax:
    """DETR, section 3.1: cross-entropy over the classes and "no object", whose weight is low because most queries are that.

    Args:
        no_object: weight of the last column.
        weight, cost: factors in the loss and in matching.
    """

    no_object: float = 0.1
    weight: float = 1.0
    cost: float = 1.0
    has_no_object: bool = True
    known: None = None

    def scores(self, logits: Tensor) -> Tensor:
        """[..., C + 1] -> [..., C] probabilities of real classes; all logits -inf (a dropped query): "no object"."""
        return finite_logits(logits).softmax(-1)[..., :-1]

    def match_cost(self, logits: Tensor, targets: PaddedTargets, giou: Tensor | None) -> Tensor:
        """[L, B, Q, C + 1] -> [L, B, Q, N]."""
        return -columns_of(finite_logits(logits).softmax(-1), targets.labels)

    def loss(
        self, logits: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor, quality: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """[L]: the mean over all queries of the batch that were not dropped, weighted; not divided by the number of objects."""
        layers, batch, queries, columns = logits.shape
        classes = logits.new_full((layers, batch, queries), columns - 1, dtype=torch.int64)
        classes[matches.index] = targets.labels[matches.image, matches.target]
        weights = logits.new_ones(columns)
        weights[-1] = self.no_object
        losses = F.cross_entropy(finite_logits(logits).flatten(0, 2), classes.flatten(), weight=weights, reduction="none")
        return losses.view(layers, -1).sum(-1) / weights[classes].masked_fill(is_dropped(logits), 0.0).flatten(1).sum(-1)


@dataclass(frozen=True)
class Focal:
    """Sigmoid focal loss (Lin et al. 2017, eq. 5), summed over queries and classes and divided by the number of objects.

    Args:
        alpha, gamma: of the focal loss.
        weight, cost: factors in the loss and in matching.
        known: the loss of queries that know their object (denoising); None: this one.
    """

    alpha: float = 0.25
    gamma: float = 2.0
    weight: float = 2.0
    cost: float = 2.0
    has_no_object: bool = False
    known: Focal | None = None

    def scores(self, logits: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        return logits.sigmoid()

    def match_cost(self, logits: Tensor, targets: PaddedTargets, giou: Tensor | None) -> Tensor:
        """[L, B, Q, C] -> [L, B, Q, N]: the positive term minus the negative term."""
        return self.pair_cost(columns_of(logits, targets.labels).sigmoid())

    def pair_cost(self, p: Tensor) -> Tensor:
        """Of probabilities [...] of the objects' classes."""
        positive = self.alpha * (1 - p) ** self.gamma * -(p + 1e-8).log()
        negative = (1 - self.alpha) * p**self.gamma * -(1 - p + 1e-8).log()
        return positive - negative

    def loss(
        self, logits: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor, quality: Callable[[], Tensor] | None = None
    ) -> Tensor:
        """[L]: the negative term for every query and class, replaced by the positive term at matched pairs."""
        negative = (1 - self.alpha) * logits.sigmoid() ** self.gamma * F.softplus(logits)
        where = (*matches.index, targets.labels[matches.image, matches.target])
        x = logits[where]
        positive = self.alpha * (-x).sigmoid() ** self.gamma * F.softplus(-x)
        return (negative.flatten(1).sum(-1) + matches.sum_by_layer(positive - negative[where])) / normalizer


@dataclass(frozen=True)
class Varifocal(Focal):
    """Varifocal loss (Zhang et al. 2021, arXiv:2008.13367, as in RT-DETR): the target of a matched pair is its IoU, which also weighs it.

    Args:
        negative_alpha, negative_gamma: negatives weigh alpha p^gamma; ``alpha`` and ``gamma`` are those of the focal matching cost.
    """

    weight: float = 1.0
    negative_alpha: float = 0.75
    negative_gamma: float = 2.0

    def loss(self, logits: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor, quality: Callable[[], Tensor]) -> Tensor:
        """[L]: binary cross-entropy towards the IoU; negatives weighted by alpha p^gamma."""
        q = quality()
        return self._loss(logits, targets, matches, normalizer, q, q)

    def _loss(
        self, logits: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor, wanted: Tensor, weight: Tensor | float
    ) -> Tensor:
        negative = self.negative_alpha * logits.detach().sigmoid() ** self.negative_gamma * F.softplus(logits)
        where = (*matches.index, targets.labels[matches.image, matches.target])
        x = logits[where]
        positive = weight * (F.softplus(x) - wanted * x)
        return (negative.flatten(1).sum(-1) + matches.sum_by_layer(positive - negative[where])) / normalizer


@dataclass(frozen=True)
class MatchabilityAware(Varifocal):
    """Matchability-aware loss (DEIM, Huang et al. 2025, arXiv:2412.04234): the target is the IoU to the power of gamma, and every matched
    pair weighs 1, so that poor matches learn, too."""

    negative_alpha: float = 1.0
    negative_gamma: float = 1.5

    def loss(self, logits: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor, quality: Callable[[], Tensor]) -> Tensor:
        """[L]."""
        return self._loss(logits, targets, matches, normalizer, quality() ** self.negative_gamma, 1.0)


@dataclass(frozen=True)
class PositionSupervised(Focal):
    """Position-supervised loss and position-modulated cost (Stable-DINO, Liu et al. 2023, arXiv:2304.04742, sections 4.1 and 4.2).

    The target of a matched pair is the square of its IoU, scaled so that the best pair of an image has 1; focal weights as usual. In
    matching a probability counts as far as the box is right: it is multiplied by the root of (GIoU + 1) / 2, scaled in the same way.

    Args:
        exponent: of the IoU; modulation: of the box's share in the cost.
    """

    weight: float = 6.0
    known: Focal | None = Focal(weight=1.0)
    exponent: float = 2.0
    modulation: float = 0.5

    def match_cost(self, logits: Tensor, targets: PaddedTargets, giou: Tensor | None) -> Tensor:
        """[L, B, Q, C] and the GIoU [L, B, Q, N] -> [L, B, Q, N]."""
        assert giou is not None
        present = torch.arange(giou.shape[-1]) < torch.tensor(targets.counts)[:, None]
        present = present.to(giou.device, non_blocking=True)[:, None] & ~is_dropped(logits)[..., None]
        share = ((giou + 1) / 2).clamp(min=0)
        if giou.shape[-1]:
            share = share * _scale(share.masked_fill(~present, 0.0).amax((-2, -1)))[..., None, None]
        return self.pair_cost(columns_of(logits, targets.labels).sigmoid() * share.clamp(max=1) ** self.modulation)

    def loss(self, logits: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor, quality: Callable[[], Tensor]) -> Tensor:
        """[L]."""
        layers, batch = logits.shape[:2]
        wanted = quality() ** self.exponent
        image = matches.layer * batch + matches.image
        best = wanted.new_zeros(layers * batch).scatter_reduce(0, image, wanted, "amax")
        wanted = wanted * _scale(best)[image]
        negative = (1 - self.alpha) * logits.sigmoid() ** self.gamma * F.softplus(logits)
        where = (*matches.index, targets.labels[matches.image, matches.target])
        x = logits[where]
        positive = self.alpha * (wanted - x.sigmoid()).abs() ** self.gamma * (F.softplus(x) - wanted * x)
        return (negative.flatten(1).sum(-1) + matches.sum_by_layer(positive - negative[where])) / normalizer


def _scale(best: Tensor) -> Tensor:
    """What makes the largest value of each image 1."""
    return (1 / (best + 1e-8)).clamp(min=1.0)


def is_dropped(logits: Tensor) -> Tensor:
    """[..., C] -> [...] bool: all logits are -inf."""
    return logits.isneginf().all(-1)


def finite_logits(logits: Tensor) -> Tensor:
    """Makes "no object" certain for a query whose logits are all -inf: a softmax needs one finite number."""
    return torch.cat((logits[..., :-1], logits[..., -1:].masked_fill(is_dropped(logits)[..., None], 0.0)), -1)


def columns_of(values: Tensor, labels: Tensor) -> Tensor:
    """[L, B, Q, C] at the labels [B, N] of each image -> [L, B, Q, N]."""
    layers, _, queries, _ = values.shape
    return values.gather(-1, labels[None, :, None].expand(layers, -1, queries, -1))
