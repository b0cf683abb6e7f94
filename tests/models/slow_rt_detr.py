"""RT-DETR's training by its authors' formulas, one object at a time, around the modules of ``transformers``.

That library measures every prediction from a detached box; the authors look forward twice, so the decoder's loop is written out here, as
are noised objects, matching and losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

ALPHA, GAMMA = 0.75, 2.0
WEIGHTS = {"class": 1.0, "l1": 5.0, "giou": 2.0}


def inverse_sigmoid(x: Tensor) -> Tensor:
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5))


def corners(box: Tensor) -> Tensor:
    cx, cy, w, h = box.unbind(-1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), -1)


def overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of two boxes cxcywh."""
    a, b = corners(a), corners(b)
    width, height = ((torch.minimum(a[2 + i], b[2 + i]) - torch.maximum(a[i], b[i])).clamp(min=0) for i in (0, 1))
    inner = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    hull = (torch.maximum(a[2], b[2]) - torch.minimum(a[0], b[0])) * (torch.maximum(a[3], b[3]) - torch.minimum(a[1], b[1]))
    return inner / union, inner / union - (hull - union) / hull


def matched(logits: Tensor, boxes: Tensor, objects: dict[str, Tensor]) -> list[tuple[int, int]]:
    """Queries and objects of one image: focal cost 2, L1 5, GIoU 2."""
    p = logits.detach().sigmoid()
    cost = torch.zeros(len(logits), len(objects["labels"]), dtype=torch.float64)
    for q in range(len(logits)):
        for t, label in enumerate(objects["labels"].tolist()):
            x, box = p[q, label], objects["boxes"][t]
            positive = 0.25 * (1 - x) ** 2 * -torch.log(x + 1e-8)
            negative = 0.75 * x**2 * -torch.log(1 - x + 1e-8)
            cost[q, t] = 2 * (positive - negative) + 5 * (boxes[q].detach() - box).abs().sum() - 2 * overlap(boxes[q].detach(), box)[1]
    return list(zip(*(each.tolist() for each in linear_sum_assignment(cost.numpy())), strict=True))


@dataclass
class Terms:
    """Losses by name, and their weighted sum."""

    total: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    by_name: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, name: str, logits: Tensor, boxes: Tensor, pairs: list[list[tuple[int, int]]], targets: list[dict], number: float) -> None:
        """Varifocal, L1 and GIoU of one layer [B, Q, ...], divided by a number of objects."""
        wanted, weight = torch.zeros_like(logits), ALPHA * logits.detach().sigmoid() ** GAMMA
        found = {"class": torch.zeros((), dtype=torch.float64), "l1": torch.zeros(()), "giou": torch.zeros(())}
        for b, image in enumerate(pairs):
            for q, t in image:
                label, box = targets[b]["labels"][t], targets[b]["boxes"][t]
                iou, giou = overlap(boxes[b, q], box)
                wanted[b, q, label] = weight[b, q, label] = iou.detach()
                found["l1"] = found["l1"] + (boxes[b, q] - box).abs().sum() / number
                found["giou"] = found["giou"] + (1 - giou) / number
        found["class"] = F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum") / number
        for kind, value in found.items():
            self.total = self.total + WEIGHTS[kind] * value
            self.by_name.setdefault(f"{name}{kind}", []).append(value)


@dataclass
class Noised:
    """Noised objects of a batch: classes [B, N] (C: none), box logits [B, N, 4], and pairs with objects."""

    classes: Tensor
    boxes: Tensor
    pairs: list[list[tuple[int, int]]]
    groups: int
    each: int


