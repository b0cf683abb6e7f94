"""Sparse R-CNN written slowly from the paper and the facts of the authors' code: loops over boxes, samples and pairs, in their key names.

Boxes are corners in pixels throughout. Nothing here uses the library, so that the two can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]
#: of a layer: per image, (query, object)
Pairs = list[list[tuple[int, int]]]


def names(stages: int, blocks: tuple[int, ...]) -> Iterator[str]:
    """All keys of a checkpoint, for a ResNet of bottlenecks."""

    def norm(stem: str) -> list[str]:
        return [f"{stem}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]

    body = "backbone.bottom_up"
    yield from (f"{body}.stem.conv1.weight", *norm(f"{body}.stem.conv1.norm"))
    for stage, count in enumerate(blocks, 2):
        for block in range(count):
            for part in ("conv1", "conv2", "conv3", *(["shortcut"] if block == 0 else [])):
                stem = f"{body}.res{stage}.{block}.{part}"
                yield from (f"{stem}.weight", *norm(f"{stem}.norm"))
        for part in ("lateral", "output"):
            yield from (f"backbone.fpn_{part}{stage}.weight", f"backbone.fpn_{part}{stage}.bias")
    yield from ("init_proposal_features.weight", "init_proposal_boxes.weight")
    for stage in range(stages):
        head = f"head.head_series.{stage}"
        yield from (f"{head}.self_attn.in_proj_weight", f"{head}.self_attn.in_proj_bias")
        parts = ["self_attn.out_proj", *(f"inst_interact.{part}" for part in ("dynamic_layer", "norm1", "norm2", "out_layer", "norm3"))]
        parts += ["linear1", "linear2", "norm1", "norm2", "norm3", "class_logits", "bboxes_delta"]
        parts += [f"{tower}.{i}" for tower, norms in (("cls_module", (1,)), ("reg_module", (1, 4, 7))) for i in norms]
        for part in parts:
            yield from (f"{head}.{part}.weight", f"{head}.{part}.bias")
        yield from (f"{head}.{tower}.weight" for tower in ("cls_module.0", "reg_module.0", "reg_module.3", "reg_module.6"))


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def layer_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


def convolution(w: Weights, name: str, x: Tensor, stride: int = 1) -> Tensor:
    """With frozen batch norm after it."""
    kernel = w[f"{name}.weight"]
    x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
    mean, variance, scale, shift = (w[f"{name}.norm.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def pyramid(w: Weights, images: Tensor) -> list[Tensor]:
    """p2 to p5."""
    body = "backbone.bottom_up"
    x = F.max_pool2d(convolution(w, f"{body}.stem.conv1", images, 2).relu(), 3, 2, 1)
    maps: list[Tensor] = []
    for stage in (2, 3, 4, 5):
        block = 0
        while f"{body}.res{stage}.{block}.conv1.weight" in w:
            stem, stride = f"{body}.res{stage}.{block}", 2 if stage > 2 and block == 0 else 1
            y = convolution(w, f"{stem}.conv1", x).relu()
            y = convolution(w, f"{stem}.conv3", convolution(w, f"{stem}.conv2", y, stride).relu())
            x = (y + (convolution(w, f"{stem}.shortcut", x, stride) if block == 0 else x)).relu()
            block += 1
        maps.append(x)
    out, above = [], None
    for stage in (5, 4, 3, 2):
        lateral = F.conv2d(maps[stage - 2], w[f"backbone.fpn_lateral{stage}.weight"], w[f"backbone.fpn_lateral{stage}.bias"])
        above = lateral if above is None else lateral + above.repeat_interleave(2, -1).repeat_interleave(2, -2)
        out.append(F.conv2d(above, w[f"backbone.fpn_output{stage}.weight"], w[f"backbone.fpn_output{stage}.bias"], padding=1))
    return out[::-1]


def bilinear(cells: Tensor, x: float, y: float) -> Tensor:
    """[D, h, w] at a point, in cells from the centre of the first -> [D]."""
    _, h, w = cells.shape
    if not (-1 <= x <= w and -1 <= y <= h):
        return torch.zeros(len(cells), dtype=cells.dtype)
    x, y = min(max(x, 0.0), w - 1.0), min(max(y, 0.0), h - 1.0)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, w - 1), min(top + 1, h - 1)
    upper = cells[:, top, left] * (1 - x + left) + cells[:, top, right] * (x - left)
    lower = cells[:, bottom, left] * (1 - x + left) + cells[:, bottom, right] * (x - left)
    return upper * (1 - y + top) + lower * (y - top)


def region(maps: list[Tensor], box: list[float]) -> Tensor:
    """Of one image's maps, the region of a box [49, D]."""
    x1, y1, x2, y2 = box
    level = min(max(math.floor(4 + math.log2(math.sqrt((x2 - x1) * (y2 - y1)) / 224 + 1e-8)), 2), 5)
    stride, cells = 2**level, []
    for row in range(7):
        for column in range(7):
            total = torch.zeros(len(maps[0]), dtype=maps[0].dtype)
            for j in range(2):
                for i in range(2):
                    x = x1 + (x2 - x1) * (column + (i + 0.5) / 2) / 7
                    y = y1 + (y2 - y1) * (row + (j + 0.5) / 2) / 7
                    total = total + bilinear(maps[level - 2], x / stride - 0.5, y / stride - 0.5) / 4
            cells.append(total)
    return torch.stack(cells)


