"""The page of an explanation: one HTML file that loads nothing from outside, for mouse, touch and keyboard."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from boxquery.errors import UserError
from boxquery.explain import rollout
from boxquery.explain.explanation import Explanation
from boxquery.files import atomic_write
from boxquery.pages.html import data_uri, encode, render
from boxquery.parts.trace import Heatmap

_PICTURE = 1333  # longest side of the image in the page, in pixels
_STRIP = 20  # longest side of the image in the page in units of the other; a longer strip is stretched, or nothing of it could be seen
_GRID, _SMALL = 48, 24  # longest side of a map: of the queries kept with all heads, and of all queries
_KEPT, _BEST = 20, 10  # most detections that are kept with all heads; number of queries if there is no detection
_RIVALS = 6  # most rivals per query
_AT_ONCE = 8_000_000  # attention weights (of query, head and cell) that are processed together


def write_page(explanations: Sequence[Explanation], path: Path, *, titles: Sequence[str] = ()) -> Path:
    """Write ``explanation_page`` to a file. Returns its path."""
    return atomic_write(path, explanation_page(explanations, titles=titles))


def explanation_page(explanations: Sequence[Explanation], *, titles: Sequence[str] = ()) -> str:
    """The page of one or more explanations as HTML; those of the same image stand side by side, so that models can be compared.

    Args:
        titles: one per explanation, such as the names of the runs; default: the models' names, numbered where an image has one twice.

    Maps are quantised to 8 bits. Of the best 20 detections (the 10 best queries if there is none) and of the chosen query the page has
    every head, on the model's own cells but at most 48 a side, and with an encoder the rollout, at most 24 a side; of all queries the
    mean over heads, at most 24 a side, and the six strongest rivals.

    Raises ``UserError`` for no explanation, or another number of titles.
    """
    if not explanations:
        raise UserError("a page needs at least one explanation")
    if titles and len(titles) != len(explanations):
        raise UserError(f"{len(titles)} titles for {len(explanations)} explanations: give one for each, or none")
    groups: dict[tuple[tuple[int, int], bytes], list[int]] = {}
    for i, explanation in enumerate(explanations):
        groups.setdefault((explanation.size, explanation.image.tobytes()), []).append(i)
    images = []
    for group in groups.values():
        names = [titles[i] for i in group] if titles else _numbered([explanations[i].model for i in group])
        models = [{"id": f"p{i}", "title": name} | _model(explanations[i]) for i, name in zip(group, names, strict=True)]
        images.append(_picture(explanations[group[0]]) | {"models": models})
    models = [model for image in images for model in image["models"]]
    title = f"What {models[0]['title']} attends to" if len(models) == 1 else "What the queries attend to"
    data = zlib.compress(json.dumps(images, allow_nan=False, separators=(",", ":")).encode(), 9)
    return render(
        "explanation.html",
        styles=["explanation.css"],
        script="explanation.js",
        data=base64.b64encode(data).decode(),
        title=title,
        images=images,
        models=models,
        rivals=_RIVALS,
    )


def kept_queries(explanation: Explanation) -> list[int]:
    """The queries whose maps the page has for every head: best first, then the chosen one."""
    kept = explanation.found[:_KEPT] or _order(explanation)[:_BEST]
    return kept if explanation.chosen is None or explanation.chosen in kept else [*kept, explanation.chosen]


def map_size(explanation: Explanation, longest: int) -> tuple[int, int]:
    """(height, width) of the page's maps: the cells of the finest level on the image, fewer if a side has more than ``longest``."""
    cells = []
    for layer in explanation.trace.layers:
        for (h, w), ratio in zip(layer.memory.shapes, layer.memory.valid_ratios[0].tolist(), strict=True):
            cells.append((h * ratio[1], w * ratio[0]))
    height, width = max(cells)
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _numbered(names: list[str]) -> list[str]:
    """The names, with a number where one occurs twice."""
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _order(explanation: Explanation) -> list[int]:
    return np.argsort(-explanation.scores[-1], kind="stable").tolist()


def _picture(explanation: Explanation) -> dict[str, Any]:
    image, (height, width) = explanation.image.copy(), explanation.size
    image.thumbnail((_PICTURE, _PICTURE), Image.Resampling.LANCZOS)
    least = max(image.size) // _STRIP
    if stretched := min(image.size) < least:
        image = image.resize((max(image.width, least), max(image.height, least)), Image.Resampling.LANCZOS)
    name = Path(explanation.path).name if explanation.path else ""
    source = data_uri(encode(image, quality=80))
    return {"name": name, "height": height, "width": width, "stretched": stretched, "source": source}