def noise(targets: list[dict], classes: int, number: int) -> Noised:
    """As the authors noise; the random numbers are drawn in the order of ours, all at once."""
    most = max(len(t["labels"]) for t in targets)
    groups = max(number // most, 1)
    shape = (len(targets), groups, 2, most)
    random = torch.randint(classes, shape)
    chance = torch.rand(shape)
    part, sign = torch.rand(*shape, 4, dtype=torch.float64), torch.randint(2, (*shape, 4)).double() * 2 - 1
    label = torch.full(shape, classes)
    boxes = torch.full((*shape, 4), 0.0, dtype=torch.float64)
    pairs: list[list[tuple[int, int]]] = [[] for _ in targets]
    for b, own in enumerate(targets):
        for g in range(groups):
            for negative in (0, 1):
                for t in range(len(own["labels"])):
                    at = (b, g, negative, t)
                    label[at] = random[at] if chance[at] < 0.25 else own["labels"][t]
                    half = own["boxes"][t, 2:].repeat(2) / 2
                    x1, y1, x2, y2 = (corners(own["boxes"][t]) + sign[at] * (part[at] + negative) * half).clamp(0, 1)
                    boxes[at] = torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1))
                    if not negative:
                        pairs[b].append((g * 2 * most + t, t))
    return Noised(label.flatten(1), inverse_sigmoid(boxes).flatten(1, 3), pairs, groups, 2 * most)


def training_terms(peer: nn.Module, images: Tensor, targets: list[dict], *, noised: int, agnostic: nn.Module | None = None) -> Terms:
    """Of a model of the library on one batch, by the authors' training.

    Args:
        noised: the number of noised queries, as they count it.
        agnostic: a score head for any class in place of its own.
    """
    model: Any = peer.model
    decoder, shapes, tokens = model.decoder, [], []
    features = model.backbone(images, torch.ones_like(images[:, 0]))
    maps = model.encoder([project(m) for project, (m, _) in zip(model.encoder_input_proj, features, strict=True)]).last_hidden_state
    for project, level in zip(model.decoder_input_proj, maps, strict=True):
        shapes.append(tuple(level.shape[-2:]))
        tokens.append(project(level).flatten(2).transpose(1, 2))
    memory = torch.cat(tokens, 1)
    anchors, valid = model.generate_anchors(tuple(shapes), device=memory.device, dtype=memory.dtype)
    proposed = model.enc_output(valid * memory)
    scores = (agnostic or model.enc_score_head)(proposed)
    boxes = model.enc_bbox_head(proposed) + anchors
    best = scores.amax(-1).topk(model.config.num_queries, 1).indices[..., None]
    reference, content = (each.gather(1, best.expand(-1, -1, each.shape[-1])) for each in (boxes, proposed))
    proposal = scores.gather(1, best.expand(-1, -1, scores.shape[-1])), reference.sigmoid()
    made = noise(targets, model.config.num_labels, noised)
    first = made.classes.shape[1]
    content = torch.cat((model.denoising_class_embed(made.classes), content.detach()), 1)
    box = torch.cat((made.boxes, reference), 1).detach().sigmoid()
    mask = torch.zeros(content.shape[1], content.shape[1], dtype=memory.dtype)
    mask[first:, :first] = -torch.inf
    group = torch.arange(first) // made.each
    mask[:first, :first] = torch.where(group[:, None] == group, 0.0, -torch.inf)
    sizes = torch.tensor(shapes)
    terms, number = Terms(), float(max(sum(len(t["labels"]) for t in targets), 1))
    before = None
    for layer, classes, head in zip(decoder.layers, decoder.class_embed, decoder.bbox_embed, strict=True):
        content = layer(
            content, object_queries_position_embeddings=decoder.query_pos_head(box), reference_points=box[:, :, None],
            encoder_hidden_states=memory, encoder_attention_mask=mask[None, None], spatial_shapes=sizes, spatial_shapes_list=shapes,
        )  # fmt: skip
        logits, offsets = classes(content), head(content)
        predicted = (offsets + inverse_sigmoid(box if before is None else before)).sigmoid()
        own = [matched(logits[b, first:], predicted[b, first:], t) for b, t in enumerate(targets)]
        terms.add("", logits[:, first:], predicted[:, first:], own, targets, number)
        terms.add("denoising.", logits[:, :first], predicted[:, :first], made.pairs, targets, number * made.groups)
        before = (offsets + inverse_sigmoid(box)).sigmoid()
        box = before.detach()
    known = targets if agnostic is None else [{**t, "labels": torch.zeros_like(t["labels"])} for t in targets]
    own = [matched(proposal[0][b], proposal[1][b], t) for b, t in enumerate(known)]
    terms.add("proposals.", *proposal, own, known, number)
    return terms