def attention(w: Weights, name: str, x: Tensor, heads: int) -> Tensor:
    """Self-attention of one image's queries [N, D]."""
    q, k, v = F.linear(x, w[f"{name}.in_proj_weight"], w[f"{name}.in_proj_bias"]).chunk(3, -1)
    parts = []
    for a, b, c in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        parts.append((a @ b.T / math.sqrt(a.shape[-1])).softmax(-1) @ c)
    return linear(w, f"{name}.out_proj", torch.cat(parts, -1))


def interaction(w: Weights, name: str, content: Tensor, cells: Tensor, hidden: int) -> Tensor:
    """Of one query [D] with its region [49, D]."""
    dim = len(content)
    numbers = linear(w, f"{name}.dynamic_layer", content)
    first, second = numbers[: dim * hidden].view(dim, hidden), numbers[dim * hidden :].view(hidden, dim)
    cells = layer_norm(w, f"{name}.norm1", cells @ first).relu()
    cells = layer_norm(w, f"{name}.norm2", cells @ second).relu()
    return layer_norm(w, f"{name}.norm3", linear(w, f"{name}.out_layer", cells.flatten())).relu()


def tower(w: Weights, name: str, x: Tensor, layers: int) -> Tensor:
    for i in range(0, 3 * layers, 3):
        x = layer_norm(w, f"{name}.{i + 1}", linear(w, f"{name}.{i}", x)).relu()
    return x


def moved(box: Tensor, delta: Tensor) -> Tensor:
    """Corners [4] by the deltas [4]."""
    width, height = box[2] - box[0], box[3] - box[1]
    x, y = box[0] + width / 2 + delta[0] / 2 * width, box[1] + height / 2 + delta[1] / 2 * height
    limit = math.log(100000 / 16)
    width, height = width * delta[2].clamp(max=limit).exp(), height * delta[3].clamp(max=limit).exp()
    return torch.stack((x - width / 2, y - height / 2, x + width / 2, y + height / 2))


