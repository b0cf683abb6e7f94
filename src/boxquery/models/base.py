"""The sentence that every paper of the family keeps: boxes come out of information exchanged between regions and objects.

A paper's file builds a ``DetectionTransformer`` from parts and says what is its own: queries, encoder, place, read, refine, head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from boxquery.matching.denoising import Noisy
from boxquery.matching.loss import SetLoss
from boxquery.matching.output import Output, Predictions, Taught
from boxquery.parts.attention import Look
from boxquery.parts.backbone import Backbone, Neck
from boxquery.parts.heads import Head
from boxquery.parts.layers import Encoder
from boxquery.parts.memory import Memory, Tokens
from boxquery.parts.trace import LayerTrace, Trace


@dataclass(frozen=True)
class State:
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
    """

    content: Tensor
    position: Tensor | None = None
    axes: tuple[Tensor, Tensor] | None = None
    reference: Tensor | None = None
    base: Tensor | None = None
    self_mask: Tensor | None = None
    proposals: Predictions | None = None
    groups: dict[str, Noisy] = field(default_factory=dict)


def place_at_position(state: State, memory: Memory, layer: int) -> tuple[State, Look]:
    """A query is where its own position (and reference, if it has one) says; nothing limits where it looks. All that DETR needs."""
    reference = None if state.reference is None else state.reference.sigmoid()
    return state, Look(position=state.position, axes=state.axes, reference=reference, self_mask=state.self_mask)


class DetectionTransformer(nn.Module):
    """Backbone, encoder, queries, decoder layers, heads: every model of the family is one of these.

    Args:
        image: what makes the memory: backbone, neck, tokens.
        encoder: region-region.
        queries: ``(memory, targets) -> State``.
        place: ``(state, memory, layer) -> (state, Look)``, redone for every layer; sees the layer's input, and may give queries a
            reference that they have not yet.
        layers: decoder layers, ``(content, look, memory, trace) -> content``.
        norm: of every layer's content before the heads.
        heads: one for all layers, or one a layer.
        refine: ``(state, box_logits, head) -> State`` for the next layer; None: references stay.
        criterion: matching, loss and post-processing.
        slow: names of parameters (any part of the name) that the paper trains at a tenth of the rate.
    """

    def __init__(
        self,
        *,
        image: tuple[Backbone, Neck, Tokens],
        encoder: Encoder,
        queries: nn.Module,
        layers: Sequence[nn.Module],
        heads: Sequence[Head],
        criterion: SetLoss,
        norm: nn.Module | None = None,
        place: Callable[[State, Memory, int], tuple[State, Look]] = place_at_position,
        refine: Callable[[State, Tensor, Head], State] | None = None,
        slow: tuple[str, ...] = (),
    ):
        super().__init__()
        self.backbone, self.neck, self.tokens = image
        self.encoder, self.queries = encoder, queries
        self.layers, self.heads = nn.ModuleList(layers), nn.ModuleList(heads)
        self.norm = nn.Identity() if norm is None else norm
        self.place, self.refine, self.criterion, self.slow = place, refine, criterion, slow
        #: what ``create_model`` was called with; enough to build the model again
        self.config: dict = {}

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
        logits, boxes = [], []
        for i, layer in enumerate(self.layers):
            record = LayerTrace(memory=memory) if traces else None
            state, look = self.place(state, memory, i)
            state = replace(state, content=layer(state.content, look, memory, record))
            answered = not last_only or trace or i == len(self.layers) - 1
            if answered or self.refine is not None:
                head, content = self.head(i), self.norm(state.content)
                box = head.box(content, state.base)
                if answered:
                    logits.append(head.classes(content))
                    boxes.append(box.sigmoid())
                if self.refine is not None and i < len(self.layers) - 1:
                    state = self.refine(state, box, head)
            if traces and record:
                record.boxes, record.reference = boxes[-1], look.reference
                record.scores = self.criterion.classification.scores(logits[-1]).amax(-1)
                traces.layers.append(record)
        if last_only:
            logits, boxes = logits[-1:], boxes[-1:]
        answers, extra = Predictions(torch.stack(logits), torch.stack(boxes)), {}
        for name, group in state.groups.items():
            extra[name], answers = _parted(answers, group)
        return Output(answers.logits, answers.boxes, proposals=state.proposals, extra=extra, trace=traces)

    def head(self, layer: int) -> Head:
        """The head of a decoder layer: its own, or the one that all share."""
        return cast(Head, self.heads[min(layer, len(self.heads) - 1)])

    def match(self, out: Output, targets: list[dict]) -> list[list[tuple[Tensor, Tensor]]]:
        """The one-to-one assignment: [layer][image] -> (query indices, target indices), int64, ordered by query."""
        return self.criterion.pairs(out.logits, out.boxes, targets)

    def loss(self, out: Output, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every unweighted term: ``{"class": [L], "l1": [L], "giou": [L], "proposals.class": [], ...}``."""
        return self.criterion(out, targets)

    def postprocess(self, out: Output, sizes: list[tuple[int, int]], *, top_k: int | None = None, one_label: bool = False) -> list[dict]:
        """Answers in pixels: per image ``{"scores" [K], "labels" [K], "boxes" [K, 4] xyxy, unclipped}``, best first.

        Args:
            sizes: (height, width) of the original images.
            top_k: how many; None: the paper's own number.
            one_label: each query answers with its best class only.
        """
        return self.criterion.answers(out.logits[-1], out.boxes[-1], sizes, top_k, one_label)

    def freeze(self) -> None:
        """Stem, first stage and batch norm of the backbone keep their (trained) values, as published."""
        self.backbone.freeze()
        self.config["frozen"] = True


def _parted(answers: Predictions, group: Noisy) -> tuple[Taught, Predictions]:
    """The first queries are the group's, the rest ordinary; a slot without an object says nothing."""
    size = group.content.shape[1]
    logits = answers.logits[:, :, :size].masked_fill(~group.alive[..., None], -torch.inf)
    taught = Taught(logits, answers.boxes[:, :, :size], group.matches, group.groups)
    return taught, Predictions(answers.logits[:, :, size:], answers.boxes[:, :, size:])
