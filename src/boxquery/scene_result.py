"""The detections of one scene of several cameras, as arrays. Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from boxquery.boxes3d import BOX
from boxquery.data.scenes.records import SceneDetections
from boxquery.errors import count
from boxquery.pages.cameras import draw_scene


@dataclass(frozen=True, eq=False, repr=False)
class SceneResult:
    """The detections of one scene, best first, in the frame of the vehicle.

    Attributes:
        boxes: float64 [K, 9], x, y, z, w, l, h in metres, yaw in radians, vx, vy in m/s (``boxquery.boxes3d``).
        scores: float64 [K], 0..1.
        labels: int64 [K], indices into the detector's ``classes``.
        names: K class names.
        ids: K category ids of the data set that the detector was trained on.
        lidar2img: float64 [V, 4, 4], of the images.
        images: the V images.
        classes: all names of the detector, for the legend of a picture.
        cameras: V names, or none.
        radius: metres from the vehicle to the sides of the view from above.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    ids: list[int]
    lidar2img: np.ndarray
    images: list[Image.Image] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    cameras: tuple[str, ...] = ()
    radius: float = 50.0

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        counts = ", ".join(f"{number} {name}" for name, number in Counter(self.names).most_common(5))
        scores = f": {counts}; scores {self.scores.min():.2f} to {self.scores.max():.2f}" if len(self) else ""
        return f"<SceneResult of {count(len(self.lidar2img), 'camera')}: {count(len(self), 'object')}{scores}>"

    def draw(self, truth: tuple[np.ndarray, np.ndarray] | None = None, *, width: int = 1200) -> Image.Image:
        """The images with boxes on them, and beside them the scene from above.

        Args:
            truth: boxes [N, 9] and labels [N] to draw dashed.
            width: of the picture in pixels.
        """
        return draw_scene(
            self.images, self.lidar2img, self.boxes, self.labels, names=self.classes, truth=truth, cameras=self.cameras,
            radius=self.radius, width=width,
        )  # fmt: skip

    def detections(self) -> SceneDetections:
        """The arrays alone."""
        return SceneDetections(self.boxes, self.scores, self.labels)

    def with_images(self, images: list[Image.Image], cameras: tuple[str, ...]) -> SceneResult:
        """The same result with the images that it is drawn on."""
        return replace(self, images=images, cameras=cameras)

    def rows(self) -> list[dict[str, Any]]:
        """A dictionary per box: ``name``, ``score`` and the columns of ``boxquery.boxes3d.BOX``; plain values."""
        columns = zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [{"name": name, "score": score, **dict(zip(BOX, box, strict=True))} for name, score, box in columns]
