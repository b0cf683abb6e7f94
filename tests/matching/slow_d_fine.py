"""D-FINE's loss, written slowly from the paper and the facts of the authors' code: loops over layers, images, pairs and sides, in float64.

Nothing here uses the library, so that the two can be compared.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Pairs = list[list[tuple[int, int]]]


@dataclass
class Slow:
    """Predictions of some queries: per layer logits [B, Q, C], boxes [B, Q, 4] and distributions [B, Q, 4 (bins + 1)]."""

    logits: list[Tensor]
    boxes: list[Tensor]
    corners: list[Tensor] = field(default_factory=list)
    #: [B, Q, 4] from which the distributions measure
    anchor: Tensor | None = None


def sides(box: Tensor) -> list[Tensor]:
    x, y, w, h = box
    return [x - w / 2, y - h / 2, x + w / 2, y + h / 2]


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of two cxcywh boxes."""
    (l1, t1, r1, b1), (l2, t2, r2, b2) = sides(a), sides(b)
    inner = (torch.minimum(r1, r2) - torch.maximum(l1, l2)).clamp(min=0) * (torch.minimum(b1, b2) - torch.maximum(t1, t2)).clamp(min=0)
    union = (r1 - l1) * (b1 - t1) + (r2 - l2) * (b2 - t2) - inner
    hull = (torch.maximum(r1, r2) - torch.minimum(l1, l2)) * (torch.maximum(b1, b2) - torch.minimum(t1, t2))
    return inner / union, inner / union - (hull - union) / hull


def match(logits: Tensor, boxes: Tensor, targets: list[dict]) -> Pairs:
    """Focal cost 2, L1 5, GIoU 2."""
    out = []
    for image, target in enumerate(targets):
        cost = torch.zeros(logits.shape[1], len(target["labels"]), dtype=torch.float64)
        for q in range(logits.shape[1]):
            for j, (label, box) in enumerate(zip(target["labels"], target["boxes"], strict=True)):
                p = logits[image, q, label].sigmoid()
                focal = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
                cost[q, j] = 2 * focal + 5 * (boxes[image, q] - box).abs().sum() - 2 * overlap(boxes[image, q], box)[1]
        out.append(list(zip(*(index.tolist() for index in linear_sum_assignment(cost.detach().numpy())), strict=True)))
    return out


def union_of(every: list[Pairs]) -> Pairs:
    """Per image, each query with its most frequent object; on ties the first."""
    out = []
    for image in range(len(every[0])):
        counts = Counter(pair for pairs in every for pair in pairs[image])
        kept: dict[int, int] = {}
        for (query, target), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
            kept.setdefault(query, target)
        out.append(sorted(kept.items()))
    return out


def varifocal(logits: Tensor, boxes: Tensor, targets: list[dict], pairs: Pairs, normalizer: float) -> Tensor:
    total = logits.new_zeros(())
    for image, target in enumerate(targets):
        wanted = {(q, int(target["labels"][j])): overlap(boxes[image, q], target["boxes"][j])[0].detach() for q, j in pairs[image]}
        for q in range(logits.shape[1]):
            for c in range(logits.shape[2]):
                p = logits[image, q, c].sigmoid()
                t = wanted.get((q, c))
                background = -0.75 * p.detach() ** 2 * (1 - p).log()
                total = total + (background if t is None else -t * (t * p.log() + (1 - t) * (1 - p).log()))
    return total / normalizer


def box_losses(boxes: Tensor, targets: list[dict], pairs: Pairs, normalizer: float) -> tuple[Tensor, Tensor]:
    l1 = giou = boxes.new_zeros(())
    for image, target in enumerate(targets):
        for q, j in pairs[image]:
            l1 = l1 + (boxes[image, q] - target["boxes"][j]).abs().sum()
            giou = giou + 1 - overlap(boxes[image, q], target["boxes"][j])[1]
    return l1 / normalizer, giou / normalizer


def distances(scale: float, bound: float = 0.5, bins: int = 32) -> list[float]:
    """W(n)."""
    step = (bound * scale + 1) ** (2 / (bins - 2))
    inner = [step**i - 1 for i in range(1, bins // 2)]
    return [-2 * bound * scale, *(-d for d in reversed(inner)), 0.0, *inner, 2 * bound * scale]


def box_of(corners: Tensor, anchor: Tensor, scale: float) -> Tensor:
    """A distribution per side [4 (bins + 1)] and an anchor [4] -> the box at their means."""
    w = torch.tensor(distances(scale), dtype=torch.float64)
    left, top, right, bottom = ((side.softmax(0) * w).sum() for side in corners.view(4, -1))
    x, y, width, height = anchor
    x1, x2 = x - (scale / 2 + left) * width / scale, x + (scale / 2 + right) * width / scale
    y1, y2 = y - (scale / 2 + top) * height / scale, y + (scale / 2 + bottom) * height / scale
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))


def localization(slow: Slow, layer: int, targets: list[dict], pairs: Pairs, normalizer: float, scale: float) -> Tensor:
    """FGL."""
    assert slow.anchor is not None
    w, total = distances(scale), slow.boxes[layer].new_zeros(())
    for image, target in enumerate(targets):
        for q, j in pairs[image]:
            x, y, width, height = slow.anchor[image, q].tolist()
            x1, y1, x2, y2 = (float(side) for side in sides(target["boxes"][j]))
            phis = ((x - x1) / (width / scale), (y - y1) / (height / scale), (x2 - x) / (width / scale), (y2 - y) / (height / scale))
            iou = overlap(slow.boxes[layer][image, q], target["boxes"][j])[0].detach()
            for phi, logits in zip(phis, slow.corners[layer][image, q].view(4, -1), strict=True):
                value = phi - scale / 2
                i = sum(d <= value for d in w) - 1
                if i < 0:
                    i, right = 0, 0.0
                elif i >= len(w) - 1:
                    i, right = len(w) - 2, 1.0
                else:
                    right = abs(value - w[i]) / (abs(value - w[i]) + abs(w[i + 1] - value))
                logs = logits.log_softmax(0)
                total = total - iou * ((1 - right) * logs[i] + right * logs[i + 1])
    return total / normalizer


