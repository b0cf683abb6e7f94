"""The set criterion: match every layer's predictions to the objects, then class and box losses on the pairs (DETR, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from boxquery.matching.classification import columns_of
from boxquery.matching.dense import TaskAlignedLoss
from boxquery.matching.fine_grained import FineGrainedLoss
from boxquery.matching.hungarian import Hungarian, Matcher, PaddedTargets, Problem, assign, pad_targets, solve
from boxquery.matching.union import union
from boxquery.parts.box_coder import BoxCoder, SigmoidBoxCoder
from boxquery.parts.boxes import at_least_float32
from boxquery.parts.output import LayerPredictions, Matches, Output


class Classification(Protocol):
    """How classes are scored, matched and trained: ``Softmax``, or ``Focal`` and what is derived from it."""

    @property
    def weight(self) -> float: ...
    @property
    def cost(self) -> float: ...
    @property
    def has_no_object(self) -> bool: ...
    @property
    def known(self) -> Any: ...
    def scores(self, logits: Tensor) -> Tensor: ...
    def match_cost(self, logits: Tensor, targets: PaddedTargets, giou: Tensor | None) -> Tensor: ...
    def loss(
        self, logits: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor, quality: Callable[[], Tensor]
    ) -> Tensor: ...


class DenseLoss(Protocol):
    """What the predictions of all tokens learn (``Output.dense``): ``TaskAlignedLoss``, or of scenes ``PerspectiveLoss``."""

    @property
    def weights(self) -> dict[str, float]: ...
    def terms(self, out: Any, targets: PaddedTargets) -> dict[str, Tensor]: ...


#: names of terms that have no layers
PROPOSALS, INITIAL = "proposals", "initial"


@dataclass(frozen=True)
class Supervised:
    """Predictions of L layers and what they learn.

    Attributes:
        name: under which its terms are kept; "": the ordinary queries.
        predictions: float32 at least.
        targets: the objects.
        matches: None: ``matcher`` finds them.
        alive: [L, B, N] bool, which may be matched; None: all.
        repeats: number of times each object is matched.
        weight: in the total.
        joint: the same queries as the ordinary ones, with which they share their pairs in the box losses where these are joint.
        single: predictions of one layer, whose terms are [].
    """

    name: str
    predictions: LayerPredictions
    targets: PaddedTargets
    matches: Matches | None = None
    matcher: Matcher = Hungarian()  # noqa: RUF009
    alive: Tensor | None = None
    repeats: int = 1
    weight: float = 1.0
    joint: bool = False
    single: bool = False


@dataclass(frozen=True)
class Pairs:
    """What predictions learn: ``classes``, each layer's own; ``boxes``, the same or those of all layers; by what each loss is divided."""

    classes: Matches
    boxes: Matches
    normalizer: Tensor
    box_normalizer: Tensor


