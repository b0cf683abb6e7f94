"""PETR and DETR3D written slowly from the papers and the facts of the authors' code: loops over cells, points, cameras and pairs.

Nothing here uses the library but the backbone's maps, so that the two can be compared. ``w`` are weights by our names.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].flatten(1).T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(w: Weights, name: str, x: Tensor, layers: int) -> Tensor:
    for i in range(layers):
        x = linear(w, f"{name}.layers.{i}", x)
        x = x.clamp(min=0) if i + 1 < layers else x
    return x


def logit(p: Tensor) -> Tensor:
    """The papers' inverse_sigmoid."""
    p = p.clamp(0, 1)
    return torch.log(p.clamp(min=1e-5) / (1 - p).clamp(min=1e-5))


def pyramid(w: Weights, maps: list[Tensor], coarser: int = 0) -> list[Tensor]:
    laterals = [F.conv2d(m, w[f"neck.projections.{i}.0.weight"], w[f"neck.projections.{i}.0.bias"]) for i, m in enumerate(maps)]
    for i in reversed(range(len(laterals) - 1)):
        laterals[i] = laterals[i] + laterals[i + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    out = [
        F.conv2d(m, w[f"neck.outputs.{i}.weight"], w[f"neck.outputs.{i}.bias"], padding=1)
        for i, m in enumerate(laterals)
        if f"neck.outputs.{i}.weight" in w
    ]
    for i in range(coarser):
        out.append(F.conv2d(out[-1].clamp(min=0), w[f"neck.coarser.{i}.weight"], w[f"neck.coarser.{i}.bias"], stride=2, padding=1))
    return out


def attention(w: Weights, name: str, heads: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """[Q, D], [S, D], [S, D] of one scene -> [Q, D], and the weights [heads, Q, S]."""
    weight, bias = w[f"{name}.in_proj.weight"].chunk(3), w[f"{name}.in_proj.bias"].chunk(3)
    q, k, v = (x @ a.T + b for x, a, b in zip((query, key, value), weight, bias, strict=True))
    size, outs, weights = q.shape[1] // heads, [], []
    for h in range(heads):
        own = slice(h * size, (h + 1) * size)
        weights.append((q[:, own] @ k[:, own].T / math.sqrt(size)).softmax(-1))
        outs.append(weights[-1] @ v[:, own])
    return linear(w, f"{name}.out_proj", torch.cat(outs, 1)), torch.stack(weights)


def sines(numbers: list[Tensor], features: int) -> Tensor:
    """Numbers in [0, 1] -> so many features of each, sines and cosines in turn."""
    out = []
    for number in numbers:
        for i in range(features):
            angle = 2 * math.pi * number / 10000 ** (2 * (i // 2) / features)
            out.append(angle.cos() if i % 2 else angle.sin())
    return torch.stack(out)


def feed_forward(w: Weights, layer: str, x: Tensor) -> Tensor:
    changed = linear(w, f"{layer}.ffn.linear2", linear(w, f"{layer}.ffn.linear1", x).clamp(min=0))
    return norm(w, f"{layer}.ffn_residual.norm", x + changed)


def head(w: Weights, name: str, x: Tensor, reference: Tensor, area: list[float]) -> tuple[Tensor, Tensor]:
    """[Q, D] and points [Q, 3] in [0, 1] -> logits [Q, C] and codes [Q, 10] before centres are metres: those in [0, 1]."""
    c = x
    for i in (0, 3):
        c = norm(w, f"{name}.class_tower.{i + 1}", linear(w, f"{name}.class_tower.{i}", c)).clamp(min=0)
    raw, shift = mlp(w, f"{name}.boxes", x, 3), logit(reference)
    columns = list(raw.unbind(-1))
    for axis, column in enumerate((0, 1, 4)):
        columns[column] = (columns[column] + shift[:, axis]).sigmoid()
    return linear(w, f"{name}.classes", c), torch.stack(columns, -1)


def in_metres(code: Tensor, area: list[float]) -> Tensor:
    columns = list(code.unbind(-1))
    for axis, column in enumerate((0, 1, 4)):
        columns[column] = columns[column] * (area[axis + 3] - area[axis]) + area[axis]
    return torch.stack(columns, -1)


def petr(w: Weights, maps: list[Tensor], lidar2img: Tensor, size: tuple[int, int], area: list[float], layers: int, heads: int, depths: int):
    """maps [B * V, C, h, w] of the backbone -> logits [L, B, Q, C], codes [L, B, Q, 10], and the last weights [B, heads, Q, V * h * w]."""
    batch, views = lidar2img.shape[:2]
    features = F.conv2d(pyramid(w, maps)[0], w["neck.last.weight"], w["neck.last.bias"])
    h, wide = features.shape[-2:]
    low = torch.tensor([area[0] - 10, area[1] - 10, area[2] - 5], dtype=torch.float64)
    high = torch.tensor([area[3] + 10, area[4] + 10, area[5] + 7], dtype=torch.float64)
    logits, codes, attended = [], [], []
    for b in range(batch):
        tokens, positions = [], []
        for v in range(views):
            inverse = torch.linalg.inv(lidar2img[b, v])
            for row in range(h):
                for column in range(wide):
                    tokens.append(features[b * views + v, :, row, column])
                    ray = []
                    for k in range(depths):
                        d = 1 + (high[0] - 1) / (depths * (1 + depths)) * k * (k + 1)
                        point = inverse @ torch.stack((column * size[1] / wide * d, row * size[0] / h * d, d, torch.ones_like(d)))
                        ray.append(logit((point[:3] - low) / (high - low)))
                    numbers = [torch.tensor(n + 1, dtype=torch.float64) / (m + 1e-6) for n, m in ((v, views), (row, h), (column, wide))]
                    view = sines(numbers, tokens[0].shape[0] // 2)
                    positions.append(
                        mlp(w, "tokens.position.ray", torch.cat(ray)[None], 2)[0] + mlp(w, "tokens.position.view", view[None], 2)[0]
                    )
        token, position = torch.stack(tokens), torch.stack(positions)
        points = w["queries.points"]
        place = mlp(w, "queries.position", torch.stack([sines([p[1], p[0], p[2]], token.shape[1] // 2) for p in points]), 2)
        content = torch.zeros_like(place)
        for i in range(layers):
            layer = f"layers.{i}"
            query = content + place
            change = attention(w, f"{layer}.self_attention.attention", heads, query, query, content)[0]
            content = norm(w, f"{layer}.self_residual.norm", content + change)
            change, weights = attention(w, f"{layer}.read.attention", heads, content + place, token + position, token)
            content = feed_forward(w, layer, norm(w, f"{layer}.read_residual.norm", content + change))
            found = head(w, "heads.0", norm(w, "norm", content), points, area)
            logits.append(found[0])
            codes.append(in_metres(found[1], area))
        attended.append(weights)
    stack = lambda rows: torch.stack([torch.stack(rows[i::layers]) for i in range(layers)])  # noqa: E731
    return stack(logits), stack(codes), torch.stack(attended)


def bilinear(features: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor, dict[tuple[int, int], float]]:
    """[D, h, w] at (u, v) in [0, 1], zeros outside; and the cells that were read, with their shares."""
    h, w = features.shape[1:]
    x, y = u * w - 0.5, v * h - 0.5
    total, cells = torch.zeros_like(features[:, 0, 0]), {}
    left, top = math.floor(x.item()), math.floor(y.item())
    for column in (left, left + 1):
        for row in (top, top + 1):
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            if 0 <= column < w and 0 <= row < h:
                total = total + share * features[:, row, column]
                cells[row, column] = share.item()
    return total, cells


def detr3d(
    w: Weights, maps: list[Tensor], lidar2img: Tensor, size: tuple[int, int], area: list[float], layers: int, heads: int, levels: int
):
    """The same; in place of weights, per scene and query the cells that the last layer read: (level, view, row, column) -> weight."""
    batch, views = lidar2img.shape[:2]
    pyramids = pyramid(w, maps, max(levels - 3, 0))
    low, high = (torch.tensor(part, dtype=torch.float64) for part in (area[:3], area[3:]))
    logits, codes, read = [], [], []
    for b in range(batch):
        place, content = w["queries.embedding"].chunk(2, -1)
        reference = linear(w, "queries.reference_points", place).sigmoid()
        for i in range(layers):
            layer = f"layers.{i}"
            query = content + place
            change = attention(w, f"{layer}.self_attention.attention", heads, query, query, content)[0]
            content = norm(w, f"{layer}.self_residual.norm", content + change)
            weights = linear(w, f"{layer}.read.attention_weights", content + place).sigmoid()
            rows, cells = [], []
            for q, point in enumerate(reference):
                total, own = torch.zeros_like(content[0]), {}
                metres = torch.cat((point * (high - low) + low, torch.ones(1, dtype=torch.float64)))
                for v in range(views):
                    seen = lidar2img[b, v] @ metres
                    x, y = (seen[axis] / seen[2].clamp(min=1e-5) / size[1 - axis] for axis in (0, 1))
                    if not (seen[2] > 1e-5 and -1 < 2 * (x - 0.5) < 1 and -1 < 2 * (y - 0.5) < 1):
                        continue
                    for level, features in enumerate(pyramids):
                        weight = weights[q, v * levels + level]
                        value, at = bilinear(features[b * views + v], x, y)
                        total = total + weight * value
                        for (row, column), share in at.items():
                            own[level, v, row, column] = weight.item() * share
                rows.append(total)
                cells.append(own)
            encoder, own = f"{layer}.read.position_encoder", logit(reference)
            for k in (0, 3):
                own = norm(w, f"{encoder}.{k + 1}", linear(w, f"{encoder}.{k}", own)).clamp(min=0)
            change = linear(w, f"{layer}.read.output_proj", torch.stack(rows)) + own
            content = feed_forward(w, layer, norm(w, f"{layer}.read_residual.norm", content + change))
            found = head(w, f"heads.{i}", content, reference, area)
            logits.append(found[0])
            codes.append(in_metres(found[1], area))
            reference = found[1][:, [0, 1, 4]].detach()
        read.append(cells)
    stack = lambda rows: torch.stack([torch.stack(rows[i::layers]) for i in range(layers)])  # noqa: E731
    return stack(logits), stack(codes), read


def code_of(box: Tensor) -> Tensor:
    x, y, z, wide, long, high, yaw, vx, vy = box.unbind()
    return torch.stack((x, y, wide.log(), long.log(), z, high.log(), yaw.sin(), yaw.cos(), vx, vy))


def losses(logits: Tensor, codes: Tensor, targets: list[dict]) -> tuple[Tensor, dict[str, Tensor], list]:
    """The total, the terms of every layer, and the pairs [layer][scene] of (query, object)."""
    count = max(sum(len(t["labels"]) for t in targets), 1)
    terms, pairs = {"class": [], "l1": []}, []
    for layer_logits, layer_codes in zip(logits, codes, strict=True):
        class_loss, box_loss, found = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64), []
        for b, target in enumerate(targets):
            p, n = layer_logits[b].sigmoid(), len(target["labels"])
            cost = torch.zeros(len(p), n, dtype=torch.float64)
            for q in range(len(p)):
                for t in range(n):
                    chance = p[q, target["labels"][t]]
                    positive = 0.25 * (1 - chance) ** 2 * -(chance + 1e-8).log()
                    negative = 0.75 * chance**2 * -(1 - chance + 1e-8).log()
                    distance = (layer_codes[b, q, :8] - code_of(target["boxes"][t])[:8]).abs().sum()
                    cost[q, t] = (2 * (positive - negative) + 0.25 * distance).item()
            own = list(zip(*(side.tolist() for side in linear_sum_assignment(cost.numpy())), strict=True))
            found.append(own)
            classes = {q: int(target["labels"][t]) for q, t in own}
            for q in range(len(p)):
                for c in range(p.shape[1]):
                    if classes.get(q) == c:
                        class_loss = class_loss - 0.25 * (1 - p[q, c]) ** 2 * p[q, c].log()
                    else:
                        class_loss = class_loss - 0.75 * p[q, c] ** 2 * (1 - p[q, c]).log()
            for q, t in own:
                for column, wanted in enumerate(code_of(target["boxes"][t])):
                    if wanted.isfinite():
                        box_loss = box_loss + (0.2 if column > 7 else 1.0) * (layer_codes[b, q, column] - wanted).abs()
        terms["class"].append(class_loss / count)
        terms["l1"].append(box_loss / count)
        pairs.append(found)
    stacked = {name: torch.stack(values) for name, values in terms.items()}
    return 2 * stacked["class"].sum() + 0.25 * stacked["l1"].sum(), stacked, pairs
