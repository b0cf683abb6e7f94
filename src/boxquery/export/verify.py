"""Whether an exported file gives what its model gives: both on the same images, outputs, AP and latency side by side."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
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
from boxquery.export.graph import OUTPUTS, ExportGraph, Graph
from boxquery.progress import Progress, note
from boxquery.runtime.engines import Engine
from boxquery.runtime.exported import ExportedDetector
from boxquery.runtime.record import Record

#: largest difference of a number of a query, normalised, in fp32, from rounding alone
TOLERANCE = 1e-4
#: share of queries that may differ by more in fp32: where proposals tie to rounding, another of them becomes a query
TIES = 0.01
#: AP, or mAP of scenes, that may be lost, by precision
AP_LOST = {"fp32": 0.001, "fp16": 0.01, "bf16": 0.01, "int8": 0.01}

Outputs = dict[str, np.ndarray]


@dataclass
class Comparison:
    """A model and the file that was made of it, on the same inputs one by one.

    Attributes:
        difference: the largest of a number that ``compare`` is given, among queries that agree.
        differing, queries: how many queries do not agree, even with another one in place of their own, and how many there were.
        times: milliseconds of the model, and of the file.
    """

    graph: Graph
    engine: Engine
    difference: float = 0.0
    differing: int = 0
    queries: int = 0
    times: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def run(self, images: np.ndarray, beside: np.ndarray, rows: Callable[[Outputs], np.ndarray]) -> tuple[Outputs, Outputs]:
        """Outputs of both, whose ``rows`` are compared."""
        ours = _timed(partial(run_graph, self.graph), images, beside, self.times[0])
        theirs = _timed(partial(run_file, self.engine), images, beside, self.times[1])
        largest, apart = compare(rows(ours), rows(theirs))
        self.difference, self.differing = max(self.difference, largest), self.differing + apart
        self.queries += ours["class_scores"].shape[1]
        return ours, theirs

    def values(self) -> dict[str, float]:
        """``difference``; ``differing``, as a share; ``ms`` and ``ms_exported``, medians."""
        ms, ms_exported = map(_median, self.times)
        return {"difference": self.difference, "differing": self.differing / self.queries, "ms": ms, "ms_exported": ms_exported}

    def judge(self, file: str, metric: str, own: float, exported: float) -> None:
        """Raise ``CheckFailed`` where the model's metric and the file's, or their queries, are too far apart."""
        precision = self.engine.record.precision
        lost, allowed = own - exported, AP_LOST[precision]
        if precision == "fp32":
            lost = abs(lost)
        if lost > allowed:
            raise CheckFailed(
                f"{file}: {metric} {exported:.4f}, and {own:.4f} of the model; at most {allowed:g} may be lost in {precision}"
            )
        if precision == "fp32" and (share := self.differing / self.queries) > TIES:
            raise CheckFailed(
                f"{file}: {share:.1%} of the queries differ from the model's by more than {TOLERANCE:g}; at most {TIES:.0%} may, "
                "where proposals tie"
            )


def verify(graph: ExportGraph, path: Path, data: Data, split: str) -> dict[str, Any]:
    """Compare the file at ``path`` with the model that it was made of, image by image and on the same pixels.

    Returns ``images``; ``AP`` and ``AP_exported``; ``AP_own_size``, the model's where every image is resized by its own rule, from which
    a fixed size may differ, and ``usual_size``, [height, width] of most images by that rule; and ``Comparison.values``, of normalised
    boxes and scores, and of milliseconds per image without reading and resizing. Raises ``CheckFailed``, with these numbers, where they are
    too far apart.
    """
    exported = ExportedDetector.open(path, device="cpu")
    record = exported.record
    records = map_labels(data, split, exported.classes)
    own = Resize(record.preprocessing)
    shapes: Counter[tuple[int, int]] = Counter()
    found: tuple[DetectionsByImage, DetectionsByImage, DetectionsByImage] = ({}, {}, {})
    both = Comparison(graph, exported.engine)
    with Progress("verify", len(records)) as bar:
        for i in range(len(records)):
            image = records.read(i)
            size = (image.height, image.width)
            pixels = exported.resize(image)[None]
            ours, theirs = both.run(pixels, np.array([size]), partial(image_rows, size=size))
            shapes[own.size(*size)] += 1
            same = own.size(*size) == pixels.shape[-2:]
            unstretched = ours if same else run_graph(graph, own(image)[None], np.array([size]))
            for outputs, kept in zip((ours, theirs, unstretched), found, strict=True):
                kept[i] = ExportedDetector(as_engine(record, outputs)).detect(pixels, [size])[0]
            bar.advance()
    aps = [_ap(records, each, data, exported) for each in found]
    usual, often = shapes.most_common(1)[0]
    if record.size is not None and set(shapes) != {record.size}:
        height, width = record.size
        advice = f"--size {usual[0]}x{usual[1]} is that of {often:,} of {len(records):,} images"
        note(f"the model has AP {aps[0]:.4f} at {height}x{width}, {aps[2]:.4f} at the model's own size of each image; {advice}")
    both.judge(path.name, "AP", aps[0], aps[1])
    first = {"images": len(records), "AP": aps[0], "AP_exported": aps[1], "AP_own_size": aps[2], "usual_size": list(usual)}
    return first | both.values()


def as_engine(record: Record, outputs: Outputs) -> Engine:
    """What gives these outputs for any input."""
    return Engine(record, lambda names, *_: [outputs[name] for name in names], "", "")


def run_graph(graph: Graph, images: np.ndarray, beside: np.ndarray) -> Outputs:
    """The model's own outputs by torch; see ``Graph``."""
    with torch.inference_mode():
        return dict(zip(OUTPUTS, (each.numpy() for each in graph(torch.from_numpy(images), torch.from_numpy(beside))), strict=True))


