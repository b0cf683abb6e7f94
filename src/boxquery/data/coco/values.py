"""What the values of COCO annotations mean where they are written in another type than the format's: ids, and boxes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from boxquery.data.raw import Box, Fault, around, as_number

_SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
_CORNERS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x_min", "y_min", "x_max", "y_max"))
_XYXY, _XYWH = 0, 1  # Detectron2's bbox_mode


def identifier(value: object) -> int | str | None:
    """An id as it is; a decimal number without decimals as the integer; None for anything else."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, (int, str)) and not isinstance(value, bool) else None


class Ids:
    """The ids of images or categories, and which one a reference to them means: 2, 2.0 and "2" are one where only one of them exists."""

    def __init__(self) -> None:
        self._known: set[int | str] = set()
        self._numbers: dict[int, int | str | None] = {}
        self._names: dict[str, int | str | None] = {}

    def add(self, own: int | str, *names: str) -> None:
        """An id, and names by which it may be meant where they are no other's."""
        self._known.add(own)
        if (number := integer(own)) is not None:
            self._numbers[number] = None if number in self._numbers else own
        for name in dict.fromkeys(names):
            self._names[name] = None if self._names.get(name, own) != own else own

    def meant_by(self, value: object) -> int | str | None:
        """The id that a reference means, or None."""
        exact = identifier(value)
        if exact in self._known or exact is None:
            return exact
        number = integer(exact)
        found = None if number is None else self._numbers.get(number)
        return self._names.get(value) if found is None and isinstance(value, str) else found


def integer(value: int | str) -> int | None:
    if isinstance(value, str):
        if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}(\.0*)?\s*", value):
            return None
        value = int(value.partition(".")[0])
    return value


def box_of(entry: dict[str, Any]) -> tuple[Box | None, str, Fault | None]:
    """The box of an annotation as xyxy, or None; what was read otherwise than COCO says, for a note; and why there is none.

    NaN and infinite numbers are left to validation.
    """
    value, reading = entry.get("bbox"), ""
    if value is None or value == []:
        found = _around_shape(entry.get("segmentation"))
        if found is None:
            return None, "", Fault("no bbox", "and no segmentation to take it from") if value is None else None
        return found, "no bbox, but a segmentation: the box around it is used", None
    if isinstance(value, str):
        value, reading = _numbers_of_text(value), "bbox is text"
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value, reading = value[0], "bbox is a list in a list"
    corners = entry.get("bbox_mode") == _XYXY and not isinstance(entry.get("bbox_mode"), bool)
    if isinstance(value, dict):
        keys = next((keys for keys in (*_SIDES, *_CORNERS) if all(key in value for key in keys)), ())
        value, corners, reading = [value[key] for key in keys], keys in _CORNERS, f"bbox has the keys {', '.join(keys)}"
    if not isinstance(value, list) or len(value) != 4 or not all(_is_number(v) for v in value):
        rotated = isinstance(value, list) and len(value) == 5 and all(_is_number(v) for v in value)
        return None, "", Fault("bbox has five numbers, as rotated boxes have", "", "export upright boxes") if rotated else None
    if any(isinstance(v, str) for v in value):
        reading = reading or "bbox is text"
    if entry.get("bbox_mode", _XYWH) not in (_XYXY, _XYWH):
        return None, "", Fault("bbox_mode is neither 0 nor 1", repr(entry["bbox_mode"])[:20], "write x, y, width and height in pixels")
    x, y, width, height = (as_number(v) for v in value)
    if corners:
        return (x, y, width, height), reading or "bbox_mode is 0: bbox is read as x1, y1, x2, y2", None
    return (x, y, x + width, y + height), reading, None


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        return not math.isnan(as_number(value))
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _numbers_of_text(text: str) -> list[Any] | None:
    """The numbers of "[1, 2, 3, 4]" or "1 2 3 4"."""
    return re.split(r"[\s,;]+", text.strip(" []()\t\n"))


def _around_shape(segmentation: object) -> Box | None:
    """The box around polygons or a run-length encoded mask."""
    if isinstance(segmentation, dict) and "counts" in segmentation:
        return _around_mask(segmentation)
    if not isinstance(segmentation, list):
        return None
    numbers = list(_flat(segmentation, 4))
    return around(numbers[::2], numbers[1::2]) if len(numbers) >= 6 else None


def _around_mask(mask: dict[str, Any]) -> Box | None:
    from hotcoco.mask import to_bbox

    try:
        x, y, width, height = map(float, to_bbox({"size": mask.get("size"), "counts": mask["counts"]}))
    except (ValueError, TypeError, OverflowError, KeyError):
        return None
    return x, y, x + width, y + height


def _flat(values: list[Any], depth: int) -> Iterator[float]:
    """The numbers of nested lists, in order; NaN for what is none."""
    for value in values:
        if isinstance(value, list) and depth:
            yield from _flat(value, depth - 1)
        elif isinstance(value, dict) and set(value) >= {"x", "y"}:
            yield from (as_number(value["x"]), as_number(value["y"]))
        else:
            yield as_number(value)
