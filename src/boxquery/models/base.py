"""The sentence that every paper of the family keeps: boxes come out of information exchanged between regions and objects.

A paper's file builds a ``DetectionTransformer`` (of scenes a ``SceneTransformer``) from parts and names its own queries, encoder, locate,
cross-attention, refine and head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from boxquery.matching.criterion import SetCriterion
from boxquery.matching.dense import DenseHead
from boxquery.matching.groups import FurtherQueries
from boxquery.matching.one_to_many import OneToMany
from boxquery.models.interface import Model
from boxquery.models.postprocess import BestQueries, PostProcess
from boxquery.parts.backbone import Backbone, Neck
from boxquery.parts.boxes import nms_per_class
from boxquery.parts.decoder_outputs import DecoderOutputs
from boxquery.parts.geometry import Locate, OtherPosition, locate_at_position
from boxquery.parts.heads import Head, Prediction
from boxquery.parts.layers import DecoderLayer, Encoder
from boxquery.parts.memory import Memory
from boxquery.parts.output import Output, TrainingGroupOutput
from boxquery.parts.pruning import Prune, keep_all
from boxquery.parts.queries import LARGEST, ProposalQueries
from boxquery.parts.state import QueryState
from boxquery.parts.trace import NoTrace, Trace

Refine = Callable[[QueryState, Prediction, Head], QueryState]


def keep_reference(state: QueryState, prediction: Prediction, head: Head) -> QueryState:
    """DETR: nothing is refined."""
    return state


class QueryTransformer(Model):
    """Backbone, encoder, queries, decoder layers, heads: every model of the family is one of these, and one sentence::

        memory = encoder(tokens(neck(backbone(images)), mask))
        state = queries(memory, targets)
        for i, (layer, head) in enumerate(zip(layers, layer_heads)):
            state, geometry = locate(state, memory, i)
            state = state.with_content(layer(state.content, geometry, memory))
            prediction = head(norm(state.content), state)
            state, prediction = prune(i, state, prediction)
            state = refine(state, prediction, head)

    What its input is and what becomes of its boxes is said by ``DetectionTransformer``, for images, and by
    ``boxquery.models.scenes.base.SceneTransformer``, for scenes of several cameras.

    Args:
        image: backbone, neck and tokens, which make the memory.
        encoder: region-region.
        queries: ``(memory, targets) -> QueryState``.
        locate: ``(state, memory, layer) -> (state, QueryGeometry)``, called before every layer on the layer's input; may give
            queries a reference that they do not have yet.
        layers: decoder layers, ``(content, geometry, memory, trace) -> content``.
        norm: applied to every layer's content before the heads.
        heads: one for all layers, or one per layer.
        refine: ``(state, prediction, head) -> QueryState`` for the next layer.
        criterion: matching and loss.
        top_k: detections per image in post-processing; 0: one per query.
        low_lr_patterns: substrings of the names of parameters that the paper trains at a tenth of the learning rate.
    """

    #: the class of ``postprocessor``
    postprocessing: ClassVar[type[BestQueries]]

    def __init__(
        self,
        *,
        image: tuple[Backbone, Neck, nn.Module],
        encoder: Encoder,
        queries: nn.Module,
        layers: Sequence[nn.Module],
        heads: Sequence[Head],
        criterion: SetCriterion,
        norm: nn.Module | None = None,
        locate: Locate = locate_at_position,
        refine: Refine = keep_reference,
        top_k: int = 100,
        low_lr_patterns: tuple[str, ...] = (),
    ):
        super().__init__()
        self.backbone, self.neck, self.tokens = image
        self.encoder, self.queries = encoder, queries
        self.layers, self.heads = nn.ModuleList(layers), nn.ModuleList(heads)
        self.norm = nn.Identity() if norm is None else norm
        self.place, self.refine, self.criterion, self.low_lr_patterns = locate, refine, criterion, low_lr_patterns
        self.prune: Prune = keep_all
        #: how many layers are used in inference
        self.inference_layers = len(layers)
        #: what teaches several queries per object, where something does; the decoder layers then have ``attend`` and ``feed``
        self.one_to_many: OneToMany | None = None
        #: a training-only head on the encoder's tokens
        self.dense: DenseHead | None = None
        self.postprocessor = self.postprocessing(criterion.classification, top_k)
        self.config = {}

    def forward_transformer(
        self,
        memory: Memory,
        *,
        targets: list[dict] | None = None,
        trace: bool | Literal["decoder"] = False,
        last_only: bool = False,
    ) -> Output:
        """The second half of ``forward``: encoder and decoder, from the memory to the predictions."""
        traces = Trace(decoder_only=trace == "decoder") if trace else NoTrace()
        outputs = DecoderOutputs(last_only and not trace)
        attended = None if self.one_to_many is None or targets is None else DecoderOutputs(last_only=False)
        memory = self.encoder(memory, traces)
        state = self.decode(self.queries(memory, targets), memory, outputs, attended, traces)
        every, alive = outputs.stacked()
        completed = traces.complete(outputs.indices, every.boxes.unbind(), self.scores(every.logits).amax(-1).unbind()) if trace else None
        dense = state.proposed if self.dense is None or targets is None else self.dense(memory)
        rows, first = slice(-1 if last_only else None, None), state.training_only()
        every = every.part(slice(None), rows)
        extra = state.split_groups(every)
        if attended is not None:
            early, kept = attended.stacked()
            early, kept = early.part(slice(first, None), rows), None if kept is None else kept[rows][:, :, first:]
            extra["one-to-many"] = TrainingGroupOutput(early.logits, early.boxes, None, self.one_to_many, kept)
        alive = None if alive is None else alive[rows][:, :, first:]
        own = every.part(slice(first, None))
        return Output(
            own.logits, own.boxes, state.proposals, alive, extra, dense, completed, raw=own.raw, anchor=own.anchor, initial=own.initial
        )

    def decode(
        self, state: QueryState, memory: Memory, outputs: DecoderOutputs, attended: DecoderOutputs | None, traces: Trace
    ) -> QueryState:
        """The decoder layers, from the first queries to the last, which are returned; their predictions go to ``outputs``, and those before
        the feed-forward networks to ``attended``."""
        used = len(self.layers) if self.training else self.inference_layers
        for i, (layer, head) in enumerate(zip(self.layers[:used], self.layer_heads[:used], strict=True)):
            state, geometry = self.locate(state, memory, i)
            record = traces.decoder_layer(memory, geometry.reference)
            if attended is None:
                content = layer(state.content, geometry, memory, record)
            else:
                layer = cast(DecoderLayer, layer)
                content = layer.attend(state.content, geometry, memory, record)
                attended.append(head(self.norm(content), state), state)
                content = layer.feed(content)
            state = state.with_content(content)
            prediction = head(self.norm(state.content), state)
            outputs.append(prediction, state)
            if i + 1 < used:
                state, prediction = self.prune(i, state, prediction)
                state = self.refine(state, prediction, head)
        return state

    @property
    def locate(self) -> Locate:
        """See the class; stored as ``place``, the name of its weights in checkpoints."""
        return self.place

    @property
    def layer_heads(self) -> list[Head]:
        """The head of every decoder layer: its own, or the one that all share."""
        return [self.head(i) for i in range(len(self.layers))]

    def head(self, layer: int) -> Head:
        """The head of one decoder layer."""
        return cast(Head, self.heads[min(layer, len(self.heads) - 1)])

    def scores(self, logits: Tensor) -> Tensor:
        """[..., columns] -> [..., C], probabilities of the classes."""
        return self.criterion.classification.scores(logits)

    def match(self, out: Output, targets: list[dict]) -> list[list[tuple[Tensor, Tensor]]]:
        """The one-to-one assignment: [layer][image] -> (query indices, target indices), int64, ordered by query."""
        return self.criterion.pairs(out.logits, out.boxes, targets, out.alive)

    def loss(self, out: Output, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every unweighted term: ``{"class": [L], "l1": [L], "giou": [L], "proposals.class": [], ...}``."""
        return self.criterion(out, targets)

    def query_parameters(self) -> list[nn.Parameter]:
        """The queries' own parameters, not those of their networks; and those of an ``OtherPosition`` and of further queries."""
        owners = (self.queries, *(part for part in self.modules() if isinstance(part, (OtherPosition, FurtherQueries))))
        return [parameter for part in owners for parameter in part.parameters(recurse=False)]


