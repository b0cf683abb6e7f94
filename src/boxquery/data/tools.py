"""Annotation tools' own formats: those with a short reader become a data set, of the others it is said what to export instead.

Read: VIA (project JSON, annotations JSON and CSV), labelme, Supervisely (``meta.json`` with ``ann/``), CVAT for images (XML), Label Studio
(JSON and JSON-MIN), CreateML, CSV with a row per box, as TensorFlow's tutorials and makesense write it, and
keras-yolo3's lists of images with their boxes. Rectangles are read exactly; a
polygon, circle or ellipse becomes the box around it; other shapes are named and skipped. Classes are the names found, sorted; ids are their
positions.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from boxquery.data import tool_readers
from boxquery.data.find import ImageFinder
from boxquery.data.folder import Folder, folders, path_parts, split_of, visible
from boxquery.data.raw import RawDataset, RawImage, RawObject
from boxquery.data.tool_readers import Image
from boxquery.errors import UserError, one_line

_HEAD = 4096  # bytes that tell what an XML or CSV file is
_LARGEST = 256 << 20  # bytes of a JSON file that is read to see what it is
_SAMPLE = 3  # files of a folder that are looked at
_DEPTH = 3
_SUFFIXES = (".json", ".xml", ".csv", ".ndjson", ".jsonl", ".manifest", ".tfrecord", ".record", ".txt")


@dataclass(frozen=True, slots=True)
class _Tool:
    """A format: the tool's name, whether it is in a file, and its images there; ``read`` is None where it is only recognised."""

    title: str
    matches: Callable[[Any], bool]
    read: Callable[[Folder, Path, Any], Iterable[Image]] | None = None
    advice: str = "export it as COCO, Pascal VOC or YOLO"


def find(root: Path) -> tuple[str, list[Path]] | None:
    """The tool whose format a data folder is in, and the files; None if there is none that is known."""
    level = [root]
    for _ in range(_DEPTH):
        found: dict[str, list[Path]] = {}
        for place in level:
            files = [file for file in visible(place) if file.suffix.lower() in _SUFFIXES and file.is_file()]
            for suffix in _SUFFIXES:
                alike = [file for file in files if file.suffix.lower() == suffix]
                kinds = [kind for file in alike[:_SAMPLE] if (kind := recognise(file)) is not None]
                if kinds:
                    found.setdefault(kinds[0], []).extend(file for file in alike if len(alike) > _SAMPLE or recognise(file) == kinds[0])
        if found:
            return max(found.items(), key=lambda pair: (_TOOLS[pair[0]].read is not None, len(pair[1])))
        level = [inner for place in level for inner in folders(place)]
    return None


def recognise(file: Path) -> str | None:
    """The key of the tool that wrote a file, or None."""
    if file.suffix.lower() in (".tfrecord", ".record"):
        return "tfrecord"
    try:
        content = _content(file, whole=False)
    except (OSError, ValueError, RecursionError):
        return None
    return next((kind for kind, tool in _TOOLS.items() if tool.matches(content)), None)


def message(kind: str) -> str:
    """What a file is and what to do, for a format that is not read."""
    return f"this is {_TOOLS[kind].title}, which is not read; {_TOOLS[kind].advice}"


def read(root: Path, kind: str, files: Sequence[Path], images: Path | None = None) -> RawDataset:
    """What the files say.

    Args:
        root: the data folder.
        kind, files: as from ``find``.
        images: the folder of the images, if it is known; otherwise they are looked for in the data folder.

    Raises:
        UserError: a format that is only recognised, a broken file, no named object, a path that leaves the folder.
    """
    folder, tool = Folder(root), _TOOLS[kind]
    if tool.read is None:
        raise UserError(f"{folder.show(files[0])}: {message(kind)}")
    found: list[Image] = []
    others: list[str] = []
    for file in (Path(os.path.abspath(file)) for file in files):
        where = folder.show(file)
        folder.check_link(file, where)
        try:
            content = _content(file, whole=True)
            if tool.matches(content):
                found += tool.read(folder, file, content)
            else:
                others.append(where)
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({one_line(error)})") from error
        except DefusedXmlException as error:
            raise UserError(f"{where}: XML entities are not accepted ({type(error).__name__}); export it again") from error
        except (ValueError, RecursionError, ParseError, csv.Error, KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{where}: not {tool.title} as it should be ({one_line(error)}); export it again") from error
    raw = _assembled(folder, kind, found, images)
    if others:
        raw.notes.append(f"{len(others)} of {len(files)} files are not {tool.title} and are left out: {others[0]}")
    return raw


def _assembled(folder: Folder, kind: str, found: list[Image], images: Path | None) -> RawDataset:
    title = _TOOLS[kind].title
    names = sorted({shape.name for image in found for shape in image.shapes if shape.name})
    if not names:
        raise UserError(f"{folder.root}: no categories: no object in {title} has a class")
    labels = {name: label for label, name in enumerate(names)}
    raw = RawDataset(kind, names, list(range(len(names))), {}, [f"read as {title}"])
    finder = ImageFinder(Folder(images or folder.root))
    stems = Counter(_stem(image.name) for image in found)
    for image in found:
        split = image.split or _split_of(folder, image)
        path = finder.find(images or image.base, image.name, image.where, split) if image.name else None
        objects = [
            RawObject(shape.where, None if shape.name is None else labels[shape.name], shape.box, shape.raw, fault=shape.fault)
            for shape in image.shapes
        ]
        image_id = _stem(image.name) if stems[_stem(image.name)] == 1 else image.name
        raw.splits.setdefault(split, []).append(RawImage(image_id, path, image.where, image.size, objects, image.relative))
    finder.finish(raw)
    return raw


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).with_suffix("").as_posix() if name.strip("/.\\") else name


