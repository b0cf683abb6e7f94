"""Training-only queries: further ones made as the ordinary ones, and noised objects, which need no matching.

Group DETR (Chen et al. 2023, arXiv:2207.13085): several groups of as many queries, in each of which each object teaches one. H-DETR (Jia
et al. 2023, arXiv:2207.13080): more queries beside the ordinary ones, of which each object teaches several.

DN-DETR (Li et al. 2022, arXiv:2203.01305): each of five groups holds every object once, with noise, to be reconstructed. Contrastive
denoising (DINO, Zhang et al. 2023, arXiv:2203.03605, section 3.2): each group holds every object twice, as a positive with little
noise, to be reconstructed, and as a negative with more, to be classified as background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.matching.hungarian import Hungarian, pad_targets
from boxquery.parts.boxes import EPS_OF_ANCHORS, inverse_sigmoid
from boxquery.parts.geometry import require
from boxquery.parts.output import Matches, QueryGroup
from boxquery.parts.positions import sine
from boxquery.parts.state import QueryState


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised objects of a batch, N = groups x (2, or 1 without negatives) x (objects of the image with the most).

    Attributes:
        content: [B, N, D], the embedding of a class, sometimes a wrong one.
        reference: [B, N, 4] logits of the noised boxes.
        group: their matches with objects; those without are background.
    """

    content: Tensor
    reference: Tensor
    group: QueryGroup


class FurtherQueries(nn.Module):
    """More queries of the kind that a ``Queries`` makes, which attend to each other alone.

    Args:
        name: of the strategy, "group" or "hybrid".
        count: how many rows, where ``Queries.draw`` has some.
        rows: what is learned or fixed for each, as attributes of the same names.
        peers: equal groups, each matched by itself, whose loss is averaged with that of the ordinary queries (Group DETR); 0: one group,
            whose loss is added (H-DETR).
        repeats: queries that each object teaches in a group.
    """

    def __init__(self, name: str, count: int, rows: dict[str, Tensor], *, peers: int = 0, repeats: int = 1):
        super().__init__()
        self.name, self.count, self.peers, self.repeats = name, count, peers, repeats
        for row, values in rows.items():
            if isinstance(values, nn.Parameter):
                self.register_parameter(row, values)
            else:
                self.register_buffer(row, values)

    @property
    def parts(self) -> int:
        """Runs of consecutive queries that neither attend to each other nor are matched together."""
        return max(self.peers, 1)

    def add(self, state: QueryState, further: QueryState, valid: Tensor | None = None) -> QueryState:
        """The ordinary queries with ``further`` ones before them; without any where the encoder has too few proposals.

        Args:
            valid: [B, N] bool, which of them are to learn; None: all.
        """
        size = further.content.shape[1]
        if not size:
            return state
        part = torch.arange(size, device=further.content.device) // (size // self.parts)
        group = QueryGroup(
            self.name,
            size,
            matcher=Hungarian(self.parts, self.repeats),
            repeats=self.parts * self.repeats,
            peers=self.peers,
            mask=part[:, None] != part,
            valid=valid,
            isolated=True,
        )
        return state.with_group(group, further.content, further.reference, further.position, further.axes)


@dataclass(frozen=True)
class Noise:
    """How a paper noises objects, and what it puts into the slots of images that hold fewer than another of the batch.

    Attributes:
        label: probability that the class is replaced by a random one; None: 0.25, and 0.2 without negatives.
        box: how far corners move, as a share of half the box's sides: positives below it, negatives from it to twice it; without
            negatives, how far the centre moves as a share of that, and by what share of themselves the sides change.
        eps: how far noised boxes are kept from 0 and 1.
        slots: box logits of empty slots, which then have zero content; None: as a box in the middle with the class 0.
        background: empty slots are to be classified as background, as negatives are; False: they learn nothing.
        indicator: a last channel that is 1 and that class embeddings leave to it (DN-DETR).
    """

    label: float | None = None
    box: float = 0.4
    eps: float = EPS_OF_ANCHORS
    slots: float | None = None
    background: bool = False
    indicator: bool = False


