"""The decoder's first queries: learned embeddings, reference points, anchor boxes, or the encoder's best proposals."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from boxquery.parts.heads import MLP, Head
from boxquery.parts.memory import Memory
from boxquery.parts.output import LayerPredictions
from boxquery.parts.positions import sine
from boxquery.parts.state import QueryState


class Queries(nn.Module):
    """Makes the decoder's first state from the memory.

    A ``Denoising`` (``boxquery.matching.groups``) set as ``denoising`` adds training-only queries to any subclass that has references.
    """

    def __init__(self):
        super().__init__()
        self.denoising: Any = None

    def forward(self, memory: Memory, targets: list[dict] | None = None) -> QueryState:
        state = self.ordinary(memory)
        return state if self.denoising is None or targets is None else self.denoising(state, targets, self.embed)

    def ordinary(self, memory: Memory) -> QueryState:
        """The queries of training and inference alike."""
        raise NotImplementedError

    def embed(self, reference: Tensor) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """Logits of other points or boxes [B, N, 2 or 4] -> their position and axes, as the ordinary queries have them."""
        return None, None


class LearnedQueries(Queries):
    """Zero content, and a learned position used in every layer (DETR, section 3.2)."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.position = nn.Parameter(torch.empty(count, dim).normal_())

    def ordinary(self, memory: Memory) -> QueryState:
        position = self.position.expand(len(memory.tokens), -1, -1)
        return QueryState(content=torch.zeros_like(position, dtype=memory.tokens.dtype), position=position)


class ReferencePointQueries(Queries):
    """A learned position, and a reference point made from it.

    Args:
        content: "zero": content starts at zero and an MLP makes the point (Conditional DETR, section 3.3); "learned": content is learned
            with the position and a linear map makes the point (Deformable DETR, section 4.1).
    """

    def __init__(self, count: int, dim: int, content: Literal["zero", "learned"] = "zero"):
        super().__init__()
        self.learned = content == "learned"
        if self.learned:
            self.embedding = nn.Parameter(torch.empty(count, 2 * dim).normal_())
            self.reference_points = nn.Linear(dim, 2)
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        else:
            self.position = nn.Parameter(torch.empty(count, dim).normal_())
            self.reference = MLP(dim, dim, 2, 2)

    def ordinary(self, memory: Memory) -> QueryState:
        batch = len(memory.tokens)
        if self.learned:
            position, content = self.embedding.expand(batch, -1, -1).chunk(2, -1)
            reference = self.reference_points(position)
        else:
            position = self.position.expand(batch, -1, -1)
            content, reference = torch.zeros_like(position, dtype=memory.tokens.dtype), self.reference(position)
        return QueryState(content=content, position=position, reference=reference, box_anchor=reference)


class BoxQueries(Queries):
    """4-d anchor boxes (DAB-DETR, section 4): learned logits; content is zero, or a learned vector for each pattern or query.

    Args:
        content: "zero", "learned" (a vector per query), or the number of patterns (vectors, each combined with every anchor).
        fixed_xy: centres are drawn evenly over the image and stay.
        size: initial widths and heights, about this share of the image, with centres drawn evenly; 0: as published, all logits from a
            normal distribution, which gathers large boxes in the middle. A short training does not move them far.

    The order is pattern by pattern: all anchors with pattern 0 first.
    """

    def __init__(self, count: int, dim: int, content: Literal["zero", "learned"] | int = "zero", fixed_xy: bool = False, size: float = 0.0):
        super().__init__()
        self.centres: Tensor
        self.dim, self.patterns = dim, content if isinstance(content, int) else 1
        if fixed_xy:
            self.register_buffer("centres", torch.rand(count, 2).logit(1e-3))
        self.anchors = nn.Parameter(torch.empty(count, 2 if fixed_xy else 4).normal_())
        if size:
            with torch.no_grad():
                self.anchors[:, -2:] *= 0.3
                self.anchors[:, -2:] += math.log(size / (1 - size))
                if not fixed_xy:
                    self.anchors[:, :2] = torch.rand(count, 2).logit(1e-3)
        rows = content if isinstance(content, int) else count if content == "learned" else 0
        self.content = nn.Parameter(torch.empty(rows, dim).normal_()) if rows else None

    def ordinary(self, memory: Memory) -> QueryState:
        batch, tokens = len(memory.tokens), memory.tokens
        anchors = self.anchors if self.anchors.shape[1] == 4 else torch.cat((self.centres, self.anchors), -1)
        reference = anchors.repeat(self.patterns, 1).expand(batch, -1, -1)
        if self.content is None:
            content = tokens.new_zeros(1, 1, self.dim)
        else:
            content = self.content.repeat_interleave(reference.shape[1] // len(self.content), 0).to(tokens.dtype)
        return QueryState(content=content.expand(batch, reference.shape[1], -1), reference=reference, box_anchor=reference)


class ProposalQueries(Queries):
    """The encoder's best proposals: position and content from the sine of their boxes (Deformable DETR, section 4.2, appendix A.4)."""

    def __init__(self, count: int, dim: int, head: Head, denoising: nn.Module | None = None):
        super().__init__()
        self.count, self.dim, self.head, self.denoising = count, dim, head, denoising
        self.memory_proj, self.memory_norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.query_proj, self.query_norm = nn.Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim)
        nn.init.xavier_uniform_(self.memory_proj.weight)
        nn.init.xavier_uniform_(self.query_proj.weight)

    def forward(self, memory: Memory, targets: list[dict] | None = None) -> QueryState:
        tokens, anchors = propose(memory)
        tokens = self.memory_norm(self.memory_proj(tokens))
        logits, boxes = self.head.classes(tokens), self.head.boxes(tokens) + anchors
        chosen = logits[..., 0].topk(min(self.count, logits.shape[1]), 1).indices[..., None]
        reference = boxes.detach().gather(1, chosen.expand(-1, -1, 4))
        noised = None if self.denoising is None or targets is None else self.denoising.noise(targets, boxes)
        first = 0 if noised is None else noised.group.size
        # one projection for the proposals and the noised boxes
        references = reference if noised is None else torch.cat((noised.reference, reference), 1)
        position, content = self.query_norm(self.query_proj(sine(references.sigmoid(), self.dim // 2))).chunk(2, -1)
        state = QueryState(
            content=content[:, first:],
            position=position[:, first:],
            reference=reference,
            box_anchor=reference,
            proposals=LayerPredictions(logits[None], self.head.coder.boxes(boxes)[None]),
        )
        if self.denoising is None or targets is None:
            return state
        return self.denoising.add(state, noised, lambda _: (position[:, :first], None))


def propose(memory: Memory) -> tuple[Tensor, Tensor]:
    """Every cell proposes a box at its centre, 0.05 wide on the finest level and twice that on each next one.

    Returns tokens [B, S, D] and box logits [B, S, 4]; cells on padding or too near the edge (a number outside 0.01..0.99) have their
    token zeroed and infinite logits, by design: they are not meant to be selected.
    """
    centres = memory.centres()
    sizes = torch.cat([centres.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(memory.shapes)])
    boxes = torch.cat((centres, sizes[:, None].expand(len(centres), -1, 2)), -1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if memory.mask is not None:
        valid = valid & ~memory.mask
    tokens = memory.tokens.masked_fill(~valid[..., None], 0.0)
    return tokens, boxes.logit().masked_fill(~valid[..., None], float("inf"))
