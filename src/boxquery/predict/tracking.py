"""Follows objects through a video with ByteTrack, as the package ``trackers`` has it."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np

from boxquery.errors import UserError, one_line
from boxquery.predict.sources import Item
from boxquery.result import Result

#: weaker boxes than the threshold, down to this score, may continue a track, but never begin one: ByteTrack's idea
LEAST_SCORE = 0.1


def require_trackers() -> None:
    """Raise ``UserError`` where the package is not installed, without importing it."""
    if find_spec("trackers") is None:
        raise UserError("--track needs the package trackers; pip install 'boxquery[track]'")


class Tracker:
    """Gives objects a number that they keep from frame to frame; each video, and each folder of images, begins anew.

    Args:
        threshold: the score from which a box is kept, and may begin a track. Give ``update`` boxes from ``least`` on.
    """

    def __init__(self, threshold: float):
        try:
            from trackers import ByteTrackTracker  # pyright: ignore[reportMissingImports]
        except ImportError as error:  # of what it needs itself, such as OpenCV's system libraries
            raise UserError(f"--track: the package trackers cannot be imported ({one_line(error)}); install it again") from error
        self._make = ByteTrackTracker
        self.threshold, self.least = threshold, min(threshold, LEAST_SCORE)
        self._sequence: str | None = None

    def update(self, item: Item, result: Result) -> Result:
        """The result with ``tracks``: numbers from 0; -1 for what was seen for the first time, and may be followed from the next frame on.

        Boxes below the threshold stay only where they continue a track.
        """
        import supervision

        if item.sequence != self._sequence:
            self._sequence = item.sequence
            self._tracker = self._make(
                frame_rate=float(item.rate), track_activation_threshold=self.threshold, high_conf_det_threshold=self.threshold
            )
        place = np.arange(len(result))
        found = supervision.Detections(xyxy=result.boxes, confidence=result.scores, class_id=result.labels, data={"place": place})
        followed = self._tracker.update(found, timestamp=None if item.time is None else float(item.time))
        tracks = np.full(len(result), -1, np.int64)
        if len(followed):
            assert followed.tracker_id is not None
            tracks[np.asarray(followed.data["place"])] = followed.tracker_id
        keep = np.flatnonzero((tracks >= 0) | (result.scores >= self.threshold))
        return replace(
            result,
            boxes=result.boxes[keep],
            scores=result.scores[keep],
            labels=result.labels[keep],
            names=[result.names[i] for i in keep],
            ids=[result.ids[i] for i in keep],
            tracks=tracks[keep],
        )