class Denoising(nn.Module):
    """Makes noised queries from a batch's targets, for any queries that have references.

    Args:
        queries: approximate number of contrastive ones; as many groups as fit, at least one.
        position: features of a reference -> positions, for queries whose own positions are learned and cannot be made from a reference.
        contrastive: False: positives alone, in ``GROUPS`` groups, whose centre and size are noised rather than corners (DN-DETR).
    """

    #: of DN-DETR, however many objects there are
    GROUPS: ClassVar[int] = 5

    def __init__(self, classes: int, dim: int, queries: int, noise: Noise, position: nn.Module | None = None, *, contrastive: bool = True):
        super().__init__()
        self.classes, self.dim, self.queries, self.noise, self.contrastive = classes, dim, queries, noise, contrastive
        self.label_noise = noise.label if noise.label is not None else 0.25 if contrastive else 0.2
        self.labels = nn.Parameter(torch.empty(classes, dim - noise.indicator).normal_())
        self.position = position

    def forward(self, state: QueryState, targets: list[dict], embed: Callable[[Tensor], tuple]) -> QueryState:
        """Ordinary queries -> the same with the group "denoising" before them.

        Args:
            embed: logits [B, N, 2 or 4] -> references, positions and axes, as the ordinary queries have them.
        """
        reference = require(state.reference, "denoising", "QueryState.reference")
        return self.add(state, self.noised(targets, reference), embed)

    def add(self, state: QueryState, noised: DenoisingQueries | None, embed: Callable[[Tensor], tuple]) -> QueryState:
        if noised is None or state.reference is None:
            # a process without an object in its batch needs the same gradients as the others
            return replace(state, content=state.content + 0 * sum(p.sum() for p in self.parameters()))
        logits = noised.reference[..., : state.reference.shape[-1]]
        reference, position, axes = embed(logits)
        if self.position is not None:
            position = self.position(sine(logits[..., :2].sigmoid().flip(-1), self.dim // 2))
        return state.with_group(noised.group, noised.content, reference, position, axes)

    def noised(self, targets: list[dict], like: Tensor) -> DenoisingQueries | None:
        """None where the batch has no object; ``like`` [B, ...] gives device and dtype."""
        objects = pad_targets(targets, like, len(like), self.classes)
        batch, largest = objects.labels.shape
        if largest == 0:
            return None
        copies = 2 if self.contrastive else 1
        groups = max(self.queries // (2 * largest), 1) if self.contrastive else self.GROUPS
        shape = (batch, groups, copies, largest)
        labels = objects.labels[:, None, None].expand(shape)
        random = torch.randint_like(labels, self.classes)
        labels = torch.where(torch.rand(shape, device=labels.device) < self.label_noise, random, labels)
        boxes = (self._moved_corners if self.contrastive else self._moved_sides)(objects.boxes[:, None, None].expand(*shape, 4))
        present = (torch.arange(largest) < torch.tensor(objects.counts)[:, None])[:, None, None].expand(shape)
        # ordered by image, then group, then object; the second half of a group has no object
        image, group, target = present[:, :, 0].nonzero().to(labels.device).unbind(-1)
        counts = (tuple(groups * n for n in objects.counts),)
        matches = Matches(torch.zeros_like(image), image, group * copies * largest + target, target, counts)
        index = torch.arange(groups, device=labels.device).repeat_interleave(copies * largest)
        present = present.flatten(1).to(labels.device)
        content = F.pad(self.labels[labels.flatten(1)], (0, int(self.noise.indicator)), value=1.0)
        reference = inverse_sigmoid(boxes.flatten(1, 3), self.noise.eps)
        if self.noise.slots is not None:
            content = content.masked_fill(~present[..., None], 0.0)
            reference = reference.masked_fill(~present[..., None], self.noise.slots)
        return DenoisingQueries(
            content=content,
            reference=reference,
            group=QueryGroup(
                "denoising",
                size=len(index),
                matches=matches,
                repeats=groups,
                mask=index[:, None] != index,
                valid=None if self.noise.background else present,
            ),
        )

    def _moved_sides(self, boxes: Tensor) -> Tensor:
        """[B, groups, 1, N, 4] cxcywh with centres moved inside the box, and sides longer or shorter (DN-DETR, section 4.3)."""
        share = (2 * torch.rand_like(boxes) - 1) * self.noise.box
        return (boxes + share * torch.cat((boxes[..., 2:] / 2, boxes[..., 2:]), -1)).clamp(0, 1)

    def _moved_corners(self, boxes: Tensor) -> Tensor:
        """[B, groups, 2, N, 4] cxcywh with both corners moved: of positives by less than the noise, of negatives by more."""
        half = boxes[..., 2:] / 2
        corners = torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), -1)
        share = torch.rand_like(corners)
        share[:, :, 1] += 1
        sign = torch.randint_like(corners, 2) * 2 - 1
        corners = (corners + sign * share * self.noise.box * half.repeat(1, 1, 1, 1, 2)).clamp(0, 1)
        low, high = corners[..., :2], corners[..., 2:]
        return torch.cat(((low + high) / 2, high - low), -1).clamp(0, 1)
