"""Queries that exist in training only and need no matching: noisy copies of the objects, to be cleaned or refused.

Contrastive denoising (DINO, Zhang et al. 2023, arXiv:2203.03605, section 3.2), after DN-DETR (Li et al. 2022, arXiv:2203.01305): each group
holds every object twice, once moved a little (to be restored) and once moved further (to be called background).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from boxquery.matching.hungarian import Matches, pad_targets


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised queries of a batch, N = groups x 2 x (objects of the fullest image).

    Attributes:
        content: [B, N, D], what class the query is told it is (sometimes wrongly).
        reference: [B, N, 4] logits of the moved boxes.
        alive: [B, N] bool, False where an image has fewer objects.
        matches: which queries must restore which object; the others are background.
        groups: how often each object is to be restored.
    """

    content: Tensor
    reference: Tensor
    alive: Tensor
    matches: Matches
    groups: int

    def self_mask(self, queries: int) -> Tensor:
        """[N + queries, N + queries] bool, True = may not see: groups see themselves and the ordinary queries, which see no noise."""
        noisy = self.content.shape[1]
        group = torch.arange(noisy, device=self.content.device) // max(noisy // self.groups, 1)
        group = torch.cat((group, group.new_full((queries,), -1)))
        return (group[:, None] != group[None]) & (group[None] >= 0)


class Denoising(nn.Module):
    """Makes noisy queries from a batch's targets.

    Args:
        queries: about how many; as many groups as fit, at least one.
        label_noise: probability that a query is told a class drawn at random.
        box_noise: how far the corners move, as a share of half the box's sides: below it for queries to restore, from it to twice
            it for those to refuse.
    """

    def __init__(self, classes: int, dim: int, queries: int, label_noise: float = 0.25, box_noise: float = 0.4):
        super().__init__()
        self.classes, self.queries, self.label_noise, self.box_noise = classes, queries, label_noise, box_noise
        self.labels = nn.Parameter(torch.empty(classes, dim).normal_())

    def forward(self, targets: list[dict], like: Tensor) -> DenoisingQueries | None:
        """None where the batch has no object."""
        wanted = pad_targets(targets, like, len(like), self.classes)
        batch, most = wanted.labels.shape
        if most == 0:
            return None
        groups = max(self.queries // (2 * most), 1)
        shape = (batch, groups, 2, most)
        labels = wanted.labels[:, None, None].expand(shape)
        drawn = torch.randint_like(labels, self.classes)
        labels = torch.where(torch.rand(shape, device=labels.device) < self.label_noise, drawn, labels)
        boxes = self._moved(wanted.boxes[:, None, None].expand(*shape, 4))
        present = (torch.arange(most) < torch.tensor(wanted.counts)[:, None])[:, None, None].expand(shape)
        # ordered by image, then group, then object; the second half of a group has no object
        image, group, target = present[:, :, 0].nonzero().to(labels.device).unbind(-1)
        matches = Matches(image, (group * 2 * most + target)[None], target[None], tuple(groups * n for n in wanted.counts))
        alive = present.flatten(1).to(labels.device)
        return DenoisingQueries(self.labels[labels.flatten(1)], boxes.flatten(1, 3).logit(1e-3), alive, matches, groups)

    def _moved(self, boxes: Tensor) -> Tensor:
        """[B, groups, 2, N, 4] cxcywh: both corners moved, the first half by less than the noise, the second by more."""
        half = boxes[..., 2:] / 2
        corners = torch.cat((boxes[..., :2] - half, boxes[..., :2] + half), -1)
        share = torch.rand_like(corners)
        share[:, :, 1] += 1
        sign = torch.randint_like(corners, 2) * 2 - 1
        corners = (corners + sign * share * self.box_noise * half.repeat(1, 1, 1, 1, 2)).clamp(0, 1)
        low, high = corners[..., :2], corners[..., 2:]
        return torch.cat(((low + high) / 2, high - low), -1).clamp(0, 1)
