"""Why a model of several cameras found an object: from which pixels of which cameras its query read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.markup import escape
from rich.table import Table

from boxquery.data.scenes.records import SceneDetections
from boxquery.errors import UserError
from boxquery.files import atomic_write
from boxquery.pages.cameras import draw_scene, tint
from boxquery.pages.format import three
from boxquery.pages.html import encode, render
from boxquery.parts.output import Output
from boxquery.scene_detector import SceneDetector
from boxquery.scene_result import SceneResult

MOST = 8
"""Detections that a page shows, the best ones."""


@dataclass(frozen=True, eq=False)
class SceneExplanation:
    """What the queries of one scene read.

    Attributes:
        name: of the scene.
        model: the model's name.
        result: detections at or above the threshold, best first; where there is none, the best of all.
        queries: int [K], the query of each.
        output: of the model, with its trace.
        truth: boxes [N, 9] and labels [N] (as those of ``result``) of the objects, where they are known.
    """

    name: str
    model: str
    result: SceneResult
    queries: np.ndarray
    output: Output = field(repr=False)
    truth: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def layers(self) -> int:
        assert self.output.trace is not None
        return len(self.output.trace.layers)

    def heatmap(self, query: int, layer: int = -1, size: tuple[int, int] = (48, 80)) -> np.ndarray:
        """Where a query read in a layer: float [V, h, w], one map over all cameras that sums to one; ``size`` (h, w) is of each.

        Raises ``UserError`` for a query or layer that the model does not have.
        """
        assert self.output.trace is not None
        most = self.output.boxes.shape[2]
        if not 0 <= query < most or not -self.layers <= layer < self.layers:
            raise UserError(f"query {query}, layer {layer}: the model has queries 0 to {most - 1} and {self.layers} layers")
        return self.output.trace.layers[layer].heatmap(query, size).map.numpy()

    def shares(self, query: int, layer: int = -1) -> list[float]:
        """The share of each camera in what a query read."""
        return self.heatmap(query, layer).sum((1, 2)).tolist()

    def draw(self, place: int, layer: int = -1, *, width: int = 1200) -> Image.Image:
        """A detection, by its place in ``result``: its box and where its query read on the images, and the scene from above."""
        r = self.result
        maps = self.heatmap(int(self.queries[place]), layer)
        images = [tint(image, heat / max(maps.max(), 1e-12)) for image, heat in zip(r.images, maps, strict=True)]
        chosen = slice(place, place + 1)
        others = np.arange(len(r)) != place
        return draw_scene(
            images, r.lidar2img, r.boxes[chosen], r.labels[chosen], names=r.classes, cameras=r.cameras, radius=r.radius, width=width,
            truth=(r.boxes[others], r.labels[others]),
        )  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """Plain values: per detection its box, query, and the share of each camera by layer."""
        rows = []
        for place, row in enumerate(self.result.rows()):
            query = int(self.queries[place])
            shares = [dict(zip(self.cameras, self.shares(query, layer), strict=True)) for layer in range(self.layers)]
            rows.append({"query": query, **row, "cameras": shares})
        return {"scene": self.name, "model": self.model, "detections": rows}

    def table(self) -> Table:
        """A row per detection: its query, class and score, and the share of each camera in the last layer."""
        title = escape(f"{self.model}, scene {self.name}: what was read from which camera")
        # no word is split in 80 columns: without padding, and with names of several words one below the other
        table = Table(title=title, title_justify="left", padding=0)
        for column in ("query", "class", "score", *("\n".join(re.split("[_ ]+", name)) for name in self.cameras)):
            table.add_column(escape(column), justify="right", no_wrap=column != "class", overflow="fold")
        for query, name, score in zip(self.queries.tolist(), self.result.names, self.result.scores, strict=True):
            table.add_row(str(query), escape(name), three(score), *(f"{share:.0%}" for share in self.shares(query)))
        return table

    @property
    def cameras(self) -> list[str]:
        """Names, or numbers where there are none."""
        return list(self.result.cameras) or [f"camera {v}" for v in range(len(self.result.lidar2img))]

    def write(self, path: Path, *, most: int = MOST) -> Path:
        """A page with a picture of each of the best detections, and of all of them beside the ground truth. Returns its path."""
        whole, shown = None if self.truth is None else self.result.draw(self.truth), []
        for place in range(min(most, len(self.result))):
            query, picture = int(self.queries[place]), self.draw(place)
            layers = [[f"layer {n + 1}", *(f"{share:.0%}" for share in self.shares(query, n))] for n in range(self.layers)]
            shown.append(
                {
                    "title": f"{self.result.names[place]} {self.result.scores[place]:.2f}, query {query}",
                    "picture": encode(picture),
                    "width": picture.width,
                    "height": picture.height,
                    "layers": layers,
                }
            )
        title = f"{self.model}: what was read in scene {self.name}"
        return atomic_write(
            path, render("scene_explanation.html", title=title, whole=whole, shown=shown, cameras=self.cameras, total=len(self.result))
        )


@torch.inference_mode()
def explain_scene(
    detector: SceneDetector, images: Sequence[Image.Image], lidar2img: np.ndarray, *, name: str = "", threshold: float | None = None,
    query: int | None = None, cameras: Sequence[str] = (),
) -> SceneExplanation:  # fmt: skip
    """Look at a scene and keep what every query read.

    Args:
        query: explain this one alone; None: all detections.
    """
    model, given = detector.transformer, detector.inputs(images, lidar2img)
    out = model.eval()(*detector.inputs_of(*given), trace="decoder")
    kept = None if out.alive is None else out.alive[-1].nonzero()[:, 1].view(1, -1)
    scores, labels, boxes, index = (
        column[0].cpu().numpy() for column in model.postprocessor(out.logits[-1], out.boxes[-1], kept, one_label=True)
    )
    found = SceneDetections(boxes.astype(np.float64), scores.astype(np.float64), labels)
    result = detector.result(found, list(images), lidar2img, threshold=threshold, cameras=cameras)
    places = np.arange(len(result) or 1)  # best first, so that those at the threshold come first
    if query is not None:
        places = np.flatnonzero(index == query)
        if not len(places):
            raise UserError(f"query {query}: not among the {len(index)} detections of the scene")
    if query is not None or not len(result):
        chosen = SceneDetections(found.boxes[places], found.scores[places], found.labels[places])
        result = detector.result(chosen, list(images), lidar2img, threshold=0.0, cameras=cameras)
    return SceneExplanation(name, detector.name, result, index[places], out)
