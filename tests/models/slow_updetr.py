"""UP-DETR written slowly from the paper and the facts of the authors' code: loops over images, queries, layers and pairs.

Weights are those of our DETR by their names, and only its backbone is called; nothing else of the library is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]
L1, GIOU, NO_OBJECT = 5.0, 2.0, 0.1


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def sine(h: int, w: int, dim: int) -> Tensor:
    """[h * w, dim] of an image without padding: rows first."""
    out = torch.zeros(h, w, dim, dtype=torch.float64)
    for y, x, i in itertools.product(range(h), range(w), range(dim // 4)):
        for part, place in ((0, (y + 1) / (h + 1e-6)), (dim // 2, (x + 1) / (w + 1e-6))):
            angle = 2 * math.pi * place / 10000 ** (2 * i / (dim // 2))
            out[y, x, part + 2 * i], out[y, x, part + 2 * i + 1] = math.sin(angle), math.cos(angle)
    return out.flatten(0, 1)


def attend(w: Weights, name: str, queries: Tensor, keys: Tensor, values: Tensor, heads: int, may: Callable[[int, int], bool]) -> Tensor:
    """[Q, D], [S, D], [S, D] -> [Q, D]; ``may(query, key)``."""
    dim = queries.shape[-1]
    packed, bias = w[f"{name}.in_proj.weight"], w[f"{name}.in_proj.bias"]
    q, k, v = (x @ packed[i * dim : (i + 1) * dim].T + bias[i * dim : (i + 1) * dim] for i, x in enumerate((queries, keys, values)))
    rows = []
    for i in range(len(q)):
        allowed = [j for j in range(len(k)) if may(i, j)]
        parts = []
        for head in range(heads):
            own = slice(head * dim // heads, (head + 1) * dim // heads)
            logits = torch.stack([(q[i, own] * k[j, own]).sum() / math.sqrt(dim // heads) for j in allowed])
            parts.append((logits.softmax(0)[:, None] * v[allowed][:, own]).sum(0))
        rows.append(torch.cat(parts))
    return linear(w, f"{name}.out_proj", torch.stack(rows))


def feed(w: Weights, name: str, x: Tensor) -> Tensor:
    return linear(w, f"{name}.linear2", linear(w, f"{name}.linear1", x).relu())


def detect(
    w: Weights,
    backbone: Callable[[Tensor], list[Tensor]],
    images: Tensor,
    patches: Tensor,
    kept: Tensor,
    heads: int,
    layers: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images without padding [B, 3, H, W], patches [B, P, 3, s, s], which queries get their patch [B, Q].

    Returns logits [L, B, Q, 2], boxes [L, B, Q, 4], reconstructed features [L, B, Q, C] and those of the patches [B, P, C].
    """
    features = torch.stack([torch.stack([backbone(patch[None])[-1][0].mean((1, 2)) for patch in own]) for own in patches])
    learned = w["model.queries.position"]
    each = len(learned) // patches.shape[1]
    everyone: Callable[[int, int], bool] = lambda i, j: True  # noqa: E731
    rows: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for b in range(len(images)):
        maps = backbone(images[b : b + 1])[-1][0]
        cells = maps.flatten(1).T @ w["model.neck.projections.0.0.weight"].flatten(1).T + w["model.neck.projections.0.0.bias"]
        position = sine(*maps.shape[1:], cells.shape[-1])
        for i in range(layers[0]):
            name = f"model.encoder.layers.{i}"
            own = attend(w, f"{name}.read.attention", cells + position, cells + position, cells, heads, everyone)
            cells = norm(w, f"{name}.read_residual.norm", cells + own)
            cells = norm(w, f"{name}.ffn_residual.norm", cells + feed(w, f"{name}.ffn", cells))
        # every patch's feature for its ten consecutive queries, added to their position
        query = torch.stack([
            learned[q] + linear(w, "patches.project", features[b, q // each]) * kept[b, q] for q in range(len(learned))
        ])  # fmt: skip
        content, found = torch.zeros_like(query), []
        for i in range(layers[1]):
            name = f"model.layers.{i}"
            place = content + query
            own = attend(w, f"{name}.self_attention.attention", place, place, content, heads, lambda i, j: i // each == j // each)
            content = norm(w, f"{name}.self_residual.norm", content + own)
            read = attend(w, f"{name}.read.attention", content + query, cells + position, cells, heads, everyone)
            content = norm(w, f"{name}.read_residual.norm", content + read)
            content = norm(w, f"{name}.ffn_residual.norm", content + feed(w, f"{name}.ffn", content))
            seen = norm(w, "model.norm", content)
            box = seen
            for j in range(3):
                box = linear(w, f"model.heads.0.boxes.layers.{j}", box)
                box = box.relu() if j < 2 else box.sigmoid()
            made = linear(w, "patches.reconstruct.layers.1", linear(w, "patches.reconstruct.layers.0", seen).relu())
            found.append((linear(w, "model.heads.0.classes", seen), box, made))
        rows.append(found)
    logits, boxes, made = (
        torch.stack([torch.stack([rows[b][i][part] for b in range(len(rows))]) for i in range(layers[1])]) for part in range(3)
    )
    return logits, boxes, made, features


def corners(box: Tensor) -> Tensor:
    x, y, w, h = box
    return torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2))


def giou(a: Tensor, b: Tensor) -> Tensor:
    (ax, ay, ar, ab), (bx, by, br, bb) = corners(a), corners(b)
    zero = torch.zeros_like(ax)
    common = (torch.minimum(ar, br) - torch.maximum(ax, bx)).maximum(zero) * (torch.minimum(ab, bb) - torch.maximum(ay, by)).maximum(zero)
    union = (ar - ax) * (ab - ay) + (br - bx) * (bb - by) - common
    around = (torch.maximum(ar, br) - torch.minimum(ax, bx)) * (torch.maximum(ab, bb) - torch.minimum(ay, by))
    return common / union - (around - union) / around


def losses(logits: Tensor, boxes: Tensor, made: Tensor, features: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """``targets`` [B, P, 4]: the weighted sum over all layers, and every term of each layer."""
    total, terms = torch.zeros((), dtype=torch.float64), {name: [] for name in ("class", "l1", "giou", "feature")}
    count = targets.shape[0] * targets.shape[1]
    for layer in range(len(logits)):
        cross, weight, l1, overlap, feature = (torch.zeros((), dtype=torch.float64) for _ in range(5))
        for b in range(len(targets)):
            probability = logits[layer, b].softmax(-1)[:, 0]
            cost = torch.zeros(boxes.shape[2], len(targets[b]), dtype=torch.float64)
            for q, (i, box) in itertools.product(range(boxes.shape[2]), enumerate(targets[b])):
                own = boxes[layer, b, q].detach()
                cost[q, i] = L1 * (own - box).abs().sum() - GIOU * giou(own, box) - probability[q].detach()
            pairs = dict(zip(*map(list, linear_sum_assignment(cost.numpy())), strict=True))
            for q in range(boxes.shape[2]):
                label, share = (0, 1.0) if q in pairs else (1, NO_OBJECT)
                cross = cross - share * logits[layer, b, q].log_softmax(-1)[label]
                weight = weight + share
                if q in pairs:
                    box, aim = targets[b, pairs[q]], features[b, pairs[q]].detach()
                    l1 = l1 + (boxes[layer, b, q] - box).abs().sum() / count
                    overlap = overlap + (1 - giou(boxes[layer, b, q], box)) / count
                    mine = made[layer, b, q]
                    feature = feature + (2 - 2 * F.cosine_similarity(mine, aim, dim=0)) / count
        found = {"class": cross / weight, "l1": l1, "giou": overlap, "feature": feature}
        for name, value in found.items():
            terms[name].append(value)
        total = total + found["class"] + L1 * l1 + GIOU * overlap + feature
    return total, {name: torch.stack(values) for name, values in terms.items()}
