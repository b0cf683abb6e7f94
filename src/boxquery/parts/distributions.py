"""Boxes as distributions over distances, refined layer by layer (D-FINE, Peng et al. 2025, arXiv:2410.13842)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from boxquery.parts.box_coder import BoxCoder, SigmoidBoxCoder
from boxquery.parts.boxes import at_least_float32, chosen_rows, cxcywh_to_xyxy
from boxquery.parts.heads import MLP, Head, Prediction
from boxquery.parts.state import Previous, QueryState


@dataclass(frozen=True)
class DistributionBoxCoder(BoxCoder):
    """Each side of a box is a distribution over how far it lies outside that of an anchor box, relative to the anchor's size.

    The possible distances are dense near zero and far apart at the ends (section 4.1). Boxes are not limited to the image.

    Args:
        bins: intervals between the distances, an even number; there is one distance more.
        bound: half the largest distance, as a share of the anchor's width or height (``a`` in the paper).
        scale: curvature; the larger it is, the flatter are the distances near zero (``c`` in the paper).
    """

    bins: int = 32
    bound: float = 0.5
    scale: float = 4.0

    @property
    def size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Numbers per box: the logits of four distributions."""
        return 4 * (self.bins + 1)

    def distances(self, like: Tensor) -> Tensor:
        """Of all bins, rising, in units of the anchor's size over ``scale``: [bins + 1], in the dtype and on the device of ``like``."""
        end = self.bound * self.scale
        step = (end + 1) ** (2 / (self.bins - 2))
        positive = step ** torch.arange(1, self.bins // 2, dtype=like.dtype, device=like.device) - 1
        zero, last = like.new_zeros(1), like.new_full((1,), 2 * end)
        return torch.cat((-last, -positive.flip(0), zero, positive, last))

    def decode(self, raw: Tensor, anchor: Tensor | None) -> Tensor:
        """Logits [..., size] and an anchor [..., 4] cxcywh -> [..., 4] cxcywh, each side at the mean of its distribution."""
        assert anchor is not None
        raw, anchor = at_least_float32(raw, anchor)
        outside = self.scale / 2 + raw.unflatten(-1, (4, -1)).softmax(-1) @ self.distances(raw)
        centre, unit = anchor[..., :2], anchor[..., 2:] / self.scale
        low, high = centre - outside[..., :2] * unit, centre + outside[..., 2:] * unit
        return torch.cat(((low + high) / 2, high - low), -1)

    def boxes(self, decoded: Tensor) -> Tensor:
        return decoded

    def bins_of(self, boxes: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        """The distances at which the sides of boxes lie, [P, 4] each -> the bin below, int64 [P, 4] in 0..bins - 1, and how far each lies
        from it towards the next, [P, 4] in [0, 1]. Beyond the last distance it is the last."""
        corners = cxcywh_to_xyxy(boxes)
        centre, unit = anchor[..., :2], anchor[..., 2:] / self.scale + 1e-16
        distance = torch.cat(((centre - corners[..., :2]) / unit, (corners[..., 2:] - centre) / unit), -1) - self.scale / 2
        distances = self.distances(boxes)
        below = ((distances <= distance[..., None]).sum(-1) - 1).clamp(0, self.bins - 1)
        low, high = distances[below], distances[below + 1]
        return below, ((distance - low) / (high - low)).clamp(0, 1)


class DistributionPrediction(Prediction):
    """Boxes by distributions whose logits are added to those of the layer before (D-FINE, section 4.1)."""

    keeps_raw: ClassVar[bool] = True

    def __init__(self, head: Head, content: Tensor, anchor: Tensor | None, previous: Previous | None, initial: Prediction | None = None):
        super().__init__(head, content, anchor, initial)
        self.previous = previous

    @cached_property
    def raw(self) -> Tensor:
        content = self.content if self.previous is None else self.content + self.previous.content.detach()
        (raw,) = at_least_float32(self.head.boxes(content))
        return raw if self.previous is None else raw + self.previous.raw

    @cached_property
    def logits(self) -> Tensor:
        head = cast(DistributionHead, self.head)
        return head.classes(self.content) + head.quality(self.raw)

    def only(self, chosen: Tensor) -> DistributionPrediction:
        assert self.anchor is not None
        kept = DistributionPrediction(self.head, chosen_rows(self.content, chosen), chosen_rows(self.anchor, chosen), None)
        kept.raw, kept.box = chosen_rows(self.raw, chosen), chosen_rows(self.box, chosen)
        return kept


class Quality(nn.Module):
    """Whether the sides of a box are certain, from its distributions: added to the logits of all classes (as in GFLv2, Li et al.
    2021, arXiv:2011.12885).

    Args:
        coder: of the distributions.
        top: highest probabilities of each side, which the MLP takes together with their mean.
        hidden: width of the MLP.
    """

    def __init__(self, coder: DistributionBoxCoder, top: int = 4, hidden: int = 64):
        super().__init__()
        self.top, self.bins = min(top, coder.bins + 1), coder.bins
        self.mlp = MLP(4 * (self.top + 1), hidden, 1, 2)
        for parameter in self.mlp.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, raw: Tensor) -> Tensor:
        """Logits of distributions [..., 4 * (bins + 1)] -> [..., 1]."""
        highest = raw.unflatten(-1, (4, -1)).softmax(-1).topk(self.top, -1).values
        return self.mlp(torch.cat((highest, highest.mean(-1, keepdim=True)), -1).flatten(-2))


class DistributionHead(Head):
    """Class logits and refined distributions of one layer; the first layer's also makes the box from which all layers measure.

    Args:
        dim: features of the content.
        columns: class logits.
        first: whether it is the first layer's, with a further, ordinary box MLP on the same content.
        coder: of the distributions, the same in all layers.
    """

    def __init__(self, dim: int, columns: int, first: bool, coder: DistributionBoxCoder):
        super().__init__(dim, columns, coder=coder)
        self.quality = Quality(coder)
        self.initial_boxes = MLP(dim, dim, 4, 3) if first else None
        for parameter in () if self.initial_boxes is None else self.initial_boxes.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, content: Tensor, state: QueryState) -> Prediction:
        if self.initial_boxes is None:
            previous = state.previous
            assert previous is not None, "the prediction of the layer before, which builders.keep_prediction passes on"
            return DistributionPrediction(self, content, previous.anchor, previous)
        initial, sigmoid = Prediction(self, content, state.box_anchor), SigmoidBoxCoder()
        initial.box = initial.boxes = sigmoid.boxes(sigmoid.decode(self.initial_boxes(content), state.box_anchor))
        return DistributionPrediction(self, content, initial.boxes.detach(), None, initial)
