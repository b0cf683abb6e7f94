"""What the values of an object mean: text, corners, and boxes around what is in place of corners."""

from __future__ import annotations

import math
import re
from xml.etree.ElementTree import Element

from boxquery.data.raw import Box, around, as_number

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def text_of(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def numbers(texts: list[str]) -> Box | None:
    x1, y1, x2, y2 = (as_number(text) for text in texts)
    return None if any(map(math.isnan, (x1, y1, x2, y2))) else (x1, y1, x2, y2)


def box_in_place_of_corners(entry: Element) -> tuple[str, Box | None]:
    """What an object has in place of ``bndbox``, and the upright box around it."""
    for tag in ("robndbox", "rotated_bndbox", "rotated", "rbndbox"):
        if entry.find(tag) is not None:
            x, y, width, height, angle = (as_number(text_of(entry, f"{tag}/{name}")) for name in ("cx", "cy", "w", "h", "angle"))
            half_x = (width * abs(math.cos(angle)) + height * abs(math.sin(angle))) / 2 if math.isfinite(angle) else math.nan
            half_y = (width * abs(math.sin(angle)) + height * abs(math.cos(angle))) / 2 if math.isfinite(angle) else math.nan
            corners = (x - half_x, y - half_y, x + half_x, y + half_y)
            return "robndbox", corners if all(map(math.isfinite, corners)) and width > 0 and height > 0 else None
    polygon = entry.find("polygon")
    if polygon is None:
        return "", None
    xs, ys = ([(point.text or "").strip() for point in polygon.iter() if re.fullmatch(rf"{axis}\d*", point.tag)] for axis in "xy")
    return "polygon", around(xs, ys)
