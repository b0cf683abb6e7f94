"""What the queries are between two layers: made by a paper's queries, used by ``locate``, updated by ``prune`` and ``refine``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from boxquery.parts.boxes import chosen_rows
from boxquery.parts.output import LayerPredictions, PerspectivePredictions, QueryGroup, TrainingGroupOutput


class Previous(Protocol):
    """What is kept of a layer's ``Prediction`` (``boxquery.parts.heads``), where ``locate`` or the head of the next layer builds on it."""

    @property
    def content(self) -> Tensor: ...
    @property
    def anchor(self) -> Tensor | None: ...
    @property
    def raw(self) -> Tensor: ...
    @property
    def boxes(self) -> Tensor: ...
    def only(self, chosen: Tensor) -> Self: ...


@dataclass(frozen=True)
class QueryState:
    """The queries between two layers.

    Attributes:
        content: [B, Q, D], the decoder embedding that layers update.
        position: [1 or B, Q, D], a learned or encoded position that does not change, where the paper has one.
        axes: two [1 or B, Q, D], the same for x and y separately, for row-column attention.
        reference: [B, Q, 2 or 4], the point or box from which ``locate`` makes positions: logits, unless the head's box coder has another
            space; of scenes the point [B, Q, 3].
        box_anchor: as ``reference`` and in the same space, from which the head measures; differs from it in where gradients stop.
        self_mask: [Q, Q] or [B, Q, Q] bool, True = may not attend.
        proposals: of a two-stage model.
        groups: training-only queries, in their order before the ordinary ones in every tensor here.
        query_index: [B, Q] int64, which queries of the first layer these are, in rising order; None: all.
        previous: the predictions of the layer before, where they are used.
        proposed: what all cells propose, where queries of scenes are the best of these.
    """

    content: Tensor
    position: Tensor | None = None
    axes: tuple[Tensor, Tensor] | None = None
    reference: Tensor | None = None
    box_anchor: Tensor | None = None
    self_mask: Tensor | None = None
    proposals: LayerPredictions | None = None
    groups: tuple[QueryGroup, ...] = ()
    query_index: Tensor | None = None
    previous: Previous | None = None
    proposed: PerspectivePredictions | None = None

    def with_content(self, content: Tensor) -> QueryState:
        return replace(self, content=content)

    def training_only(self) -> int:
        """Number of training-only queries, which come before the ordinary ones."""
        return sum(group.size for group in self.groups)

    def with_group(
        self,
        group: QueryGroup,
        content: Tensor,
        reference: Tensor | None = None,
        position: Tensor | None = None,
        axes: tuple[Tensor, Tensor] | None = None,
    ) -> QueryState:
        """Put the queries of ``group`` before all others, which do not attend to them; needs a tensor [B, N, ...] for each that the state
        has. They attend to the ordinary queries, unless they are isolated."""
        old = self.content.shape[1]
        mask = torch.zeros(group.size + old, group.size + old, dtype=torch.bool, device=content.device)
        mask[group.size :, : group.size] = True
        mask[: group.size, group.size : group.size + self.training_only()] = True
        if group.isolated:
            mask[: group.size, group.size :] = True
        if group.mask is not None:
            mask[: group.size, : group.size] = group.mask
        if self.self_mask is not None:
            mask = mask.expand(*self.self_mask.shape[:-2], -1, -1).clone()
            mask[..., group.size :, group.size :] = self.self_mask

        def before(first: Tensor | None, rest: Tensor | None) -> Tensor | None:
            return None if first is None or rest is None else torch.cat((first.to(rest.dtype), rest.expand(len(first), -1, -1)), 1)

        joined = before(content, self.content)
        assert joined is not None
        reference = before(reference, self.reference)
        return replace(
            self,
            content=joined,
            position=before(position, self.position),
            axes=None if axes is None or self.axes is None else tuple(map(before, axes, self.axes)),  # pyright: ignore[reportArgumentType]
            reference=reference,
            box_anchor=reference,
            self_mask=mask,
            groups=(group, *self.groups),
        )

    def split_groups(self, predictions: LayerPredictions) -> dict[str, TrainingGroupOutput]:
        """The groups' own part of the predictions of all queries, by name."""
        extra, first = {}, 0
        for group in self.groups:
            extra[group.name] = group.output(predictions.part(slice(first, first := first + group.size)))
        return extra

    def only(self, chosen: Tensor) -> QueryState:
        """The queries ``chosen`` [B, K] alone, in that order."""
        every = torch.arange(self.content.shape[1], device=chosen.device)[None] if self.query_index is None else self.query_index
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
            query_index=every.expand(chosen.shape[0], -1).gather(1, chosen),
            previous=None if self.previous is None else self.previous.only(chosen),
        )
