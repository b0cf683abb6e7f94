"""The detections of one image, as arrays. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from boxquery.errors import UserError


@dataclass(frozen=True, eq=False)
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
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    ids: list[int]
    size: tuple[int, int]
    path: str | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def to_supervision(self) -> Any:
        """As ``supervision.Detections`` (needs the ``viz`` extra)."""
        try:
            import supervision  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise UserError("to_supervision() needs the package supervision: pip install 'boxquery[viz]'") from error
        return supervision.Detections(
            xyxy=self.boxes, confidence=self.scores, class_id=self.labels, data={"class_name": np.array(self.names)}
        )
