"""The page of an explanation: one HTML file without references to anything outside, to be used with mouse, finger or keys."""

from __future__ import annotations

import base64
import io
import zlib
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from boxquery.errors import UserError
from boxquery.explain import rivals, rollout
from boxquery.explain.explanation import Explanation
from boxquery.files import atomic_write
from boxquery.pages.html import standalone

_PICTURE = 1333  # longest side of the image in the page, pixels
_GRID, _SMALL = 48, 24  # longest side of a map: of the queries that matter, and of all
_KEPT, _BEST = 20, 10  # most detections with a map for every head; and how many queries where there is no detection
_RIVALS = 6  # most of a query's rivals
_AT_ONCE = 8_000_000  # shares (of query, head and cell) that are held in memory together

_BODY = """<main id="page">
<h1>{title}</h1>
<noscript><p>This page draws its maps with JavaScript, which is switched off here.</p></noscript>
</main>"""


def write_page(explanations: Sequence[Explanation], path: Path, *, titles: Sequence[str] = ()) -> Path:
    """Write ``explanation_page`` to a file. Returns its path."""
    return atomic_write(path, explanation_page(explanations, titles=titles))


def explanation_page(explanations: Sequence[Explanation], *, titles: Sequence[str] = ()) -> str:
    """The page of one or more explanations as HTML; those of the same image stand side by side, so that models can be compared.

    Args:
        titles: one per explanation, such as the names of the runs; default: the models' names, numbered where an image has one twice.

    Maps are quantised to 8 bits. Of the best 20 detections (the 10 best queries if there is none) and of the chosen query the page has
    every head, on the model's own cells but at most 48 a side, and with an encoder their origins, at most 24 a side; of all queries the
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
    called = list(titles) or _called(explanations, list(groups.values()))
    images = [
        _picture(explanations[group[0]]) | {"models": [_model(explanations[i]) | {"title": called[i]} for i in group]}
        for group in groups.values()
    ]
    here = Path(__file__)
    style, script = (here.with_suffix(end).read_text(encoding="utf-8") for end in (".css", ".js"))
    title = f"What {called[0]} looked at" if len(explanations) == 1 else "What the queries looked at"
    return standalone(title, _BODY.format(title=escape(title)), style=style, script=script, data={"images": images})


def kept_queries(explanation: Explanation) -> list[int]:
    """The queries whose maps the page has for every head: best first, then the one that was asked for."""
    kept = explanation.found[:_KEPT] or _order(explanation)[:_BEST]
    return kept if explanation.chosen is None or explanation.chosen in kept else [*kept, explanation.chosen]


def map_size(explanation: Explanation, longest: int) -> tuple[int, int]:
    """(height, width) of the page's maps: the cells of the finest level on the image, fewer where a side has more than ``longest``."""
    cells = []
    for layer in explanation.trace.layers:
        for (h, w), ratio in zip(layer.memory.shapes, layer.memory.valid_ratios[0].tolist(), strict=True):
            cells.append((h * ratio[1], w * ratio[0]))
    height, width = max(cells)
    scale = min(1.0, longest / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _called(explanations: Sequence[Explanation], groups: list[list[int]]) -> list[str]:
    names = [explanation.model for explanation in explanations]
    for group in groups:
        often = Counter(names[i] for i in group)
        for name in [name for name, count in often.items() if count > 1]:
            for number, i in enumerate([i for i in group if names[i] == name], 1):
                names[i] = f"{name} ({number})"
    return names


def _order(explanation: Explanation) -> list[int]:
    return np.argsort(-explanation.scores[-1], kind="stable").tolist()


def _picture(explanation: Explanation) -> dict[str, Any]:
    image = explanation.image.convert("RGB")
    image.thumbnail((_PICTURE, _PICTURE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80, optimize=True)
    height, width = explanation.size
    name = Path(explanation.path).name if explanation.path else ""
    return {"name": name, "height": height, "width": width, "jpeg": base64.b64encode(file.getvalue()).decode()}


def _model(explanation: Explanation) -> dict[str, Any]:
    """What the page knows of one explanation; arrays are deflated, little-endian, in base64."""
    places = {"boxes": _places(explanation.boxes, explanation), "scores": _shares(explanation.scores)}
    if explanation.references is not None:
        places["references"] = _places(explanation.references, explanation)
    layers, queries = explanation.scores.shape
    kept = kept_queries(explanation)
    heads = int(explanation.heatmaps(kept[:1], 0, (1, 1), heads=True).map.shape[1])
    salient = [layer.salient_points[0, kept] for layer in explanation.trace.layers if layer.salient_points is not None]
    if salient:
        places["salient"] = _shares((torch.stack(salient).float().cpu().numpy() + 0.5) / 2)
    taken_part = [explanation.present(query) for query in range(queries)]
    arrays = places | {"labels": explanation.labels.astype("<u2")} | _maps(explanation, kept, heads) | _rivals(explanation)
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
        "taken_part": taken_part if min(taken_part) < layers else None,
        "grid": map_size(explanation, _GRID),
        "small": map_size(explanation, _SMALL),
        "fates": rivals.FATES,
        "most_rivals": _RIVALS,
        "reference_size": 0 if explanation.references is None else explanation.references.shape[-1],
        "arrays": {name: base64.b64encode(zlib.compress(array.tobytes(), 9)).decode() for name, array in arrays.items()},
    }


def _places(pixels: np.ndarray, explanation: Explanation) -> np.ndarray:
    """[..., 2 or 4] pixels -> 16 bits over twice the image, half an image around it: no box of the family reaches farther."""
    height, width = explanation.size
    return _shares((pixels / np.array([width, height] * (pixels.shape[-1] // 2)) + 0.5) / 2)


def _shares(values: np.ndarray) -> np.ndarray:
    """0..1 -> 16 bits."""
    return np.round(values.astype(np.float64).clip(0, 1) * 65535).astype("<u2")


def _maps(explanation: Explanation, kept: list[int], heads: int) -> dict[str, np.ndarray]:
    """L layers, Q queries, K kept ones, H heads; a map or factor is stored as shares of its own maximum, in 8 bits.

    ``small`` [L, Q, h, w] and ``mean`` [L, K, h, w] are means of the heads, with maxima ``small_top`` and ``mean_top``; of the heads there
    are ``heads`` [L, K, H, h, w] with ``heads_top``, or where attention is by row and column ``down`` [L, K, H, h] and ``across``
    [L, K, H, w], whose product they are, with ``down_top`` and ``across_top``. ``lost`` [L, Q] and ``heads_lost`` [L, K, H] fell outside.
    With an encoder there are ``origins`` [L, K, h, w] of the size of ``small``, ``origins_top`` and ``origins_lost`` [L, K].
    """
    grid, small = map_size(explanation, _GRID), map_size(explanation, _SMALL)
    queries = range(explanation.scores.shape[1])
    found: dict[str, list[np.ndarray]] = {}

    def keep(name: str, maps: np.ndarray, dimensions: int = 2) -> None:
        top = maps.max(tuple(range(-dimensions, 0)), keepdims=True)
        share = maps / np.where(top > 0, top, 1)
        found.setdefault(name, []).append(np.round(share * 255).astype(np.uint8))
        found.setdefault(f"{name}_top", []).append(top.astype("<f4"))

    if explanation.trace.encoder:
        regions = rollout.origins(explanation.trace, kept, range(len(explanation.trace.layers)), small)
        keep("origins", regions.map.numpy())
        found["origins_lost"] = [_shares(regions.lost.numpy())]
    for i, layer in enumerate(explanation.trace.layers):
        group = max(1, _AT_ONCE // (heads * sum(h * w for h, w in layer.memory.shapes)))
        parts = [explanation.heatmaps(queries[at : at + group], i, small) for at in range(0, len(queries), group)]
        keep("small", np.concatenate([part.map.numpy() for part in parts]))
        found.setdefault("lost", []).append(_shares(np.concatenate([part.lost.numpy() for part in parts])))
        keep("mean", explanation.heatmaps(kept, i, grid).map.numpy())
        if layer.attention is not None and isinstance(layer.attention[0], tuple):
            down = explanation.heatmaps(kept, i, (grid[0], 1), heads=True)
            keep("down", down.map.numpy()[..., 0], 1)
            keep("across", explanation.heatmaps(kept, i, (1, grid[1]), heads=True).map.numpy()[..., 0, :], 1)
            lost = down.lost
        else:
            every = explanation.heatmaps(kept, i, grid, heads=True)
            keep("heads", every.map.numpy())
            lost = every.lost
        found.setdefault("heads_lost", []).append(_shares(lost.numpy()))
    return {name: np.stack(values) for name, values in found.items()}


def _rivals(explanation: Explanation) -> dict[str, np.ndarray]:
    """Q queries, R the most rivals of each that the page has, L layers; see ``Rival``.

    ``rival_counts`` [Q], R + 1 where there are more; of those that there are, ``rival_queries``, ``fates`` (places in ``FATES``) and
    ``silent_from`` (L where it is none) [Q, R], and ``reads`` [Q, R, 2, L], how much the rival read the query and the query the rival.
    """
    layers, queries = explanation.scores.shape
    counts = np.zeros(queries, np.uint8)
    others = np.zeros((queries, _RIVALS), "<u2")
    fates, silent_from = (np.zeros((queries, _RIVALS), np.uint8) for _ in range(2))
    reads = np.zeros((queries, _RIVALS, 2, layers))
    for query, found in enumerate(rivals.rivals(explanation, range(queries), _RIVALS + 1)):
        counts[query] = len(found)
        for place, rival in enumerate(found[:_RIVALS]):
            others[query, place] = rival.query
            fates[query, place] = rivals.FATES.index(rival.fate)
            silent_from[query, place] = layers if rival.silent_from is None else rival.silent_from
            reads[query, place] = rival.read_winner, rival.read_by_winner
    return {"rival_counts": counts, "rival_queries": others, "fates": fates, "silent_from": silent_from, "reads": _shares(reads)}
