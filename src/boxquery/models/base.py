"""The sentence that every paper of the family keeps: boxes come out of information exchanged between regions and objects.

A paper's file builds a ``DetectionTransformer`` from parts and says what is its own: queries, encoder, place, read, refine, head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from boxquery.matching.criterion import SetCriterion
from boxquery.matching.groups import DenoisingQueries
from boxquery.models.interface import Model
from boxquery.parts.attention.dense import QueryGeometry
from boxquery.parts.backbone import Backbone, Neck
from boxquery.parts.boxes import nms_per_class
from boxquery.parts.geometry import OtherPosition
from boxquery.parts.heads import Head
from boxquery.parts.layers import Encoder
from boxquery.parts.memory import Memory, Tokens
from boxquery.parts.output import LayerPredictions, Output, TrainingGroupOutput
from boxquery.parts.state import QueryState, chosen_rows
from boxquery.parts.trace import LayerTrace, Trace


def locate_at_position(state: QueryState, memory: Memory, layer: int) -> tuple[QueryState, QueryGeometry]:
    """A query is where its own position (and reference, if it has one) says; nothing limits where it looks. All that DETR needs."""
    reference = None if state.reference is None else state.reference.sigmoid()
    return state, QueryGeometry(position=state.position, axes=state.axes, reference=reference, self_mask=state.self_mask)


class DetectionTransformer(Model):
    """Backbone, encoder, queries, decoder layers, heads: every model of the family is one of these.

    Args:
        image: what makes the memory: backbone, neck, tokens.
        encoder: region-region.
        queries: ``(memory, targets) -> QueryState``.
        place: ``(state, memory, layer) -> (state, QueryGeometry)``, redone for every layer; sees the layer's input, and may give queries a
            reference that they have not yet.
        layers: decoder layers, ``(content, look, memory, trace) -> content``.
        norm: of every layer's content before the heads.
        heads: one for all layers, or one a layer.
        refine: ``(state, box_logits, head) -> QueryState`` for the next layer; None: references stay.
        criterion: matching, loss and post-processing.
        low_lr_patterns: names of parameters (any part of the name) that the paper trains at a tenth of the rate.
    """

    def __init__(
        self,
        *,
        image: tuple[Backbone, Neck, Tokens],
        encoder: Encoder,
        queries: nn.Module,
        layers: Sequence[nn.Module],
        heads: Sequence[Head],
        criterion: SetCriterion,
        norm: nn.Module | None = None,
        place: Callable[[QueryState, Memory, int], tuple[QueryState, QueryGeometry]] = locate_at_position,
        refine: Callable[[QueryState, Tensor, Head], QueryState] | None = None,
        low_lr_patterns: tuple[str, ...] = (),
    ):
        super().__init__()
        self.backbone, self.neck, self.tokens = image
        self.encoder, self.queries = encoder, queries
        self.layers, self.heads = nn.ModuleList(layers), nn.ModuleList(heads)
        self.norm = nn.Identity() if norm is None else norm
        self.place, self.refine, self.criterion, self.low_lr_patterns = place, refine, criterion, low_lr_patterns
        self.config = {}

    def forward(
        self,
        images: Tensor,
        mask: Tensor | None = None,
        *,
        targets: list[dict] | None = None,
        trace: bool | Literal["decoder"] = False,
        last_only: bool = False,
    ) -> Output:
        """images [B, 3, H, W] normalised floats, mask [B, H, W] bool (True = padding) or None -> ``Output``.

        Args:
            targets: per image ``{"labels": int64 [N], "boxes": [N, 4]}``; only training-only query groups are made from them.
            trace: keep what each query did, and each region in the encoder; "decoder": without the encoder, whose attention is large.
            last_only: answers of the last layer alone (L = 1).
        """
        return self.answer(self.see(images, mask), targets=targets, trace=trace, last_only=last_only)

    def see(self, images: Tensor, mask: Tensor | None = None) -> Memory:
        """The first half of ``forward``: the image as tokens, before any region has read another."""
        return self.tokens(self.neck(self.backbone(images)), mask, images.shape[-2:])

    def answer(
        self,
        memory: Memory,
        *,
        targets: list[dict] | None = None,
        trace: bool | Literal["decoder"] = False,
        last_only: bool = False,
    ) -> Output:
        """The second half of ``forward``: from what ``see`` gives, through encoder and decoder, to the answers."""
        traces = Trace() if trace else None
        memory = self.encoder(memory, traces.encoder if traces and trace is True else None)
        state = self.queries(memory, targets)
        every, answers = state.content.shape[1], Answers()
        for i, layer in enumerate(self.layers):
            record = LayerTrace(memory=memory) if traces else None
            state, geometry = self.place(state, memory, i)
            state = replace(state, content=layer(state.content, geometry, memory, record))
            last, going = i == len(self.layers) - 1, self.num_kept(i, state)
            answered = not last_only or trace or last or going
            rows = state.rows
            if answered or self.refine is not None:
                head, content = self.head(i), self.norm(state.content)
                box = head.box(content, state.box_anchor)
                if answered:
                    answers.add(head.classes(content), box.sigmoid(), rows)
                if going:
                    chosen = self.best(answers.logits[-1], state, going)
                    state, box = state.only(chosen), chosen_rows(box, chosen)
                if self.refine is not None and not last:
                    state = self.refine(state, box, head)
            if traces and record:
                record.reference = geometry.reference
                record.fill(rows, every, traces.layers)
                record.boxes = answers.boxes[-1]
                record.scores = self.criterion.classification.scores(answers.logits[-1]).amax(-1)
                traces.layers.append(record)
        return answers.output(state, traces, last_only)

    def num_kept(self, layer: int, state: QueryState) -> int:
        """How many ordinary queries the next layer has, where it has fewer; 0 where all go on."""
        here, wanted = self.num_queries_per_layer[layer : layer + 2] if layer + 1 < len(self.num_queries_per_layer) else (0, 0)
        return wanted if wanted < min(here, state.content.shape[1] - state.training_only()) else 0

    @torch.no_grad()
    def best(self, logits: Tensor, state: QueryState, count: int) -> Tensor:
        """Which queries go on, [B, N + count] positions in ``state``: the N training-only ones, and of the others those with the highest
        class probability; of equals the earlier ones. They stay in their order.

        Args:
            logits: [B, every, C], a row for every query of the first layer.
        """
        logits = logits if state.rows is None else chosen_rows(logits, state.rows)
        first = state.training_only()
        scores = self.criterion.classification.scores(logits[:, first:]).amax(-1)
        chosen = scores.sort(descending=True, stable=True).indices[:, :count].sort().values
        kept = torch.arange(first, device=chosen.device).expand(len(chosen), -1)
        return torch.cat((kept, chosen + first), 1)

    def head(self, layer: int) -> Head:
        """The head of a decoder layer: its own, or the one that all share."""
        return cast(Head, self.heads[min(layer, len(self.heads) - 1)])

    def match(self, out: Output, targets: list[dict]) -> list[list[tuple[Tensor, Tensor]]]:
        """The one-to-one assignment: [layer][image] -> (query indices, target indices), int64, ordered by query."""
        return self.criterion.pairs(out.logits, out.boxes, targets, out.alive)

    def loss(self, out: Output, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every unweighted term: ``{"class": [L], "l1": [L], "giou": [L], "proposals.class": [], ...}``."""
        return self.criterion(out, targets)

    def postprocess(
        self, out: Output, sizes: list[tuple[int, int]], *, top_k: int | None = None, one_label: bool = False, nms: float | None = None
    ) -> list[dict]:
        """Answers in pixels: per image ``{"scores" [K], "labels" [K], "boxes" [K, 4] xyxy, unclipped}``, best first.

        Args:
            sizes: (height, width) of the original images.
            top_k: how many; None: the paper's own number.
            one_label: each query answers with its best class only.
            nms: of two answers of a class that overlap by more than this IoU the better stays; None: both, as published.
        """
        alive = None if out.alive is None else out.alive[-1]
        found = self.criterion.answers(out.logits[-1], out.boxes[-1], sizes, top_k, one_label, alive)
        return found if nms is None else [nms_per_class(answer, nms) for answer in found]

    def query_parameters(self) -> list[nn.Parameter]:
        """The queries' own parameters, not those of networks beside them; and other positions that they were given."""
        owners = (self.queries, *(part for part in self.modules() if isinstance(part, OtherPosition)))
        return [parameter for part in owners for parameter in part.parameters(recurse=False)]