class SetCriterion:
    """Matching and loss of one model, in float32 at least, for all layers and images at once.

    Args:
        classification: ``Softmax`` or ``Focal``.
        l1, giou: weights of the box terms that ``coder`` has, the same in matching and in the loss (5 and 2 on images in the whole family).
        class_agnostic_proposals: every object is class 0 for the encoder's proposals (Deformable DETR); False: its own class.
        coder: how boxes are compared.
        fine: losses of boxes that are distributions, where they are.
        joint: box losses of every layer, the proposals and the initial predictions use the pairs of all of them (D-FINE, section 4.2).
        dense: assignment and losses of a dense head, where the model has one, and of what cells propose in scenes.
    """

    def __init__(
        self,
        classification: Classification,
        *,
        l1: float = 5.0,
        giou: float = 2.0,
        class_agnostic_proposals: bool = True,
        coder: BoxCoder = SigmoidBoxCoder(),  # noqa: B008
        fine: FineGrainedLoss | None = None,
        joint: bool = False,
        dense: DenseLoss = TaskAlignedLoss(),  # noqa: B008
    ):
        self.classification, self.coder, self.class_agnostic_proposals = classification, coder, class_agnostic_proposals
        self.fine, self.joint, self.dense = fine, joint, dense
        self.weights = {"class": classification.weight, "l1": l1, "giou": giou} | ({} if fine is None else fine.weights)

    def classes(self, logits: Tensor) -> int:
        """Number of classes of the columns [..., C]."""
        return logits.shape[-1] - self.classification.has_no_object

    def cost(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Tensor:
        """[L, B, Q, C], [L, B, Q, 4] -> [L, B, Q, N]; no gradient."""
        with torch.no_grad():
            costs = self.coder.costs(boxes, targets.boxes.expand(len(boxes), -1, -1, -1))
            overlap = -costs["giou"] if "giou" in costs else None
            total = self.classification.cost * self.classification.match_cost(logits, targets, overlap)
            for name, cost in costs.items():
                total = total + self.weights[name] * cost
            return total

    @torch.no_grad()
    def overlap(self, boxes: Tensor, targets: PaddedTargets) -> Tensor:
        """IoU of every query with every object, [L, B, Q, 4] -> [L, B, Q, N]."""
        return self.coder.quality(boxes[..., :, None, :], targets.boxes[:, None])

    @torch.no_grad()
    def probability(self, logits: Tensor, targets: PaddedTargets) -> Tensor:
        """Of every object's class by every query, [L, B, Q, C] -> [L, B, Q, N]."""
        return columns_of(self.classification.scores(logits), targets.labels)

    def pairs(self, logits: Tensor, boxes: Tensor, targets: list[dict], alive: Tensor | None = None) -> list[list[tuple[Tensor, Tensor]]]:
        """[layer][image] -> (query indices, target indices); ``alive`` [L, B, Q]: which queries may be matched."""
        logits, boxes = at_least_float32(logits, boxes)
        padded = pad_targets(targets, boxes, boxes.shape[1], self.classes(logits))
        return assign([Problem(Hungarian(), self.cost(logits, boxes, padded), alive)], padded.counts)[0].pairs()

    def __call__(self, out: Output, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every unweighted term by name: [L], or [] of the proposals."""
        with torch.autocast(out.boxes.device.type, enabled=False):
            return self._loss(out, targets)

    def _loss(self, out: Output, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        learned = self.learned(out, targets)
        total, terms = self.total(learned)
        if out.dense is not None:
            for name, term in self.dense.terms(out.dense, learned[0][0].targets).items():
                total = total + self.dense.weights[name] * term
                terms[f"dense.{name}"] = term
        return total, terms

    def learned(self, out: Output, targets: list[dict]) -> list[tuple[Supervised, Pairs]]:
        """All predictions and what each learns; the first are the ordinary queries."""
        padded = pad_targets(targets, out.boxes, out.boxes.shape[1], self.classes(out.logits))
        supervised = self.supervised(out, padded)
        return list(zip(supervised, self.find(supervised, padded), strict=True))

    def total(self, learned: Sequence[tuple[Supervised, Pairs]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of their losses, and every unweighted term by name."""
        ordinary = learned[0]
        total, terms = ordinary[0].predictions.boxes.new_zeros(()), {}
        for s, pairs in learned:
            kind = self.classification if s.matches is None else self.classification.known or self.classification
            # queries that know their object weigh matched and other queries as the ordinary ones do
            weighed = (s, pairs) if s.matches is None else ordinary
            for name, term in self.terms(s, pairs, kind, weighed).items():
                total = total + s.weight * (kind.weight if name == "class" else self.weights[name]) * term.sum()
                terms[f"{s.name}.{name}" if s.name else name] = term[0] if s.single else term
        return total, terms

    def supervised(self, out: Output, targets: PaddedTargets) -> list[Supervised]:
        """All predictions that learn objects: of the ordinary queries, the encoder's proposals, and what only training has."""
        peers = 1 + sum(group.peers for group in out.extra.values())
        all_of = [Supervised("", exact(out), targets, alive=out.alive, weight=1 / peers, joint=True)]
        if out.initial is not None:
            all_of.append(Supervised(INITIAL, exact(out.initial), targets, weight=1 / peers, joint=True, single=True))
        if out.proposals is not None:
            labels = torch.zeros_like(targets.labels) if self.class_agnostic_proposals else targets.labels
            padded = PaddedTargets(labels, targets.boxes, targets.counts)
            all_of.append(Supervised(PROPOSALS, exact(out.proposals), padded, joint=True, single=True))
        for name, group in out.extra.items():
            weight = group.peers / peers if group.peers else 1.0
            own = Supervised(name, exact(group), targets, group.matches, group.matcher, group.alive, group.repeats, weight)
            all_of.append(own)
            if group.initial is not None:
                first = None if group.matches is None else group.matches.first(1)
                alive = None if group.alive is None else group.alive[:1]
                initial = {"predictions": exact(group.initial), "matches": first, "alive": alive, "single": True}
                all_of.append(replace(own, name=f"{name}.{INITIAL}", **initial))
        return all_of

    def find(self, supervised: Sequence[Supervised], targets: PaddedTargets) -> list[Pairs]:
        """What each learns; the first are the ordinary queries."""
        searched = [s for s in supervised if s.matches is None]
        found = solve([Problem(s.matcher, s.matcher.measure(self, s.predictions, s.targets), s.alive) for s in searched], targets.counts)
        device, normalizer = targets.boxes.device, num_objects(targets.total, targets.boxes)
        classes = {s.name: assignment.matches(device) for s, assignment in zip(searched, found, strict=True)}
        joint, total = {}, normalizer
        if self.joint:
            members = [(s.name, assignment) for s, assignment in zip(searched, found, strict=True) if s.joint]
            shared, count = union([assignment for _, assignment in members])
            joint = {name: assignment.matches(device) for (name, _), assignment in zip(members, shared, strict=True)}
            total = num_objects(count, targets.boxes)
        out = []
        for s in supervised:
            own, size = classes[s.name] if s.matches is None else s.matches, normalizer * s.repeats
            out.append(Pairs(own, joint.get(s.name, own), size, total if s.name in joint else size))
        return out

    def terms(self, s: Supervised, pairs: Pairs, classification: Classification, weighed: tuple[Supervised, Pairs]) -> dict[str, Tensor]:
        """Unweighted, [L] each, or [] of all layers.

        Args:
            weighed: in distillation matched and other queries weigh as many as these are.
        """

        def matched(matches: Matches) -> tuple[Tensor, Tensor]:
            return s.predictions.boxes[matches.index], s.targets.boxes[matches.image, matches.target]

        learned = matched(pairs.boxes)
        own = learned if pairs.classes is pairs.boxes else matched(pairs.classes)
        out = {
            "class": classification.loss(
                s.predictions.logits, s.targets, pairs.classes, pairs.normalizer, lambda: self.coder.quality(own[0].detach(), own[1])
            )
        }
        for name, values in self.coder.terms(*learned).items():
            out[name] = pairs.boxes.sum_by_layer(values) / pairs.box_normalizer
        if self.fine is not None and s.predictions.raw is not None:
            quality = self.coder.quality(learned[0].detach(), learned[1])
            numbers = self.fine.numbers(weighed[0].predictions, weighed[1].boxes)
            out |= self.fine.terms(s.predictions, learned[1], quality, pairs.boxes, pairs.box_normalizer, numbers)
        return out


def exact(predictions: LayerPredictions) -> LayerPredictions:
    """In float32 at least."""
    logits, boxes = at_least_float32(predictions.logits, predictions.boxes)
    return LayerPredictions(logits, boxes, raw=predictions.raw, anchor=predictions.anchor)


def num_objects(count: int, like: Tensor) -> Tensor:
    """Objects in the batch, at least 1; the mean over processes, so that every rank divides by the same number."""
    total = torch.as_tensor([float(count)], dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    return total.clamp(min=1)[0]