def distillation(slow: Slow, layer: int, targets: list[dict], pairs: Pairs, weights: tuple[float, float]) -> Tensor:
    """DDF, at a temperature of 5."""
    if layer == len(slow.boxes) - 1:
        return slow.boxes[layer].new_zeros(())
    inner, outer = [], []
    for image, target in enumerate(targets):
        matched = dict(pairs[image])
        for q in range(slow.boxes[layer].shape[1]):
            if q in matched:
                weight = overlap(slow.boxes[layer][image, q], target["boxes"][matched[q]])[0].detach()
            else:
                weight = slow.logits[-1][image, q].sigmoid().max().detach()
            for student, teacher in zip(slow.corners[layer][image, q].view(4, -1), slow.corners[-1][image, q].view(4, -1), strict=True):
                t = (teacher.detach() / 5).softmax(0)
                divergence = (t * (t.log() - (student / 5).log_softmax(0))).sum()
                (inner if q in matched else outer).append(weight * 25 * divergence)
    zero = slow.boxes[layer].new_zeros(())
    means = [torch.stack(values).mean() if values else zero for values in (inner, outer)]
    return (means[0] * weights[0] + means[1] * weights[1]) / (weights[0] + weights[1])


def slow_loss(
    ordinary: Slow,
    targets: list[dict],
    initial: Slow | None = None,
    proposals: Slow | None = None,
    denoising: Slow | None = None,
    denoising_initial: Slow | None = None,
    denoised: Pairs | None = None,
    groups: int = 1,
    scale: float = 4.0,
    union: bool = True,
) -> dict[str, Tensor]:
    """Every unweighted term by its name in the library; [L], or [] of initial predictions, proposals and distillation."""
    count = max(sum(len(t["labels"]) for t in targets), 1)
    layers = [match(*each, targets) for each in zip(ordinary.logits, ordinary.boxes, strict=True)]
    others = {name: (slow, match(slow.logits[0], slow.boxes[0], targets)) for name, slow in
              (("initial", initial), ("proposals", proposals)) if slow is not None}  # fmt: skip
    joint = union_of([*layers, *(pairs for _, pairs in others.values())])
    size = max(sum(map(len, joint)), 1)
    terms: dict[str, list[Tensor]] = {name: [] for name in ("class", "l1", "giou", "fgl", "ddf")}
    queries = len(targets) * ordinary.boxes[0].shape[1]
    weights = (0.0, 0.0)
    for layer, own in enumerate(layers):
        pairs, divisor = (joint, size) if union else (own, count)
        matched = sum(map(len, pairs))
        weights = (math.sqrt(matched), math.sqrt(queries - matched))
        l1, giou = box_losses(ordinary.boxes[layer], targets, pairs, divisor)
        found = {
            "class": varifocal(ordinary.logits[layer], ordinary.boxes[layer], targets, own, count), "l1": l1, "giou": giou,
            "fgl": localization(ordinary, layer, targets, pairs, divisor, scale),
            "ddf": distillation(ordinary, layer, targets, pairs, weights),
        }  # fmt: skip
        for name, value in found.items():
            terms[name].append(value)
    out = {name: over_layers(name, values) for name, values in terms.items()}
    for name, (slow, own) in others.items():
        pairs, divisor = (joint, size) if union else (own, count)
        out[f"{name}.class"] = varifocal(slow.logits[0], slow.boxes[0], targets, own, count)
        out[f"{name}.l1"], out[f"{name}.giou"] = box_losses(slow.boxes[0], targets, pairs, divisor)
    if denoising is not None:
        assert denoised is not None
        each: dict[str, list[Tensor]] = {name: [] for name in terms}
        for layer in range(len(denoising.boxes)):
            l1, giou = box_losses(denoising.boxes[layer], targets, denoised, count * groups)
            each["class"].append(varifocal(denoising.logits[layer], denoising.boxes[layer], targets, denoised, count * groups))
            each["l1"].append(l1)
            each["giou"].append(giou)
            each["fgl"].append(localization(denoising, layer, targets, denoised, count * groups, scale))
            each["ddf"].append(distillation(denoising, layer, targets, denoised, weights))
        out |= {f"denoising.{name}": over_layers(name, values) for name, values in each.items()}
        if denoising_initial is not None:
            first = denoising_initial
            out["denoising.initial.class"] = varifocal(first.logits[0], first.boxes[0], targets, denoised, count * groups)
            l1, giou = box_losses(first.boxes[0], targets, denoised, count * groups)
            out["denoising.initial.l1"], out["denoising.initial.giou"] = l1, giou
    return out


def over_layers(name: str, values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum() if name == "ddf" else torch.stack(values)


#: of the terms, by the last part of their name
WEIGHTS = {"class": 1.0, "l1": 5.0, "giou": 2.0, "fgl": 0.15, "ddf": 1.5}


def total_of(terms: dict[str, Tensor]) -> Tensor:
    return sum((WEIGHTS[name.rpartition(".")[2]] * term.sum() for name, term in terms.items()), torch.zeros((), dtype=torch.float64))