class DetectionTransformer(QueryTransformer):
    """Images in, boxes in shares of the image out: ``tokens`` takes maps, a mask and the size of the images."""

    postprocessing = PostProcess
    postprocessor: PostProcess

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
            last_only: predictions of the last layer alone (L = 1).
        """
        return self.forward_transformer(self.embed_image(images, mask), targets=targets, trace=trace, last_only=last_only)

    def embed_image(self, images: Tensor, mask: Tensor | None = None) -> Memory:
        """The first half of ``forward``: the image as tokens, before the encoder."""
        return self.tokens(self.neck(self.backbone(images)), mask, images.shape[-2:])

    def postprocess(
        self, out: Output, sizes: list[tuple[int, int]], *, top_k: int | None = None, one_label: bool = False, nms: float | None = None
    ) -> list[dict]:
        """Detections in pixels: per image ``{"scores" [K], "labels" [K], "boxes" [K, 4] xyxy, unclipped}``, best first.

        Args:
            sizes: (height, width) of the original images.
            top_k: detections per image; None: the paper's own number.
            one_label: only the best class of each query.
            nms: IoU threshold of class-wise NMS; None: none, as published.
        """
        kept = None if out.alive is None else out.alive[-1].nonzero()[:, 1].view(len(sizes), -1)
        extents = torch.tensor(sizes, device=out.boxes.device)
        columns = self.postprocessor(out.logits[-1], out.boxes[-1], extents, kept, top_k=top_k, one_label=one_label)
        detections = [{"scores": s, "labels": c, "boxes": b} for s, c, b, _ in zip(*columns, strict=True)]
        return detections if nms is None else [nms_per_class(image, nms) for image in detections]

    def fit_to_data(self, sizes: np.ndarray, shares: np.ndarray) -> dict[str, Any]:
        """The first size of proposals, where it is to be measured: that of the median object on the middle level."""
        if not isinstance(self.queries, ProposalQueries) or self.queries.size or not len(shares):
            return {}
        median = float(np.median(np.sqrt(shares.prod(1))))
        self.queries.size = min(round(median / 2 ** ((self.config["options"]["levels"] - 1) / 2), 4), LARGEST)
        measured = {"proposal_size": self.queries.size}
        self.config["options"] |= measured
        return measured
