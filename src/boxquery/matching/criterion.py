"""The set criterion: match every layer's predictions to the objects, then class, L1 and GIoU losses on the pairs (DETR, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from boxquery.matching.dense import TaskAlignedLoss
from boxquery.matching.hungarian import PaddedTargets, hungarian, pad_targets
from boxquery.parts.box_coder import SigmoidBoxCoder
from boxquery.parts.boxes import at_least_float32
from boxquery.parts.output import Matches, Output


class Classification(Protocol):
    """How classes are scored, matched and trained: ``Softmax`` or ``Focal``."""

    @property
    def weight(self) -> float: ...
    @property
    def cost(self) -> float: ...
    @property
    def has_no_object(self) -> bool: ...
    def scores(self, logits: Tensor) -> Tensor: ...
    def match_cost(self, logits: Tensor, targets: PaddedTargets) -> Tensor: ...
    def loss(
        self, logits: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor, quality: Callable[[], Tensor]
    ) -> Tensor: ...


class SetCriterion:
    """Matching and loss of one model, in float32 at least, for all layers and images at once.

    Args:
        classification: ``Softmax`` or ``Focal``.
        l1, giou: weights of the box terms, the same in matching and in the loss (5 and 2 in the whole family).
        class_agnostic_proposals: every object is class 0 for the encoder's proposals (Deformable DETR); False: its own class.
        coder: how boxes are compared.
        dense: assignment and losses of a dense head, where the model has one.
    """

    def __init__(
        self,
        classification: Classification,
        *,
        l1: float = 5.0,
        giou: float = 2.0,
        class_agnostic_proposals: bool = True,
        coder: SigmoidBoxCoder = SigmoidBoxCoder(),  # noqa: B008
        dense: TaskAlignedLoss = TaskAlignedLoss(),  # noqa: B008
    ):
        self.classification, self.coder, self.class_agnostic_proposals = classification, coder, class_agnostic_proposals
        self.dense = dense
        self.weights = {"class": classification.weight, "l1": l1, "giou": giou}

    def classes(self, logits: Tensor) -> int:
        """Number of classes of the columns [..., C]."""
        return logits.shape[-1] - self.classification.has_no_object

    def cost(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Tensor:
        """[L, B, Q, C], [L, B, Q, 4] -> [L, B, Q, N]; no gradient."""
        with torch.no_grad():
            total = self.classification.cost * self.classification.match_cost(logits, targets)
            for name, cost in self.coder.costs(boxes, targets.boxes.expand(len(boxes), -1, -1, -1)).items():
                total = total + self.weights[name] * cost
            return total

    def pairs(self, logits: Tensor, boxes: Tensor, targets: list[dict], alive: Tensor | None = None) -> list[list[tuple[Tensor, Tensor]]]:
        """[layer][image] -> (query indices, target indices); ``alive`` [L, B, Q]: which queries may be matched."""
        logits, boxes = at_least_float32(logits, boxes)
        padded = pad_targets(targets, boxes, boxes.shape[1], self.classes(logits))
        return hungarian([self.cost(logits, boxes, padded)], padded.counts, [alive])[0].pairs()

    def __call__(self, out: Output, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and every unweighted term by name: [L], or [] of the proposals."""
        with torch.autocast(out.boxes.device.type, enabled=False):
            return self._loss(out, targets)

    def _loss(self, out: Output, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        padded = pad_targets(targets, out.boxes, out.boxes.shape[1], self.classes(out.logits))
        predictions = {"": (*at_least_float32(out.logits, out.boxes), padded)}
        if out.proposals is not None:
            labels = torch.zeros_like(padded.labels) if self.class_agnostic_proposals else padded.labels
            objects = PaddedTargets(labels, padded.boxes, padded.counts)
            predictions["proposals."] = (*at_least_float32(out.proposals.logits, out.proposals.boxes), objects)
        costs = [self.cost(logits, boxes, objects) for logits, boxes, objects in predictions.values()]
        matches = hungarian(costs, padded.counts, [out.alive, None][: len(costs)])
        normalizer = num_objects(padded.total, out.boxes)
        total, terms = out.boxes.new_zeros(()), {}
        for (prefix, (logits, boxes, objects)), matched in zip(predictions.items(), matches, strict=True):
            for name, term in self.terms(logits, boxes, objects, matched, normalizer).items():
                total = total + self.weights[name] * term.sum()
                terms[prefix + name] = term[0] if prefix else term
        for group, output in out.extra.items():
            logits, boxes = at_least_float32(output.logits, output.boxes)
            for name, term in self.terms(logits, boxes, padded, output.matches, normalizer * output.repeats).items():
                total = total + self.weights[name] * term.sum()
                terms[f"{group}.{name}"] = term
        if out.dense is not None:
            for name, term in self.dense.terms(out.dense, padded).items():
                total = total + self.dense.weights[name] * term
                terms[f"dense.{name}"] = term
        return total, terms

    def terms(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor) -> dict[str, Tensor]:
        """Unweighted, [L] each."""
        predicted, target = boxes[matches.index], targets.boxes[matches.image, matches.target]
        box_terms = self.coder.terms(predicted, target)
        loss = self.classification.loss(logits, targets, matches, normalizer, lambda: self.coder.quality(predicted.detach(), target))
        return {"class": loss} | {name: matches.sum_by_layer(values) / normalizer for name, values in box_terms.items()}


def num_objects(count: int, like: Tensor) -> Tensor:
    """Objects in the batch, at least 1; the mean over processes, so that every rank divides by the same number."""
    total = torch.as_tensor([float(count)], dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    return total.clamp(min=1)[0]
