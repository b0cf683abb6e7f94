"""The decoder's first queries: learned embeddings, reference points, anchor boxes, or the encoder's best proposals."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxquery.parts.boxes import chosen_rows, inverse_sigmoid
from boxquery.parts.heads import MLP, Head
from boxquery.parts.linear import Linear
from boxquery.parts.memory import Memory
from boxquery.parts.output import LayerPredictions
from boxquery.parts.positions import sine
from boxquery.parts.state import QueryState

#: width of a proposal on the finest level, as published, and the largest on any, as shares of the image
PROPOSAL_SIZE, LARGEST = 0.05, 0.9


class Queries(nn.Module):
    """Makes the decoder's first state from the memory.

    A ``FurtherQueries`` (``boxquery.matching.groups``) set as ``further`` adds training-only queries made as the ordinary ones, from rows
    of its own; a ``Denoising`` set as ``denoising`` adds noised objects to any subclass that has references.
    """

    def __init__(self):
        super().__init__()
        self.further: Any = None
        self.denoising: Any = None

    def forward(self, memory: Memory, targets: list[dict] | None = None) -> QueryState:
        if targets is None:
            return self.ordinary(memory)
        state = self.ordinary(memory) if self.further is None else self.with_further(memory)
        return state if self.denoising is None else self.denoising(state, targets, self.embed)

    def ordinary(self, memory: Memory) -> QueryState:
        """The queries of training and inference alike."""
        return self.make(memory, self, 1)

    def with_further(self, memory: Memory) -> QueryState:
        """The ordinary queries, and those of ``further``."""
        return self.further.add(self.ordinary(memory), self.make(memory, self.further, self.further.parts))

    def draw(self, count: int) -> dict[str, Tensor]:
        """Initial values of what is learned per query (``nn.Parameter``) or fixed per query, for ``count`` queries, by name."""
        raise NotImplementedError

    def make(self, memory: Memory, rows: Any, parts: int) -> QueryState:
        """Queries from the ``rows`` of ``draw``, which are this module's own attributes or another's; those of each of equal ``parts``
        follow one another."""
        raise NotImplementedError

    def embed(self, logits: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        """Logits of other points or boxes [B, N, 2 or 4] -> their reference, position and axes, as the ordinary queries have them."""
        return logits, None, None


class LearnedQueries(Queries):
    """Zero content, and a learned position used in every layer (DETR, section 3.2)."""

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.dim = dim
        self.position = self.draw(count)["position"]

    def draw(self, count: int) -> dict[str, Tensor]:
        return {"position": nn.Parameter(torch.empty(count, self.dim).normal_())}

    def make(self, memory: Memory, rows: Any, parts: int) -> QueryState:
        position = rows.position.expand(memory.tokens.shape[0], -1, -1)
        return QueryState(content=torch.zeros_like(position, dtype=memory.tokens.dtype), position=position)


class ReferencePointQueries(Queries):
    """A learned position, and a reference point made from it.

    Args:
        content: "zero": content starts at zero and an MLP makes the point (Conditional DETR, section 3.3); "learned": content is learned
            with the position and a linear map makes the point (Deformable DETR, section 4.1).
        coordinates: of the point.
    """

    def __init__(self, count: int, dim: int, content: Literal["zero", "learned"] = "zero", coordinates: int = 2):
        super().__init__()
        self.dim, self.learned = dim, content == "learned"
        self.embedding: Tensor
        self.position: Tensor
        for name, values in self.draw(count).items():
            setattr(self, name, values)
        if self.learned:
            self.reference_points = Linear(dim, coordinates)
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        else:
            self.reference = MLP(dim, dim, coordinates, 2)

    def draw(self, count: int) -> dict[str, Tensor]:
        if self.learned:
            return {"embedding": nn.Parameter(torch.empty(count, 2 * self.dim).normal_())}
        return {"position": nn.Parameter(torch.empty(count, self.dim).normal_())}

    def make(self, memory: Memory, rows: Any, parts: int) -> QueryState:
        batch = memory.tokens.shape[0]
        if self.learned:
            position, content = rows.embedding.expand(batch, -1, -1).chunk(2, -1)
            reference = self.reference_points(position)
        else:
            position = rows.position.expand(batch, -1, -1)
            content, reference = torch.zeros_like(position, dtype=memory.tokens.dtype), self.reference(position)
        return QueryState(content=content, position=position, reference=reference, box_anchor=reference)


class SpacePointQueries(Queries):
    """Learned points [Q, 3] in [0, 1] of the space, not logits, whose sine an MLP makes the position of; content is zero (PETR)."""

    #: how far from 0 and 1 a point's logit is kept
    EPS: ClassVar[float] = 1e-5

    def __init__(self, count: int, dim: int):
        super().__init__()
        self.dim = dim
        self.points = self.draw(count)["points"]
        self.position = MLP(3 * dim // 2, dim, dim, 2)

    def draw(self, count: int) -> dict[str, Tensor]:
        return {"points": nn.Parameter(torch.rand(count, 3))}

    def make(self, memory: Memory, rows: Any, parts: int) -> QueryState:
        points = rows.points.expand(memory.tokens.shape[0], -1, -1)
        position = self.position(sine(points[..., [1, 0, 2]], self.dim // 2))
        reference = inverse_sigmoid(points.clamp(0, 1), self.EPS)
        content = torch.zeros_like(position, dtype=memory.tokens.dtype)
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
        self.dim, self.kind, self.patterns = dim, content, content if isinstance(content, int) else 1
        self.fixed_xy, self.size = fixed_xy, size
        rows = self.draw(count)
        if fixed_xy:
            self.register_buffer("centres", rows["centres"])
        self.anchors = rows["anchors"]
        self.content = rows.get("content")
        if isinstance(content, int):
            self.content = nn.Parameter(torch.empty(content, dim).normal_())

    def draw(self, count: int) -> dict[str, Tensor]:
        rows = {"centres": torch.rand(count, 2).logit(1e-3)} if self.fixed_xy else {}
        anchors = torch.empty(count, 2 if self.fixed_xy else 4).normal_()
        if self.size:
            anchors[:, -2:] *= 0.3
            anchors[:, -2:] += math.log(self.size / (1 - self.size))
            if not self.fixed_xy:
                anchors[:, :2] = torch.rand(count, 2).logit(1e-3)
        rows["anchors"] = nn.Parameter(anchors)
        if self.kind == "learned":
            rows["content"] = nn.Parameter(torch.empty(count, self.dim).normal_())
        return rows

    def make(self, memory: Memory, rows: Any, parts: int) -> QueryState:
        batch, tokens = memory.tokens.shape[0], memory.tokens
        anchors = torch.cat((rows.centres, rows.anchors), -1) if self.fixed_xy else rows.anchors
        reference = each_pattern(anchors, self.patterns, parts).expand(batch, -1, -1)
        if self.content is None:
            content = tokens.new_zeros(1, 1, self.dim)
        elif self.kind == "learned":
            content = rows.content.to(tokens.dtype)
        else:
            content = each_anchor(self.content, len(anchors), parts).to(tokens.dtype)
        return QueryState(content=content.expand(batch, reference.shape[1], -1), reference=reference, box_anchor=reference)


class WholeImageQueries(BoxQueries):
    """Learned boxes in [0, 1], not logits, that start as the whole image, and a learned content for each (Sparse R-CNN, section 3.2).

    Sides are at least ``LEAST``: nothing keeps what is learned from falling below zero, where the authors' code stops.
    """

    LEAST: ClassVar[float] = 1e-3

    def __init__(self, count: int, dim: int):
        super().__init__(count, dim, "learned")

    def draw(self, count: int) -> dict[str, Tensor]:
        boxes = torch.tensor((0.5, 0.5, 1.0, 1.0)).repeat(count, 1)
        return {"anchors": nn.Parameter(boxes), "content": nn.Parameter(torch.empty(count, self.dim).normal_())}

    def make(self, memory: Memory, rows: Any, parts: int) -> QueryState:
        state = super().make(memory, rows, parts)
        assert state.reference is not None
        centre, size = state.reference.chunk(2, -1)
        boxes = torch.cat((centre, size.clamp(min=self.LEAST)), -1)
        return replace(state, reference=boxes, box_anchor=boxes)

    def embed(self, logits: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        return logits.sigmoid(), None, None


def each_pattern(rows: Tensor, patterns: int, parts: int) -> Tensor:
    """Rows of anchors [N, D] -> of queries [N * patterns, D]: part by part, and in each pattern by pattern."""
    return rows.unflatten(0, (parts, -1)).repeat(1, patterns, 1).flatten(0, 1)


def each_anchor(patterns: Tensor, anchors: int, parts: int) -> Tensor:
    """Patterns [P, D] -> [anchors * P, D], in the order of ``each_pattern``."""
    return patterns.repeat_interleave(anchors // parts, 0).repeat(parts, 1)


class ProposalQueries(Queries):
    """The encoder's best proposals (Deformable DETR, section 4.2, appendix A.4).

    Args:
        content: of the chosen: "boxes": content and position from the sine of the box (Deformable DETR); "tokens": the token that proposed
            it, without gradient (RT-DETR); "learned": a vector per rank, which is mixed query selection (DINO). The last two
            have no position of their own.
        class_agnostic: a proposal's score is that of its first class, which stands for any object (see ``SetCriterion``); False: of its
            best class.
        learning: which proposals learn: "all" (Deformable DETR), or the "chosen" alone (DINO, RT-DETR); no others then become boxes.
        size: width and height of the box that a cell of the finest level proposes, as a share of the image, doubled on each next level; 0:
            still to be measured, and until then as published.
        peaks: proposals that score at least as high as their eight neighbours on the same level come before all others, since neighbours
            mostly propose the same object (as the peaks of CenterNet, Zhou et al. 2019, arXiv:1904.07850, section 3).
        valid_first: cells on padding or near the edge, which propose no box, come last. As published they have a score like any other, and
            one that nothing was learned for where training has no such cells.

    Attributes:
        evenly: whether cells are chosen evenly all over the image instead of by score: for queries that are told what to look for, before
            which no proposal is better than another.
    """

    def __init__(
        self,
        count: int,
        dim: int,
        head: Head,
        content: Literal["boxes", "tokens", "learned"] = "boxes",
        *,
        class_agnostic: bool = True,
        learning: Literal["all", "chosen"] = "all",
        denoising: nn.Module | None = None,
        size: float = PROPOSAL_SIZE,
        peaks: bool = False,
        valid_first: bool = False,
    ):
        super().__init__()
        self.count, self.dim, self.head, self.denoising, self.peaks, self.valid_first = count, dim, head, denoising, peaks, valid_first
        self.size, self.evenly = size, False
        self.kind, self.class_agnostic, self.learning = content, class_agnostic, learning
        self.memory_proj, self.memory_norm = Linear(dim, dim), nn.LayerNorm(dim)
        if content == "boxes":
            self.query_proj, self.query_norm = Linear(2 * dim, 2 * dim), nn.LayerNorm(2 * dim)
        self.content = self.draw(count).get("content")
        nn.init.xavier_uniform_(self.memory_proj.weight)
        if content == "boxes":
            nn.init.xavier_uniform_(self.query_proj.weight)

    def draw(self, count: int) -> dict[str, Tensor]:
        return {"content": nn.Parameter(nn.init.xavier_uniform_(torch.empty(count, self.dim)))} if self.kind == "learned" else {}

    def ordinary(self, memory: Memory) -> QueryState:
        return self.best(memory, 0, 1)[0]

    def with_further(self, memory: Memory) -> QueryState:
        state, further = self.best(memory, self.further.count, self.further.parts)
        assert further.reference is not None
        # cells on padding or near the edge propose no box
        return self.further.add(state, further, ~further.reference.isinf().any(-1))

    def best(self, memory: Memory, further: int, parts: int) -> tuple[QueryState, QueryState]:
        """The best proposals, and the ``further`` next best or as many as there are, dealt out among equal ``parts``."""
        tokens, anchors = propose(memory, self.size or PROPOSAL_SIZE)
        tokens = self.memory_norm(self.memory_proj(tokens))
        logits = self.head.classes(tokens)
        every = self.head.boxes(tokens) + anchors if self.learning == "all" else None
        scores, total = (logits[..., 0] if self.class_agnostic else logits.amax(-1)).detach(), logits.shape[1]
        if self.evenly:
            scores = spread(anchors.isinf().any(-1), scores)
        elif self.peaks:
            scores = peaks_first(scores, memory, anchors.isinf().any(-1))
        if self.valid_first:
            scores = before_others(scores, ~anchors.isinf().any(-1))

        def queries(cells: Tensor, rows: Any, parts: int) -> tuple[QueryState, Tensor]:
            chosen = chosen_rows(tokens, cells)
            boxes = self.head.boxes(chosen) + chosen_rows(anchors, cells) if every is None else chosen_rows(every, cells)
            return self.at(boxes.detach(), self.content_of(chosen, rows, parts)), boxes

        best = scores.topk(torch.sym_min(self.count, total), 1).indices
        state, boxes = queries(best, self, 1)
        logits, boxes = (chosen_rows(logits, best), boxes) if every is None else (logits, every)
        state = replace(state, proposals=LayerPredictions(logits[None], self.head.coder.boxes(boxes)[None]))
        if not further:
            return state, state
        each = min(further, total - best.shape[1]) // parts
        others = scores.scatter(1, best, -torch.inf).topk(each * parts, 1).indices
        others = others.unflatten(1, (each, parts)).transpose(1, 2).flatten(1)
        return state, queries(others, self.further, parts)[0]

    def content_of(self, tokens: Tensor, rows: Any, parts: int) -> Tensor | None:
        """Content of the queries whose proposals come from ``tokens`` [B, N, D], those of each of equal ``parts`` in the order of their
        scores; None: it is made from their boxes."""
        if self.kind == "boxes":
            return None
        if self.kind == "tokens":
            return tokens.detach()
        content = rows.content.unflatten(0, (parts, -1))[:, : tokens.shape[1] // parts].flatten(0, 1)
        return content.to(tokens.dtype).expand(tokens.shape[0], -1, -1)

    def at(self, reference: Tensor, content: Tensor | None = None) -> QueryState:
        """Queries with references [B, N, 4] of logits, from which content and position are made where there is no content yet."""
        if content is not None:
            return QueryState(content=content, reference=reference, box_anchor=reference)
        position, made = self.query_norm(self.query_proj(sine(reference.sigmoid(), self.dim // 2))).chunk(2, -1)
        return QueryState(content=made, position=position, reference=reference, box_anchor=reference)

    def embed(self, logits: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor, Tensor] | None]:
        return logits, (self.at(logits).position if self.kind == "boxes" else None), None


def peaks_first(scores: Tensor, memory: Memory, invalid: Tensor) -> Tensor:
    """Scores [B, S] in which every valid cell that none of its eight neighbours exceeds ranks before all other cells; else in their order.

    ``invalid`` [B, S] bool: cells that are no one's neighbour.
    """
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    maps = memory.maps(scores.masked_fill(invalid, -torch.inf))
    highest = torch.cat([F.max_pool2d(level, 3, 1, 1).flatten(1) for level in maps], 1)
    return before_others(scores, (scores >= highest) & ~invalid)


def before_others(scores: Tensor, chosen: Tensor) -> Tensor:
    """Scores [B, S] in which those that are ``chosen`` (bool) rank before all others; else in their order."""
    spread = scores.amax(1, keepdim=True) - scores.amin(1, keepdim=True) + 1
    return torch.where(chosen, scores + spread, scores)


def spread(invalid: Tensor, like: Tensor) -> Tensor:
    """Scores [B, S] whose best cells, however many, are evenly spread over all valid ones: the fractional parts of multiples of the golden
    ratio. ``like`` gives the dtype."""
    exact = torch.promote_types(like.dtype, torch.float32)
    place = torch.arange(invalid.shape[1], device=invalid.device, dtype=exact)
    return (place * (math.sqrt(5) - 1) / 2 % 1).expand(invalid.shape).masked_fill(invalid, -1.0)


def propose(memory: Memory, size: float = PROPOSAL_SIZE) -> tuple[Tensor, Tensor]:
    """Every cell proposes a box at its centre, ``size`` wide on the finest level and twice that on each next one, up to ``LARGEST``.

    Returns tokens [B, S, D] and box logits [B, S, 4]; cells on padding or too near the edge (a number outside 0.01..0.99) have their
    token zeroed and infinite logits, by design: they are not meant to be selected.
    """
    centres = memory.centres()
    sizes = torch.cat([centres.new_full((h * w,), min(size * 2.0**level, LARGEST)) for level, (h, w) in enumerate(memory.shapes)])
    boxes = torch.cat((centres, sizes[:, None].expand(centres.shape[0], -1, 2)), -1)
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if memory.mask is not None:
        valid = valid & ~memory.mask
    tokens = memory.tokens.masked_fill(~valid[..., None], 0.0)
    return tokens, boxes.logit().masked_fill(~valid[..., None], float("inf"))
