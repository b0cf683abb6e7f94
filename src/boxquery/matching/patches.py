"""Random query patch detection: queries that are given what to look for, and that say what they have found.

UP-DETR (Dai et al. 2021, arXiv:2011.09094, section 3): queries get the features of patches that were cut out of the image, and learn where
these are and what their features were. No annotation is needed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.matching.criterion import Pairs
from boxquery.parts.boxes import at_least_float32
from boxquery.parts.heads import MLP
from boxquery.parts.linear import Linear
from boxquery.parts.state import QueryState


class PatchQueries(nn.Module):
    """Gives queries the features of patches, each to a group of its own, and reconstructs features from the queries' content.

    Queries that are nothing but a position (DETR) get a feature in it, as published: it is added in every layer. All others get it in their
    content, with which the first layer begins, beside their own reference.

    Args:
        channels: of a patch's feature.
        dim: of the queries.
        runs: equal runs of consecutive queries, in each of which every patch has its share (Anchor DETR's and DAB's patterns).

    Attributes:
        MASKED: probability in training that a query gets no feature.
    """

    MASKED: ClassVar[float] = 0.1

    def __init__(self, channels: int, dim: int, runs: int = 1):
        super().__init__()
        self.runs = runs
        self.project = Linear(channels, dim)
        self.reconstruct = MLP(dim, dim, channels, 2)

    def forward(self, state: QueryState, features: Tensor) -> QueryState:
        """Ordinary queries and features [B, P, channels] -> the same queries, those of a group attending to each other alone."""
        batch, queries, _ = state.content.shape
        group = patch_of_query(queries, features.shape[1], self.runs).to(features.device)
        given = self.project(features)[:, group]
        if self.training:
            given = given * (torch.rand(batch, queries, 1, device=given.device) > self.MASKED)
        mask = group[:, None] != group
        if state.reference is None and state.position is not None:
            state = replace(state, position=state.position + given.to(state.position.dtype))
        else:
            state = state.with_content(state.content + given.to(state.content.dtype))
        return replace(state, self_mask=mask if state.self_mask is None else mask | state.self_mask)

    def loss(self, content: Tensor, features: Tensor, pairs: Pairs) -> Tensor:
        """[L], the squared distance between the reconstructed feature of each matched query and that of its patch, both of length 1.

        Args:
            content: [L, B, Q, D], that the heads see.
            features: [B, P, channels], which are the aim: without gradient, or they would become alike.
        """
        matches = pairs.classes
        found, wanted = at_least_float32(content[matches.index], features.detach()[matches.image, matches.target])
        distance = (F.normalize(self.reconstruct(found), dim=-1) - F.normalize(wanted, dim=-1)).square().sum(-1)
        return matches.sum_by_layer(distance) / pairs.normalizer


def patch_of_query(queries: int, patches: int, runs: int = 1) -> Tensor:
    """int64 [queries]: consecutive queries share a patch, as equally many each as can be, in each of ``runs`` anew."""
    place = torch.arange(queries) % (queries // runs)
    return place * patches // (queries // runs)
