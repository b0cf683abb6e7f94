"""The set loss: match every layer's answers to the objects, then classes, L1 and GIoU on the pairs (DETR, section 3.1)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from boxquery.matching.hungarian import Matches, PaddedTargets, hungarian, pad_targets
from boxquery.parts.boxes import at_least_float32, cxcywh_to_xyxy, giou
from boxquery.parts.output import Output


class Classification(Protocol):
    """How classes are scored, matched and taught: ``Softmax`` or ``Focal``."""

    @property
    def weight(self) -> float: ...
    @property
    def cost(self) -> float: ...
    @property
    def has_no_object(self) -> int: ...
    def scores(self, logits: Tensor) -> Tensor: ...
    def match_cost(self, logits: Tensor, targets: PaddedTargets) -> Tensor: ...
    def loss(self, logits: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor) -> Tensor: ...


class SetCriterion:
    """Matching, loss and post-processing of one model.

    Args:
        classification: ``Softmax`` or ``Focal``.
        l1, giou: factors of the box terms, the same in matching and in the loss (5 and 2 in the whole family).
        top_k: answers an image in post-processing; 0: one for each query.

    Everything is computed in float32 at least, for all layers and images at once.
    """

    def __init__(self, classification: Classification, *, l1: float = 5.0, giou: float = 2.0, top_k: int = 100):
        self.classification = classification
        self.weights = {"class": classification.weight, "l1": l1, "giou": giou}
        self.top_k = top_k

    def classes(self, logits: Tensor) -> int:
        """How many classes the columns [..., C] are of."""
        return logits.shape[-1] - self.classification.has_no_object

    def cost(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets) -> Tensor:
        """[L, B, Q, C], [L, B, Q, 4] -> [L, B, Q, N]; no gradient."""
        with torch.no_grad():
            wanted = targets.boxes.expand(len(boxes), -1, -1, -1)
            l1 = torch.cdist(boxes, wanted, p=1)
            overlap = giou(cxcywh_to_xyxy(boxes)[..., :, None, :], cxcywh_to_xyxy(wanted)[..., None, :, :])
            return (
                self.classification.cost * self.classification.match_cost(logits, targets)
                + self.weights["l1"] * l1
                - self.weights["giou"] * overlap
            )

    def pairs(self, logits: Tensor, boxes: Tensor, targets: list[dict], alive: Tensor | None = None) -> list[list[tuple[Tensor, Tensor]]]:
        """[layer][image] -> (query indices, target indices); ``alive`` [L, B, Q]: which queries may be matched."""
        logits, boxes = at_least_float32(logits, boxes)
        rectangle = pad_targets(targets, boxes, boxes.shape[1], self.classes(logits))
        return hungarian([self.cost(logits, boxes, rectangle)], rectangle.counts, [alive])[0].pairs()

    def __call__(self, out: Output, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.autocast(out.boxes.device.type, enabled=False):
            return self._loss(out, targets)

    def _loss(self, out: Output, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor]]:
        rectangle = pad_targets(targets, out.boxes, out.boxes.shape[1], self.classes(out.logits))
        answers = {"": (*at_least_float32(out.logits, out.boxes), rectangle)}
        if out.proposals is not None:
            # every object is class 0 to a proposal
            anything = PaddedTargets(torch.zeros_like(rectangle.labels), rectangle.boxes, rectangle.counts)
            answers["proposals."] = (*at_least_float32(out.proposals.logits, out.proposals.boxes), anything)
        costs = [self.cost(logits, boxes, wanted) for logits, boxes, wanted in answers.values()]
        matches = hungarian(costs, rectangle.counts, [out.alive, None][: len(costs)])
        normalizer = _objects(rectangle.total, out.boxes)
        total, terms = out.boxes.new_zeros(()), {}
        for (prefix, (logits, boxes, wanted)), found in zip(answers.items(), matches, strict=True):
            for name, term in self.terms(logits, boxes, wanted, found, normalizer).items():
                total = total + self.weights[name] * term.sum()
                terms[prefix + name] = term[0] if prefix else term
        for group, taught in out.extra.items():
            logits, boxes = at_least_float32(taught.logits, taught.boxes)
            for name, term in self.terms(logits, boxes, rectangle, taught.matches, normalizer * taught.times).items():
                total = total + self.weights[name] * term.sum()
                terms[f"{group}.{name}"] = term
        return total, terms

    def terms(self, logits: Tensor, boxes: Tensor, targets: PaddedTargets, matches: Matches, normalizer: Tensor) -> dict[str, Tensor]:
        """Unweighted, [L] each."""
        layer = torch.arange(len(boxes), device=boxes.device)[:, None]
        answered = boxes[layer, matches.image, matches.query]
        wanted = targets.boxes[matches.image, matches.target]
        overlap = giou(cxcywh_to_xyxy(answered), cxcywh_to_xyxy(wanted))
        return {
            "class": self.classification.loss(logits, targets, matches, normalizer),
            "l1": (answered - wanted).abs().flatten(1).sum(-1) / normalizer,
            "giou": (1 - overlap).sum(-1) / normalizer,
        }

    def answers(
        self,
        logits: Tensor,
        boxes: Tensor,
        sizes: list[tuple[int, int]],
        top_k: int | None,
        one_label: bool,
        alive: Tensor | None = None,
    ) -> list[dict]:
        """[B, Q, C] and [B, Q, 4] -> per image scores, labels, boxes (xyxy pixels, unclipped), best first.

        ``alive`` [B, Q]: only these answer, equally many in every image.
        """
        logits, boxes = at_least_float32(logits, boxes)
        if alive is not None:
            kept = alive.nonzero()[:, 1].view(len(alive), -1, 1)
            logits, boxes = (values.gather(1, kept.expand(-1, -1, values.shape[-1])) for values in (logits, boxes))
        scores = self.classification.scores(logits)
        queries, classes = scores.shape[1:]
        # a softmax gives each query one class; a sigmoid may give it several
        if one_label or self.classification.has_no_object:
            scores, labels = scores.max(-1)
            scores, index = scores.topk(min(top_k or queries, queries))
            labels = labels.gather(1, index)
        else:
            count = min(top_k or self.top_k or queries, queries * classes)
            scores, flat = scores.flatten(1).topk(count)
            index, labels = flat // classes, flat % classes
        scale = torch.tensor([(w, h, w, h) for h, w in sizes], device=boxes.device, dtype=boxes.dtype)
        chosen = cxcywh_to_xyxy(boxes.gather(1, index[..., None].expand(-1, -1, 4))) * scale[:, None]
        return [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(scores, labels, chosen, strict=True)]


def _objects(count: int, like: Tensor) -> Tensor:
    """Objects in the batch, at least 1; the mean over processes, so that every rank divides by the same number."""
    total = torch.as_tensor([float(count)], dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    return total.clamp(min=1)[0]
