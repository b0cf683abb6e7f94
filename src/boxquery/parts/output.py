"""What a model returns: predictions of every layer; and matches of queries with objects.

Shapes: L layers, B images, Q queries, C logit columns, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from boxquery.parts.cameras import Cameras
from boxquery.parts.trace import Trace


@dataclass(frozen=True)
class LayerPredictions:
    """Raw predictions.

    Attributes:
        logits: [L, B, N, C].
        boxes: [L, B, N, 4], cxcywh in [0, 1] of the unpadded extent; of scenes [L, B, N, 10], see ``boxquery.parts.box_coder_3d``.
        raw: [L, B, N, numbers per box] from which the boxes were decoded, and ``anchor`` [B, N, 4], from which they were measured (cxcywh),
            where the loss needs them.
        initial: of a further head on the first layer (L = 1), which learns as every layer does.
    """

    logits: Tensor
    boxes: Tensor
    raw: Tensor | None = field(default=None, kw_only=True)
    anchor: Tensor | None = field(default=None, kw_only=True)
    initial: LayerPredictions | None = field(default=None, kw_only=True)

    def part(self, queries: slice, layers: slice = slice(None)) -> LayerPredictions:
        """Of some queries and layers."""
        return LayerPredictions(
            self.logits[layers][:, :, queries],
            self.boxes[layers][:, :, queries],
            raw=None if self.raw is None else self.raw[layers][:, :, queries],
            anchor=None if self.anchor is None else self.anchor[:, queries],
            initial=None if self.initial is None else self.initial.part(queries),
        )


@dataclass(frozen=True)
class Matches:
    """Pairs of queries and objects, as flat int64 vectors [P] in the order layer, image, query.

    Attributes:
        layer, image, query, target: of each pair; ``target`` counts within its image.
        counts: pairs of each layer and image, [L][B].
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor
    counts: tuple[tuple[int, ...], ...]

    @property
    def index(self) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the matched predictions in [L, B, Q, ...]."""
        return self.layer, self.image, self.query

    def sum_by_layer(self, values: Tensor) -> Tensor:
        """[P, ...], a value per pair -> [L], their sums."""
        return pad_sequence(list(values.split([sum(images) for images in self.counts])), batch_first=True).flatten(1).sum(-1)

    def repeated(self, layers: int) -> Matches:
        """The pairs of one layer, the same in each of ``layers``."""
        layer = torch.arange(layers, device=self.layer.device).repeat_interleave(len(self.layer))
        image, query, target = (vector.repeat(layers) for vector in (self.image, self.query, self.target))
        return Matches(layer, image, query, target, self.counts * layers)

    def first(self, layers: int) -> Matches:
        """The pairs of the first ``layers``."""
        own = slice(sum(sum(images) for images in self.counts[:layers]))
        return Matches(self.layer[own], self.image[own], self.query[own], self.target[own], self.counts[:layers])

    def pairs(self) -> list[list[tuple[Tensor, Tensor]]]:
        """[layer][image] -> (query indices, target indices)."""
        sizes = [size for images in self.counts for size in images]
        flat = iter(zip(self.query.split(sizes), self.target.split(sizes), strict=True))
        return [[next(flat) for _ in images] for images in self.counts]


@dataclass(frozen=True)
class QueryGroup:
    """Training-only queries, placed before the ordinary ones, which never attend to them.

    Attributes:
        name: under which outputs and loss terms are kept.
        size: N, how many.
        matches: of one layer, by position in the group, the same in every layer; None: ``matcher`` finds them after decoding.
        matcher: see ``boxquery.matching.hungarian.Matcher``.
        repeats: number of times each object is matched, by which the loss is divided.
        peers: number of equal parts that learn as the ordinary queries do: the loss is the mean over them and the ordinary ones. 0: the
            group's loss is added.
        mask: [N, N] bool, True = may not attend.
        valid: [B, N] bool, False for slots that are padding; None: none is.
        isolated: its queries do not attend to the ordinary ones either.
    """

    name: str
    size: int
    matches: Matches | None = None
    matcher: Any = None
    repeats: int = 1
    peers: int = 0
    mask: Tensor | None = None
    valid: Tensor | None = None
    isolated: bool = False

    def output(self, predictions: LayerPredictions) -> TrainingGroupOutput:
        """The group's own part of all predictions; padding has logits of -inf."""
        logits, initial, alive = predictions.logits, predictions.initial, None
        if self.valid is not None:
            logits, alive = logits.masked_fill(~self.valid[..., None], -torch.inf), self.valid.expand(len(logits), -1, -1)
            if initial is not None:
                initial = replace(initial, logits=initial.logits.masked_fill(~self.valid[..., None], -torch.inf))
        return TrainingGroupOutput(
            logits,
            predictions.boxes,
            None if self.matches is None else self.matches.repeated(len(logits)),
            self.matcher,
            alive,
            self.repeats,
            self.peers,
            raw=predictions.raw,
            anchor=predictions.anchor,
            initial=initial,
        )


@dataclass(frozen=True)
class TrainingGroupOutput(LayerPredictions):
    """Predictions that only training uses, and what they learn; see ``QueryGroup``.

    Attributes:
        matches: in all layers.
        alive: [L, B, N] bool, which may be matched; None: all.
    """

    matches: Matches | None = None
    matcher: Any = None
    alive: Tensor | None = None
    repeats: int = 1
    peers: int = 0


@dataclass(frozen=True)
class DensePredictions:
    """Predictions of every token, trained on several objects' tokens at once and never used afterwards.

    Attributes:
        logits: [B, S, C]; boxes: [B, S, 4] cxcywh.
        centres: [B, S, 2] of the tokens' cells; cells: [B, S, 2], their widths and heights. In the unit of boxes.
        mask: [B, S] bool, True = padding; None: none.
    """

    logits: Tensor
    boxes: Tensor
    centres: Tensor
    cells: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class PerspectivePredictions:
    """What the cells of the finest level propose: S cells of all V views, view by view and row by row.

    Attributes:
        logits: [B, S, C].
        codes: [B, S, 10], boxes in the frame of the vehicle (``boxquery.parts.box_coder_3d``).
        places: [B, S, 2] (x, y), where the middle of the box's lower face is in the cell's view, in [0, 1] of it; depths: [B, S], how far
            away that is along the camera's axis, in metres.
        cells: (h, w) of a view.
        cameras: of the scenes.
    """

    logits: Tensor
    codes: Tensor
    places: Tensor
    depths: Tensor
    cells: tuple[int, int]
    cameras: Cameras


@dataclass(frozen=True)
class Output(LayerPredictions):
    """What ``model(images, mask)`` returns; shapes as in ``LayerPredictions`` with N = Q ordinary queries, the last row is final.

    Attributes:
        proposals: the encoder's predictions where the model is two-stage (L = 1, N = tokens or chosen tokens).
        alive: [L, B, Q] bool where queries are pruned between layers: a pruned query keeps its last box and has logits of -inf.
        extra: predictions that only training uses, by the name of their strategy: those of training-only queries, and further ones of the
            ordinary queries.
        dense: of a training-only head on the encoder's tokens, where the model has one; or what the cells of scenes propose.
        trace: what each query did, with ``trace=True``.
    """

    proposals: LayerPredictions | None = None
    alive: Tensor | None = None
    extra: dict[str, TrainingGroupOutput] = field(default_factory=dict)
    dense: DensePredictions | PerspectivePredictions | None = None
    trace: Trace | None = None