def run_file(engine: Engine, images: np.ndarray, beside: np.ndarray) -> Outputs:
    """All outputs of an exported file."""
    return dict(zip(OUTPUTS, engine.run(OUTPUTS, images, beside), strict=True))


def image_rows(outputs: Outputs, size: tuple[int, int]) -> np.ndarray:
    """[Q, 4 + C], of an image of that (height, width): the normalised box of each query, and its scores.

    A box that leaves the image, as those of an untrained Sparse R-CNN do by up to a hundred times its size, is in shares of its farthest
    coordinate instead: float32 has seven digits of a number, not of the image.
    """
    boxes = outputs["query_boxes"][0] / np.array([size[1], size[0]] * 2, np.float32)
    return np.concatenate((boxes / np.abs(boxes).max(1, initial=1.0, keepdims=True), outputs["class_scores"][0]), 1)


def compare(one: np.ndarray, other: np.ndarray) -> tuple[float, int]:
    """The largest difference of [Q, N] numbers of queries among those that agree, and how many do not agree with any.

    Queries are compared by their index. Those that differ by more than ``TOLERANCE`` may have changed places, as proposals do that tie.
    """
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


def _timed(run: Callable[[np.ndarray, np.ndarray], Outputs], images: np.ndarray, beside: np.ndarray, times: list[float]) -> Outputs:
    started = time.perf_counter()
    outputs = run(images, beside)
    times.append(1000 * (time.perf_counter() - started))
    return outputs


def _median(times: list[float]) -> float:
    """Without the first, which allocates."""
    return round(float(np.median(times[1:] or times)), 2)


def _ap(records: Split, found: DetectionsByImage, data: Data, exported: ExportedDetector) -> float:
    found = keep_labels(found, match_names(data.names, exported.classes))
    names = [name or f"(no name {i})" for i, name in enumerate(exported.classes)]
    return evaluate(records, found, names, exported.ids)["AP"] or 0.0
