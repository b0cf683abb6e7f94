"""Readers of annotation tools' own formats, each from one file's content to its images; what they share is in ``tools.py``."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from boxquery.data.folder import Folder, split_name, visible
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.raw import Box, Fault, around, as_number, stated_size

_LOOKS = 20  # lines of a text that are looked at, to tell what it is


@dataclass(slots=True)
class Shape:
    """An object as a tool has it: class name (None: it has none), box, or why there is none, and the annotation for messages."""

    where: str
    name: str | None
    box: Box | None
    raw: str
    fault: Fault | None = None


@dataclass(slots=True)
class Image:
    """An image as a tool has it; ``base`` is the folder that ``name`` is relative to.

    ``notes``: what the user should know of how it was read, in words that other images share, and how many boxes are left out.
    """

    where: str
    name: str
    base: Path
    size: tuple[float, float] | None = None
    shapes: list[Shape] = field(default_factory=list)
    split: str = ""
    relative: bool = False
    notes: list[tuple[str, int]] = field(default_factory=list)


def _numbers(*values: object) -> Box | None:
    numbers = [as_number(v) for v in values]
    return None if len(numbers) != 4 or any(map(math.isnan, numbers)) else (numbers[0], numbers[1], numbers[2], numbers[3])


def _sized(x: object, y: object, width: object, height: object) -> Box | None:
    numbers = _numbers(x, y, width, height)
    return numbers and (numbers[0], numbers[1], numbers[0] + numbers[2], numbers[1] + numbers[3])


def _centred(x: object, y: object, width: object, height: object) -> Box | None:
    n = _numbers(x, y, width, height)
    return n and (n[0] - n[2] / 2, n[1] - n[3] / 2, n[0] + n[2] / 2, n[1] + n[3] / 2)


def _not_a_box(kind: object) -> Fault:
    return Fault(f"a {kind} is not a box", "", "annotate with rectangles")


def _text(value: object) -> str | None:
    """A class name: text, or a number as text."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    return str(value).strip() or None


def _via_shape(where: str, shape: dict[str, Any], attributes: dict[str, Any], key: str | None) -> Shape:
    value = attributes.get(key) if key else None
    if isinstance(value, dict):  # check boxes: {"cat": true}
        value = next((name for name, on in value.items() if on), None)
    box, fault = None, None
    match kind := shape.get("name"):
        case "rect":
            box = _sized(*(shape.get(side) for side in ("x", "y", "width", "height")))
        case "circle" | "ellipse":
            rx, ry = shape.get("rx", shape.get("r")), shape.get("ry", shape.get("r"))
            box = _centred(shape.get("cx"), shape.get("cy"), 2 * as_number(rx), 2 * as_number(ry))
        case "polygon" | "polyline":
            box = around(shape.get("all_points_x", ()), shape.get("all_points_y", ()))
        case _:
            fault = _not_a_box(kind)
    return Shape(where, _text(value), box, f"{value}, {json.dumps(shape)}", fault)


def _via_key(attributes: Sequence[dict[str, Any]]) -> str | None:
    """The attribute that names the class: one of the usual names, or else the one that most regions have."""
    counts = Counter(key for entry in attributes for key, value in entry.items() if value not in ("", {}, None))
    usual = [key for key in counts if key.lower() in ("class", "label", "name", "category", "type", "object", "class_name")]
    return max(usual or counts, key=lambda key: counts[key], default=None)


def via(folder: Folder, file: Path, content: Any) -> Iterator[Image]:
    where, entries = folder.show(file), via_entries(content)
    regions = [(list(r.values()) if isinstance(r := entry.get("regions", []), dict) else r) for entry in entries]
    key = _via_key([region.get("region_attributes", {}) for group in regions for region in group])
    for entry, group in zip(entries, regions, strict=True):
        here = f"{where} {entry['filename']}"
        shapes = [
            _via_shape(f"{here} region {i}", region.get("shape_attributes", {}), region.get("region_attributes", {}), key)
            for i, region in enumerate(group)
        ]
        yield Image(here, str(entry["filename"]), file.parent, None, shapes)


def via_entries(content: Any) -> list[dict[str, Any]]:
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else {}
    values = list(entries.values()) if isinstance(entries, dict) else []
    return values if all(isinstance(entry, dict) and "filename" in entry and "regions" in entry for entry in values) else []


def via_csv(folder: Folder, file: Path, rows: list[dict[str, str]]) -> Iterator[Image]:
    where, name = folder.show(file), "filename" if "filename" in rows[0] else "#filename"
    regions = [(json.loads(row["region_shape_attributes"] or "{}"), json.loads(row["region_attributes"] or "{}")) for row in rows]
    key = _via_key([attributes for _, attributes in regions])
    images: dict[str, Image] = {}
    for number, (row, (shape, attributes)) in enumerate(zip(rows, regions, strict=True), 2):
        image = images.setdefault(row[name], Image(f"{where} {row[name]}", row[name], file.parent))
        if shape:
            image.shapes.append(_via_shape(f"{where} line {number}", shape, attributes, key))
    yield from images.values()


