"""What the queries are between two layers: made by a paper's queries, read by its place, moved on by its refine."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from boxquery.matching.groups import DenoisingQueries
    from boxquery.parts.output import LayerPredictions


@dataclass(frozen=True)
class QueryState:
    """The queries between two layers.

    Attributes:
        content: [B, Q, D], what a query has learned so far.
        position: [1 or B, Q, D], a learned or encoded place that does not change, where the paper has one.
        axes: two [1 or B, Q, D], the same across and down, for those who read rows and columns.
        reference: [B, Q, 2 or 4] logits, read by ``place``.
        base: [B, Q, 2 or 4] logits from which the head measures; differs from ``reference`` in where gradients stop.
        self_mask: [Q, Q] or [B, Q, Q] bool, True = may not see.
        proposals: of a two-stage model.
        groups: training-only queries, which stand before the ordinary ones in every tensor here, by name.
        rows: [B, Q] int64, which queries of the first layer these are, in rising order; None: all.
        predicted: [B, Q, 4] box logits of the layer before, without gradient, where a place asks for them.
    """

    content: Tensor
    position: Tensor | None = None
    axes: tuple[Tensor, Tensor] | None = None
    reference: Tensor | None = None
    box_anchor: Tensor | None = None
    self_mask: Tensor | None = None
    proposals: LayerPredictions | None = None
    groups: dict[str, DenoisingQueries] = field(default_factory=dict)
    rows: Tensor | None = None
    predicted: Tensor | None = None

    def training_only(self) -> int:
        """How many queries of the groups stand before the ordinary ones."""
        return sum(group.content.shape[1] for group in self.groups.values())

    def only(self, chosen: Tensor) -> QueryState:
        """The queries ``chosen`` [B, K] alone, in that order."""
        every = torch.arange(self.content.shape[1], device=chosen.device)[None] if self.rows is None else self.rows
        mask = self.self_mask
        if mask is not None:
            mask = chosen_rows(mask if mask.dim() == 3 else mask[None], chosen)
            mask = mask.gather(2, chosen[:, None].expand(-1, mask.shape[1], -1))

        def kept(values: Tensor | None) -> Tensor | None:
            return None if values is None else chosen_rows(values, chosen)

        return replace(
            self,
            content=chosen_rows(self.content, chosen),
            position=kept(self.position),
            axes=None if self.axes is None else (chosen_rows(self.axes[0], chosen), chosen_rows(self.axes[1], chosen)),
            reference=kept(self.reference),
            box_anchor=kept(self.box_anchor),
            self_mask=mask,
            rows=every.expand(len(chosen), -1).gather(1, chosen),
            predicted=kept(self.predicted),
        )


def chosen_rows(values: Tensor, chosen: Tensor) -> Tensor:
    """[B or 1, Q, D] at the rows [B, K] -> [B, K, D]."""
    return values.expand(len(chosen), -1, -1).gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))