def _split_of(folder: Folder, image: Image) -> str:
    parts = image.base.relative_to(folder.root).parts if image.base.is_relative_to(folder.root) else ()
    return split_of((*path_parts(image.name)[:-1], *parts))


def _content(file: Path, *, whole: bool) -> Any:
    """JSON as it is, a CSV's rows, a text's lines, an XML file's root; unless ``whole``, only as much as tells what it is."""
    match file.suffix.lower():
        case ".json" if file.stat().st_size <= _LARGEST or whole:
            return json.loads(file.read_bytes())
        case ".xml" if whole:
            return fromstring(file.read_bytes())
        case ".xml":
            with file.open("rb") as stream:
                head = stream.read(_HEAD)
            return Element("annotations") if b"<annotations" in head else None
        case ".csv":
            with file.open("rb") as stream:
                text = stream.read(-1 if whole else _HEAD).decode("utf-8-sig", "strict" if whole else "ignore")
            return list(csv.DictReader(io.StringIO(text)))
        case ".txt":
            with file.open("rb") as stream:
                return stream.read(-1 if whole else _HEAD).decode("utf-8-sig", "strict" if whole else "ignore").splitlines()
        case _:
            with file.open("rb") as stream:
                return json.loads(stream.readline(_LARGEST))
    return None


def _first(content: Any) -> dict[str, Any]:
    """The first entry of a list of objects, or {}."""
    return content[0] if isinstance(content, list) and content and isinstance(content[0], dict) else {}


def _dict(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}


_TOOLS = {
    "via": _Tool("VIA's annotations", lambda c: bool(tool_readers.via_entries(c)), tool_readers.via),
    "via-csv": _Tool("VIA's CSV", lambda c: "region_shape_attributes" in _first(c), tool_readers.via_csv),
    "labelme": _Tool("labelme's JSON", lambda c: isinstance(_dict(c).get("shapes"), list) and "imagePath" in c, tool_readers.labelme),
    "supervisely": _Tool(
        "Supervisely's JSON",
        lambda c: isinstance(_dict(c).get("objects"), list) and isinstance(c.get("size"), dict),
        tool_readers.supervisely,
    ),
    "cvat": _Tool("CVAT for images", lambda c: isinstance(c, Element) and c.tag == "annotations", tool_readers.cvat),
    "label-studio": _Tool(
        "Label Studio's JSON",
        lambda c: (isinstance(_first(c).get("data"), dict) and "annotations" in _first(c)) or "annotator" in _first(c),
        tool_readers.label_studio,
    ),
    "createml": _Tool(
        "CreateML's JSON",
        lambda c: (
            any(isinstance(_first(c).get(key), list) for key in ("annotations", "annotation"))
            and any(isinstance(_first(c).get(key), str) for key in ("image", "imagefilename"))
        ),
        tool_readers.createml,
    ),
    "csv": _Tool("a CSV of boxes", lambda c: tool_readers.csv_columns(_first(c)) is not None, tool_readers.boxes_csv),
    "box-lists": _Tool("lists of images with boxes, as keras-yolo3 reads them", tool_readers.is_box_list, tool_readers.box_list),
    "coco-results": _Tool(
        "a COCO results file (predictions)", lambda c: {"image_id", "category_id", "score"} <= set(_first(c)), None, "give the annotations"
    ),
    "datumaro": _Tool("a Datumaro export", lambda c: isinstance(_dict(c).get("items"), list) and "categories" in c),
    "fiftyone": _Tool("a FiftyOne export in its own format", lambda c: isinstance(_dict(c).get("samples"), list)),
    "via-3": _Tool("a project of VIA 3", lambda c: {"project", "metadata", "file"} <= set(_dict(c)), None, "export it as COCO from VIA 2"),
    "labelbox": _Tool("a Labelbox export", lambda c: "data_row" in {**_first(c), **_dict(c)} or "Labeled Data" in _first(c)),
    "manifest": _Tool("a SageMaker manifest", lambda c: "source-ref" in _dict(c)),
    "vertex": _Tool("an import file of Vertex AI", lambda c: "imageGcsUri" in _dict(c)),
    "open-images": _Tool("a CSV of Open Images", lambda c: {"ImageID", "LabelName", "XMin"} <= set(_first(c))),
    "tfrecord": _Tool("a TFRecord", lambda c: False),
}