def labelme(folder: Folder, file: Path, content: Any) -> Iterator[Image]:
    where = folder.show(file)
    name = os.path.basename(str(content["imagePath"]).replace("\\", "/"))
    image = Image(where, name, file.parent, stated_size(content.get("imageWidth"), content.get("imageHeight")))
    if os.path.splitext(name)[0] != file.stem and (beside := _beside(file)):
        image.name = beside
        image.notes.append(("the file beside the annotations is used, not the one that imagePath names", 0))
    for number, shape in enumerate(content["shapes"]):
        points, kind = shape["points"], shape.get("shape_type") or "polygon"
        box, fault = around((p[0] for p in points), (p[1] for p in points)), None
        if kind == "circle" and len(points) == 2:
            radius = math.dist(points[0], points[1])
            box = _centred(points[0][0], points[0][1], 2 * radius, 2 * radius)
        elif kind not in ("rectangle", "polygon", "linestrip", "rotation"):
            box, fault = None, _not_a_box(kind)
        image.shapes.append(Shape(f"{where} shape {number}", _text(shape.get("label")), box, f"{shape.get('label')}, {points}", fault))
    yield image


def _beside(file: Path) -> str:
    """The name of the image beside an annotation file that is called like it, or ""."""
    alike = (file.with_suffix(ending) for suffix in sorted(IMAGE_SUFFIXES) for ending in (suffix, suffix.upper()))
    return next((path.name for path in alike if path.is_file()), "")


def supervisely(folder: Folder, file: Path, content: Any) -> Iterator[Image]:
    where, name = folder.show(file), file.name.removesuffix(".json")
    image = Image(where, name, file.parent.parent / "img", stated_size(content["size"].get("width"), content["size"].get("height")))
    for number, entry in enumerate(content["objects"]):
        kind, points = entry.get("geometryType"), (entry.get("points") or {}).get("exterior") or []
        box, fault = around((p[0] for p in points), (p[1] for p in points)), None
        if kind not in ("rectangle", "polygon", None):
            box, fault = None, _not_a_box(kind)
        image.shapes.append(
            Shape(f"{where} object {number}", _text(entry.get("classTitle")), box, f"{entry.get('classTitle')}, {points}", fault)
        )
    yield image


def cvat(folder: Folder, file: Path, tree: Element) -> Iterator[Image]:
    where = folder.show(file)
    if tree.find("track") is not None:
        raise ValueError("tracks of a video; choose 'CVAT for images 1.1'")
    for entry in tree.findall("image"):
        name = entry.get("name", "")
        here = f"{where} {name}"
        image = Image(
            here, name, file.parent, stated_size(entry.get("width"), entry.get("height")), split=split_name(entry.get("subset", "")) or ""
        )
        for number, shape in enumerate(entry):
            if shape.tag not in ("tag", "attribute"):
                box, fault = None, None
                if shape.tag == "box" and as_number(shape.get("rotation", "0")) % 360 == 0:
                    box = _numbers(*(shape.get(side) for side in ("xtl", "ytl", "xbr", "ybr")))
                elif shape.tag in ("polygon", "polyline"):
                    points = [pair.split(",") for pair in shape.get("points", "").split(";")]
                    box = around((p[0] for p in points), (p[-1] for p in points))
                elif shape.tag == "ellipse":
                    box = _centred(shape.get("cx"), shape.get("cy"), 2 * as_number(shape.get("rx")), 2 * as_number(shape.get("ry")))
                else:
                    fault = _not_a_box("rotated box" if shape.tag == "box" else shape.tag)
                text = ", ".join(f"{key} {value}" for key, value in shape.attrib.items())
                image.shapes.append(Shape(f"{here} {shape.tag} {number}", _text(shape.get("label")), box, text, fault))
        yield image


def label_studio(folder: Folder, file: Path, content: Any) -> Iterator[Image]:
    where = folder.show(file)
    for number, task in enumerate(content):
        data = task.get("data", task)
        name = next((value for value in (data.get("image"), data.get("img"), *data.values()) if isinstance(value, str)), "")
        here = f"{where} task {task.get('id', number)}"
        image = Image(here, name, file.parent, relative=True)
        done, *others = [entry["result"] for entry in task.get("annotations", ()) if not entry.get("was_cancelled")] or [[]]
        if others:
            boxes = sum(len(_regions(other)) for other in others)
            image.notes.append(("several annotations: the first is used, the others are left out", boxes))
        found = done if "data" in task else next((v for v in task.values() if isinstance(v, list) and v and "x" in v[0]), [])
        for i, (value, kind) in _regions(found).items():
            names = next((v for key, v in value.items() if key.endswith("labels") and isinstance(v, list) and v), [None])
            box = _sized(*(as_number(value.get(side)) / 100 for side in ("x", "y", "width", "height")))
            if points := value.get("points"):
                box = around((p[0] / 100 for p in points), (p[1] / 100 for p in points))
            turned = as_number(value.get("rotation", 0)) % 360 != 0
            fault = _not_a_box("rotated box" if turned else kind) if turned or box is None else None
            image.shapes.append(Shape(f"{here} result {i}", _text(names[0]), None if fault else box, json.dumps(value), fault))
        yield image


