"""Defaults and limits of thresholds, counts and sizes, wherever a user gives one."""

from __future__ import annotations

import math

from boxquery.errors import UserError

#: detections per class and image that count: COCO's definition of AP
MAX_DETECTIONS = 100
#: score threshold until an evaluation has found a better one
DEFAULT_THRESHOLD = 0.5
#: share of a tile's side that neighbours have in common, unless another is given
DEFAULT_OVERLAP = 0.2


def check_above_zero(**given: float | None) -> None:
    """Raise ``UserError`` for a number that is given and is not above 0, or is not finite."""
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name}={value}: must be a finite number above 0")


def check_nms(iou: float | None) -> None:
    """Raise ``UserError`` for an IoU threshold of NMS that is given and cannot be one."""
    if iou is not None and not 0 < iou <= 1:
        raise UserError(f"nms={iou}: must be an IoU above 0 and at most 1, which disables it")


def check_threshold(score: float | None) -> None:
    """Raise ``UserError`` for a score threshold that is given and is not from 0 to 1."""
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"threshold={score}: must be from 0 to 1")


def check_tiles(side: int | None, overlap: float) -> None:
    """Raise ``UserError`` for a side of tiles that is given and is too small, or a share of them that neighbours cannot have in common."""
    if side is not None and (not isinstance(side, int) or side < 16):
        raise UserError(f"tiles={side}: must be the side of a tile in pixels, 16 or more")
    if not 0 <= overlap <= 0.9:
        raise UserError(f"overlap={overlap}: must be the share of a tile that neighbours have in common, from 0 to 0.9")
