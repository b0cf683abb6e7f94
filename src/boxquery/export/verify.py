"""Whether an exported file gives what its model gives: both on the same images, outputs, AP and latency side by side."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxquery.data.classes import map_labels, match_names
from boxquery.data.dataset import Data, Split
from boxquery.data.preprocessing import Resize
from boxquery.errors import CheckFailed
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import DetectionsByImage, keep_labels
from boxquery.export.graph import OUTPUTS, ExportGraph
from boxquery.progress import Progress, note
from boxquery.runtime.engines import Engine
from boxquery.runtime.exported import ExportedDetector

#: largest difference of a normalised box or a score in fp32, from rounding alone
TOLERANCE = 1e-4
#: share of queries that may differ by more in fp32: where proposals tie to rounding, another of them becomes a query
TIES = 0.01
#: AP that may be lost, by precision
AP_LOST = {"fp32": 0.001, "fp16": 0.01, "bf16": 0.01, "int8": 0.01}

Outputs = dict[str, np.ndarray]


def verify(graph: ExportGraph, path: Path, data: Data, split: str) -> dict[str, Any]:
    """Compare the file at ``path`` with the model that it was made of, image by image and on the same pixels.

    Returns ``images``; ``AP`` and ``AP_exported``; ``AP_own_size``, the model's where every image is resized by its own rule, from which
    a fixed size may differ, and ``usual_size``, [height, width] of most images by that rule; ``difference``, the largest of a normalised
    box or a score among queries that agree; ``differing``, the share of queries that do not, even with another one in place of their own;
    ``ms`` and ``ms_exported``, median milliseconds per image without reading and resizing. Raises ``CheckFailed``, with these numbers,
    where they are too far apart.
    """
    exported = ExportedDetector.open(path, device="cpu")
    record = exported.record
    records = map_labels(data, split, exported.classes)
    own = Resize(record.preprocessing)
    shapes: Counter[tuple[int, int]] = Counter()
    found: tuple[DetectionsByImage, DetectionsByImage, DetectionsByImage] = ({}, {}, {})
    times: tuple[list[float], list[float]] = ([], [])
    worst, differing, queries = 0.0, 0, 0
    with Progress("verify", len(records)) as bar:
        for i in range(len(records)):
            image = records.read(i)
            size = [(image.height, image.width)]
            pixels = exported.resize(image)[None]
            ours = _timed(partial(run_graph, graph), pixels, size, times[0])
            theirs = _timed(partial(run_file, exported), pixels, size, times[1])
            largest, apart = compare(ours, theirs, size[0])
            worst, differing, queries = max(worst, largest), differing + apart, queries + ours["class_scores"].shape[1]
            shapes[own.size(*size[0])] += 1
            same = own.size(*size[0]) == pixels.shape[-2:]
            unstretched = ours if same else run_graph(graph, own(image)[None], np.array(size))
            for outputs, kept in zip((ours, theirs, unstretched), found, strict=True):
                engine = Engine(record, lambda names, *_, outputs=outputs: [outputs[name] for name in names], "", "")
                kept[i] = ExportedDetector(engine).detect(pixels, size)[0]
            bar.advance()
    aps = [_ap(records, each, data, exported) for each in found]
    usual, often = shapes.most_common(1)[0]
    if record.size is not None and set(shapes) != {record.size}:
        height, width = record.size
        advice = f"--size {usual[0]}x{usual[1]} is that of {often:,} of {len(records):,} images"
        note(f"the model has AP {aps[0]:.4f} at {height}x{width}, {aps[2]:.4f} at the model's own size of each image; {advice}")
    values = {
        "images": len(records),
        "AP": aps[0],
        "AP_exported": aps[1],
        "AP_own_size": aps[2],
        "usual_size": list(usual),
        "difference": worst,
        "differing": differing / queries,
        "ms": _median(times[0]),
        "ms_exported": _median(times[1]),
    }
    lost, allowed = aps[0] - aps[1], AP_LOST[record.precision]
    if record.precision == "fp32":
        lost = abs(lost)
    if lost > allowed:
        raise CheckFailed(
            f"{path.name}: AP {aps[1]:.4f}, and {aps[0]:.4f} of the model; at most {allowed:g} may be lost in {record.precision}"
        )
    if record.precision == "fp32" and values["differing"] > TIES:
        raise CheckFailed(
            f"{path.name}: {values['differing']:.1%} of the queries differ from the model's by more than {TOLERANCE:g}; "
            f"at most {TIES:.0%} may, where proposals tie"
        )
    return values


def run_graph(graph: ExportGraph, images: np.ndarray, sizes: np.ndarray) -> Outputs:
    """The model's own outputs by torch; see ``ExportGraph``."""
    with torch.inference_mode():
        return dict(zip(OUTPUTS, (each.numpy() for each in graph(torch.from_numpy(images), torch.from_numpy(sizes))), strict=True))


def run_file(exported: ExportedDetector, images: np.ndarray, sizes: np.ndarray) -> Outputs:
    """All outputs of an exported file."""
    return dict(zip(OUTPUTS, exported.engine.run(OUTPUTS, images, sizes), strict=True))


def compare(ours: Outputs, theirs: Outputs, size: tuple[int, int]) -> tuple[float, int]:
    """The largest difference of a normalised box or a score among queries that agree, and how many do not agree with any.

    Queries are compared by their index. Those that differ by more than ``TOLERANCE`` may have changed places, as proposals do that tie.
    """
    scale = np.array([size[1], size[0]] * 2, np.float32)
    one, other = (np.concatenate((each["query_boxes"][0] / scale, each["class_scores"][0]), 1) for each in (ours, theirs))
    apart = np.abs(one - other).max(1)
    left = np.flatnonzero(~(apart <= TOLERANCE))
    agreeing = apart[apart <= TOLERANCE].max(initial=0.0)
    free, unmatched = list(left), 0
    for i in left:
        distances = np.abs(one[i] - other[free]).max(1) if free else np.array([np.inf])
        if not (nearest := distances.min()) <= TOLERANCE:
            unmatched += 1
        else:
            agreeing = max(agreeing, nearest)
            free.pop(int(distances.argmin()))
    return float(agreeing), unmatched


def _timed(
    run: Callable[[np.ndarray, np.ndarray], Outputs], pixels: np.ndarray, size: list[tuple[int, int]], times: list[float]
) -> Outputs:
    started = time.perf_counter()
    outputs = run(pixels, np.array(size))
    times.append(1000 * (time.perf_counter() - started))
    return outputs


def _median(times: list[float]) -> float:
    """Without the first, which allocates."""
    return round(float(np.median(times[1:] or times)), 2)


def _ap(records: Split, found: DetectionsByImage, data: Data, exported: ExportedDetector) -> float:
    found = keep_labels(found, match_names(data.names, exported.classes))
    names = [name or f"(no name {i})" for i, name in enumerate(exported.classes)]
    return evaluate(records, found, names, exported.ids)["AP"] or 0.0