class Answers:
    """What the layers say, with a row for every query of the first layer: one that was dropped keeps its box and has logits of -inf."""

    def __init__(self):
        self.logits: list[Tensor] = []
        self.boxes: list[Tensor] = []
        self.alive: list[Tensor] = []

    def add(self, logits: Tensor, boxes: Tensor, rows: Tensor | None) -> None:
        """[B, K, C] and [B, K, 4] of the queries ``rows`` [B, K]; None: of all."""
        alive = torch.ones_like(boxes[..., 0], dtype=torch.bool)
        if rows is not None:
            every, place = self.logits[-1], rows[..., None]
            logits = torch.full_like(every, -torch.inf).scatter(1, place.expand_as(logits), logits)
            boxes = self.boxes[-1].scatter(1, place.expand_as(boxes), boxes)
            alive = torch.zeros_like(self.alive[-1]).scatter(1, rows, alive)
        self.logits.append(logits)
        self.boxes.append(boxes)
        self.alive.append(alive)

    def output(self, state: QueryState, traces: Trace | None, last_only: bool) -> Output:
        layers = slice(-1, None) if last_only else slice(None)
        answers, extra = LayerPredictions(torch.stack(self.logits[layers]), torch.stack(self.boxes[layers])), {}
        alive = None if state.rows is None else torch.stack(self.alive[layers])[:, :, state.training_only() :]
        for name, group in state.groups.items():
            extra[name], answers = _parted(answers, group)
        return Output(answers.logits, answers.boxes, proposals=state.proposals, alive=alive, extra=extra, trace=traces)


def _parted(answers: LayerPredictions, group: DenoisingQueries) -> tuple[TrainingGroupOutput, LayerPredictions]:
    """The first queries are the group's, the rest ordinary; a slot without an object says nothing."""
    size = group.content.shape[1]
    logits = answers.logits[:, :, :size].masked_fill(~group.alive[..., None], -torch.inf)
    taught = TrainingGroupOutput(logits, answers.boxes[:, :, :size], group.matches, group.groups)
    return taught, LayerPredictions(answers.logits[:, :, size:], answers.boxes[:, :, size:])
