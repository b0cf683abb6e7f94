"""The detections of one image, as arrays. Imports no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from boxquery.data.images import read_image
from boxquery.errors import UserError, count
from boxquery.pages.drawing import draw
from boxquery.pages.images import with_margin

#: digits of a file name that is taken for a number; longer ones are not exact everywhere that JSON is read
_DIGITS = 15
#: pixels of a picture's side in which a class name can be read
_LEAST_SIDE = 40


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The detections of one image, best first.

    Attributes:
        boxes: float32 [K, 4], xyxy in pixels of the upright image, clipped to it.
        scores: float32 [K], 0..1.
        labels: int64 [K], indices into the detector's ``classes``.
        names: K class names.
        ids: K category ids of the data set that the detector was trained on.
        size: (height, width) of the image.
        path: the image file, or None.
        image: the image itself where there is no file.
        frame, time: of a frame of a video its number, from 0, and the seconds since the first one.
        tracks: int64 [K], of an object that is followed through a video its number there, else -1; None: nothing is followed.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    ids: list[int]
    size: tuple[int, int]
    path: str | None = None
    image: Image.Image | None = field(default=None)
    frame: int | None = None
    time: float | None = None
    tracks: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        height, width = self.size
        counts = ", ".join(f"{number} {name}" for name, number in Counter(self.names).most_common(5))
        found = (
            f"{count(len(self), 'object')}: {counts}; scores {self.scores.min():.2f} to {self.scores.max():.2f}"
            if len(self)
            else "no objects"
        )
        return f"<Result of {self.path or 'an image'}, {width} x {height}: {found}>"

    def pixels(self) -> Image.Image:
        """The image, read again if it came from a file. Raises ``UserError`` if that can no longer be read."""
        if self.image is not None:
            return self.image
        if self.path is None:
            raise UserError("this result was made without its image; give Result(image=...)")
        return read_image(self.path)

    def draw(self) -> Image.Image:
        """The image with boxes, class names and scores on it; a strip has a margin for them. Raises ``UserError`` if its file can no longer
        be read."""
        names: list[str | None] = [None] * (int(self.labels.max(initial=-1)) + 1)
        for label, name in zip(self.labels.tolist(), self.names, strict=True):
            names[label] = name
        image = self.pixels()
        least = max(_LEAST_SIDE, max(image.size) // 100)
        return draw(with_margin(image, least, least), self.boxes, self.labels, names, scores=self.scores, tracks=self.tracks)

    def to_coco(self, image_id: int | str | None = None) -> list[dict[str, Any]]:
        """Rows of COCO's result format: ``image_id``, ``category_id`` (the data set's own), ``bbox`` (x, y, width, height) and ``score``;
        ``track_id`` of an object that is followed.

        Args:
            image_id: None: the file's name without its ending, as a number if it is one; 0 for an image without a file.
        """
        if image_id is None:
            image_id = name_to_id(PurePath(self.path)) if self.path else 0
        return [
            {
                "image_id": image_id,
                "category_id": category,
                "bbox": [round(value, 2) for value in (x1, y1, x2 - x1, y2 - y1)],
                "score": round(score, 5),
                **({} if track < 0 else {"track_id": track}),
            }
            for (x1, y1, x2, y2), score, category, track in zip(
                self.boxes.tolist(), self.scores.tolist(), self.ids, self._tracks().tolist(), strict=True
            )
        ]

    def _tracks(self) -> np.ndarray:
        return np.full(len(self), -1) if self.tracks is None else self.tracks

    def to_supervision(self) -> Any:
        """As ``supervision.Detections`` (needs the ``viz`` extra)."""
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("to_supervision() needs the package supervision: pip install supervision") from error
        return supervision.Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            tracker_id=self.tracks,
            data={"class_name": np.array(self.names)},
        )


def name_to_id(path: PurePath) -> int | str:
    """COCO's ``image_id`` of an image file: its name without ending, a number where it is one."""
    return int(path.stem) if path.stem.isdecimal() and len(path.stem) <= _DIGITS else path.stem