def _model(explanation: Explanation) -> dict[str, Any]:
    """What the page knows of one explanation: [L][Q] lists of decoder layers and queries, and packed maps."""
    layers, queries = explanation.scores.shape
    kept, size = kept_queries(explanation), map_size(explanation, _SMALL)
    head_maps = [_heads(explanation, kept, layer) for layer in range(layers)]
    heads = head_maps[0].map.shape[1] - 1
    rolled = rollout.attention_rollout(explanation.trace, kept, range(layers), size) if explanation.trace.encoder else None
    salient = [layer.salient_points[0, kept] for layer in explanation.trace.layers if layer.salient_points is not None]
    sides = np.array(explanation.size[::-1])
    return {
        "classes": [str(name) for name in explanation.classes],
        "threshold": explanation.threshold,
        "layers": layers,
        "queries": queries,
        "heads": heads,
        "found": explanation.found,
        "chosen": explanation.chosen,
        "order": _order(explanation),
        "kept": kept,
        "present": [explanation.present(query) for query in range(queries)],
        "labels": explanation.labels.tolist(),
        "scores": _rounded(explanation.scores, 5),
        "boxes": _rounded(explanation.boxes, 2),
        "references": None if explanation.references is None else _rounded(explanation.references, 2),
        "salient": _rounded(torch.stack(salient).float().cpu().numpy() * sides, 2) if salient else None,
        "rivals": _rivals(explanation),
        "all_maps": _packed([_all_queries(explanation, layer, size, heads) for layer in range(layers)]),
        "head_maps": _packed(head_maps),
        "origins": _packed([rolled]) if rolled else None,
    }


def _rounded(values: np.ndarray, digits: int) -> list[Any]:
    return values.astype(np.float64).round(digits).tolist()


def _heads(explanation: Explanation, queries: list[int], layer: int) -> Heatmap:
    """[K, 1 + H] maps: of each query the mean over heads, then every head."""
    size = map_size(explanation, _GRID)
    mean, heads = (explanation.heatmaps(queries, layer, size, heads=each) for each in (False, True))
    return Heatmap(torch.cat([mean.map[:, None], heads.map], 1), torch.cat([mean.lost[:, None], heads.lost], 1))


def _all_queries(explanation: Explanation, layer: int, size: tuple[int, int], heads: int) -> Heatmap:
    queries, cells = range(explanation.scores.shape[1]), sum(h * w for h, w in explanation.trace.layers[layer].memory.shapes)
    group = max(1, _AT_ONCE // (heads * cells))
    parts = [explanation.heatmaps(queries[at : at + group], layer, size) for at in range(0, len(queries), group)]
    return Heatmap(torch.cat([part.map for part in parts]), torch.cat([part.lost for part in parts]))


def _packed(layers: Sequence[Heatmap]) -> dict[str, Any]:
    """Maps [..., h, w] as shares of their maximum ``top`` in 8 bits, in C order and base64."""
    maps = np.stack([each.map.numpy() for each in layers])
    top = maps.max((-2, -1), keepdims=True)
    values = np.round(maps / np.where(top > 0, top, 1) * 255).astype(np.uint8)
    return {
        "size": maps.shape[-2:],
        "values": base64.b64encode(values.tobytes()).decode(),
        "top": _rounded(top.ravel(), 7),
        "lost": _rounded(np.stack([each.lost.numpy() for each in layers]).ravel(), 5),
    }


def _rivals(explanation: Explanation) -> list[dict[str, Any]]:
    """Of every query the strongest rivals (see ``Rival``), and whether there are more."""
    return [
        {
            "shown": [
                {
                    "query": rival.query,
                    "fate": rival.fate + (f" from layer {rival.silent_from + 1} on" if rival.silent_from else ""),
                    "attends_to": _rounded(np.array(rival.attention_to_winner), 5),
                    "attended_by": _rounded(np.array(rival.attention_from_winner), 5),
                }
                for rival in found[:_RIVALS]
            ],
            "more": len(found) > _RIVALS,
        }
        for found in explanation.all_rivals(range(explanation.scores.shape[1]), _RIVALS + 1)
    ]