def forward(w: Weights, images: Tensor, sizes: list[tuple[int, int]], heads: int, hidden: int) -> list[tuple[Tensor, Tensor]]:
    """Logits [B, N, C] and corners [B, N, 4] of every stage; ``sizes``: (width, height) of each image without its padding."""
    maps = pyramid(w, images)
    content = w["init_proposal_features.weight"].expand(len(images), -1, -1)
    cx, cy, bw, bh = w["init_proposal_boxes.weight"].unbind(-1)
    corners = torch.stack((cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2), -1)
    boxes = torch.stack([corners * torch.tensor([width, height] * 2, dtype=corners.dtype) for width, height in sizes])
    out, stage = [], 0
    while (name := f"head.head_series.{stage}") + ".linear1.weight" in w:
        contents, logits, predicted = [], [], []
        for image in range(len(images)):
            own = [level[image] for level in maps]
            x = layer_norm(w, f"{name}.norm1", content[image] + attention(w, f"{name}.self_attn", content[image], heads))
            read = [interaction(w, f"{name}.inst_interact", x[q], region(own, boxes[image, q].tolist()), hidden) for q in range(len(x))]
            x = layer_norm(w, f"{name}.norm2", x + torch.stack(read))
            x = layer_norm(w, f"{name}.norm3", x + linear(w, f"{name}.linear2", linear(w, f"{name}.linear1", x).relu()))
            deltas = linear(w, f"{name}.bboxes_delta", tower(w, f"{name}.reg_module", x, 3))
            contents.append(x)
            logits.append(linear(w, f"{name}.class_logits", tower(w, f"{name}.cls_module", x, 1)))
            predicted.append(torch.stack([moved(boxes[image, q], deltas[q]) for q in range(len(x))]))
        content, stage = torch.stack(contents), stage + 1
        out.append((torch.stack(logits), torch.stack(predicted)))
        boxes = out[-1][1].detach()
    return out


def giou(a: Tensor, b: Tensor) -> Tensor:
    inner = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner
    hull = (torch.maximum(a[2:], b[2:]) - torch.minimum(a[:2], b[:2])).prod()
    return inner / union - (hull - union) / hull


def matched(logits: Tensor, boxes: Tensor, labels: Tensor, objects: Tensor, scale: Tensor) -> list[tuple[int, int]]:
    """Of one image: focal cost 2, L1 of scaled corners 5, GIoU 2."""
    cost = torch.zeros(len(logits), len(labels), dtype=torch.float64)
    for q in range(len(logits)):
        for j, label in enumerate(labels):
            p = logits[q, label].sigmoid()
            focal = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
            cost[q, j] = 2 * focal + 5 * ((boxes[q] - objects[j]) / scale).abs().sum() - 2 * giou(boxes[q], objects[j])
    return list(zip(*(index.tolist() for index in linear_sum_assignment(cost.detach().numpy())), strict=True))


def losses(
    stages: list[tuple[Tensor, Tensor]], labels: list[Tensor], objects: list[Tensor], sizes: list[tuple[int, int]]
) -> tuple[Tensor, dict[str, list[Tensor]], list[Pairs]]:
    """The weighted sum, every term, and the pairs; ``objects``: corners in pixels of each image."""
    number = max(sum(len(own) for own in labels), 1)
    terms: dict[str, list[Tensor]] = {"class": [], "l1": [], "giou": []}
    found: list[Pairs] = []
    for logits, boxes in stages:
        wanted, l1, overlap, pairs = torch.zeros_like(logits), logits.new_zeros(()), logits.new_zeros(()), []
        for image, (width, height) in enumerate(sizes):
            scale = torch.tensor([width, height] * 2, dtype=torch.float64)
            pairs.append(matched(logits[image], boxes[image], labels[image], objects[image], scale))
            for q, j in pairs[-1]:
                wanted[image, q, labels[image][j]] = 1
                l1 = l1 + ((boxes[image, q] - objects[image][j]) / scale).abs().sum()
                overlap = overlap + 1 - giou(boxes[image, q], objects[image][j])
        p = logits.sigmoid()
        focal = -wanted * 0.25 * (1 - p) ** 2 * p.log() - (1 - wanted) * 0.75 * p**2 * (1 - p).log()
        for name, term in (("class", focal.sum()), ("l1", l1), ("giou", overlap)):
            terms[name].append(term / number)
        found.append(pairs)
    total = 2 * sum(terms["class"]) + 5 * sum(terms["l1"]) + 2 * sum(terms["giou"])
    assert isinstance(total, Tensor)
    return total, terms, found
