"""Losses of boxes that are distributions: where each side's probability lies, and that earlier layers know what the last one knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from boxquery.parts.distributions import DistributionBoxCoder
from boxquery.parts.output import LayerPredictions, Matches

#: of matched and of all other queries, per layer
Numbers = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class FineGrainedLoss:
    """Fine-grained localization and the decoupled distillation focal loss (D-FINE, sections 4.1 and 4.2).

    Args:
        coder: of the distributions.
        fgl, ddf: weights in the whole loss.
        temperature: of both distributions that distillation compares.
    """

    coder: DistributionBoxCoder
    fgl: float = 0.15
    ddf: float = 1.5
    temperature: float = 5.0

    @property
    def weights(self) -> dict[str, float]:
        return {"fgl": self.fgl, "ddf": self.ddf}

    def numbers(self, predictions: LayerPredictions, matches: Matches) -> Numbers:
        every = predictions.boxes[0, ..., 0].numel()
        return [(matched := sum(images), every - matched) for images in matches.counts]

    def terms(
        self, predictions: LayerPredictions, boxes: Tensor, quality: Tensor, matches: Matches, normalizer: Tensor, numbers: Numbers
    ) -> dict[str, Tensor]:
        """``fgl`` [L] and ``ddf`` [], the sum over layers, since the last has none; unweighted.

        Args:
            boxes: [P, 4], the object of each match.
            quality: [P], IoU of each matched prediction, without gradient.
            numbers: by whose roots the means over matched and over other queries are weighed in ``ddf``.
        """
        return {
            "fgl": self.localization(predictions, boxes, quality, matches) / normalizer,
            "ddf": self.distillation(predictions, quality, matches, numbers),
        }

    def localization(self, predictions: LayerPredictions, boxes: Tensor, quality: Tensor, matches: Matches) -> Tensor:
        """[L]: cross-entropies with the two bins around each side of the object, weighted by nearness and IoU."""
        assert predictions.raw is not None
        assert predictions.anchor is not None
        below, share = self.coder.bins_of(boxes, predictions.anchor[matches.image, matches.query])
        logs = predictions.raw[matches.index].unflatten(-1, (4, -1)).log_softmax(-1)
        low, high = (logs.gather(-1, index[..., None])[..., 0] for index in (below, below + 1))
        return matches.sum_by_layer(-(low * (1 - share) + high * share) * quality[:, None])

    def distillation(self, predictions: LayerPredictions, quality: Tensor, matches: Matches, numbers: Numbers) -> Tensor:
        """[], over all layers but the last: the divergence from its distributions, which take no gradient.

        A matched query weighs its IoU, another the last layer's highest class probability.
        """
        assert predictions.raw is not None
        earlier = len(predictions.raw) - 1
        logits = predictions.raw.unflatten(-1, (4, -1)) / self.temperature
        teacher = logits[-1].detach().softmax(-1)
        divergence = F.kl_div(logits[:-1].log_softmax(-1), teacher.expand(earlier, *teacher.shape), reduction="none").sum((-2, -1))
        matched = matches.first(earlier)
        weight = predictions.logits[-1].detach().sigmoid().amax(-1).repeat(earlier, 1, 1)
        weight[matched.index] = quality[: len(matched.layer)]
        is_matched = torch.zeros_like(weight, dtype=torch.bool)
        is_matched[matched.index] = True
        loss = weight * divergence * (self.temperature**2 / 4)
        own = self.numbers(predictions, matches)[:earlier]
        factors = [
            [weight**0.5 / (a**0.5 + b**0.5) / max(n, 1) for weight, n in ((a, inner), (b, outer))]
            for (inner, outer), (a, b) in zip(own, numbers, strict=False)
        ]
        inner, outer = loss.new_tensor(factors).view(earlier, 2, 1, 1).unbind(1)
        return (loss * torch.where(is_matched, inner, outer)).sum()