def _regions(results: Sequence[dict[str, Any]]) -> dict[int, tuple[dict[str, Any], str]]:
    """The objects of an annotation by their position: value and kind. A shape and its labels in two entries of one id are one object."""
    regions: dict[int, tuple[dict[str, Any], str]] = {}
    known: dict[str, int] = {}
    for i, entry in enumerate(results):
        value, kind = entry.get("value", entry), str(entry.get("type", "rectanglelabels"))
        if kind in ("choices", "textarea", "rating", "relation"):
            continue
        key = json.dumps([entry.get("id"), *(value.get(side) for side in ("x", "y", "width", "height", "points"))])
        if entry.get("id") is not None and key in known:
            regions[known[key]] = ({**regions[known[key]][0], **value}, regions[known[key]][1])
            continue
        known[key] = i
        regions[i] = value, kind
    return regions


def createml(folder: Folder, file: Path, content: Any) -> Iterator[Image]:
    where = folder.show(file)
    for entry in content:
        name = str(entry.get("image", entry.get("imagefilename")))
        here = f"{where} {name}"
        shapes = [
            Shape(
                f"{here} annotation {i}",
                _text(shape.get("label")),
                _centred(*(shape["coordinates"].get(side) for side in ("x", "y", "width", "height"))),
                json.dumps(shape),
            )
            for i, shape in enumerate(entry.get("annotations", entry.get("annotation")))
        ]
        yield Image(here, name, file.parent, None, shapes)


_NAMES = ("filename", "file_name", "image_name", "image_path", "image", "path")
_CLASSES = ("class", "class_name", "label", "label_name", "category", "name")
_BOXES = (
    ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"), ("x1", "y1", "x2", "y2"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"), ("x", "y", "w", "h"),
)  # fmt: skip


def csv_columns(row: dict[str, str]) -> tuple[str, str, tuple[str, ...]] | None:
    """The columns of a CSV with a row per box: file name, class ("" if it has none), and the four of the box; None if it is another."""
    name, label = (next((key for key in keys if key in row), "") for keys in (_NAMES, _CLASSES))
    box = next((keys for keys in _BOXES if set(keys) <= set(row)), None)
    return (name, label, box) if name and box else None


def boxes_csv(folder: Folder, file: Path, rows: list[dict[str, str]]) -> Iterator[Image]:
    where, columns = folder.show(file), csv_columns(rows[0])
    if columns is None:
        raise ValueError("no columns of file name, class and box")
    images: dict[str, Image] = {}
    for number, row in enumerate(rows, 2):
        name, label, values = row[columns[0]], row.get(columns[1]), [row[key] for key in columns[2]]
        size = stated_size(row.get("width", row.get("image_width")), row.get("height", row.get("image_height")))
        image = images.setdefault(name, Image(f"{where} {name}", name, file.parent, size))
        if any(values):
            box = _sized(*values) if columns[2][2].endswith(("w", "width")) else _numbers(*values)
            image.shapes.append(Shape(f"{where} line {number}", _text(label), box, f"{label}, {values}"))
    yield from images.values()


_BOX_LINE = re.compile(r"(\S.*?\.\w{2,5})((?:\s+[-+.\d]+(?:,[-+.\d]+){3},\d+)+)")


def is_box_list(content: Any) -> bool:
    """True for lines of an image and its boxes: ``a.jpg 10,20,50,60,0 70,20,90,40,1``."""
    return isinstance(content, list) and any(isinstance(line, str) and _BOX_LINE.match(line) for line in content[:_LOOKS])


def box_list(folder: Folder, file: Path, lines: list[str]) -> Iterator[Image]:
    where, images = folder.show(file), dict[str, Image]()
    lists = [path for path in visible(file.parent, "*.txt") if "class" in path.stem.lower()]
    names = [line for _, line in folder.lines(lists[0])] if len(lists) == 1 else []
    for number, line in enumerate(map(str.strip, lines), 1):
        found = _BOX_LINE.fullmatch(line)
        name, here = found[1] if found else line, f"{where} line {number}"
        if name:
            image = images.setdefault(name, Image(here, name, file.parent, split=split_name(file.stem) or ""))
            for box in found[2].split() if found else ():
                *corners, label = box.split(",")
                known = names[int(label)] if int(label) < len(names) else None if names else f"class {label}"
                image.shapes.append(Shape(here, known, _numbers(*corners), box))
    yield from images.values()
