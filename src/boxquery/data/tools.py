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
import itertools
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
from boxquery.data.folder import Folder, decoded, path_parts, read_bytes, split_of
from boxquery.data.raw import RawDataset, RawImage, RawObject
from boxquery.data.tool_readers import Image
from boxquery.errors import UserError, count, one_line, some

_HEAD = 4096  # bytes that tell what an XML or CSV file is
_LARGEST = 256 << 20  # bytes of a JSON file that is read to see what it is
_TRIED = 100  # files of a folder with one ending that are looked at
_PER_IMAGE = ("labelme", "supervisely")  # tools that write a file per image
_NEUTRAL = "object"
_SUFFIXES = (".json", ".xml", ".csv", ".ndjson", ".jsonl", ".manifest", ".tfrecord", ".record", ".txt")


@dataclass(frozen=True, slots=True)
class _Tool:
    """A format: the tool's name, whether it is in a file, and its images there; ``read`` is None where it is only recognised."""

    title: str
    matches: Callable[[Any], bool]
    read: Callable[[Folder, Path, Any], Iterable[Image]] | None = None
    advice: str = "export it as COCO, Pascal VOC or YOLO"


def find(root: Path) -> dict[str, list[Path]]:
    """The files of tools below a folder, by tool, those that can be read first, then the one of most files; {} if there are none.

    Under "" is what could be a tool's file by its ending but is of no known format. Links that leave the folder are not opened.
    """
    folder = Folder(root)
    groups: dict[tuple[Path, str], list[Path]] = {}
    for file in folder.walk(folder.root):
        if (suffix := file.suffix.lower()) in _SUFFIXES and file.is_file() and folder.holds(file):
            groups.setdefault((file.parent, suffix), []).append(file)
    found: dict[str, list[Path]] = {}
    for files in groups.values():
        any_known = False
        for number, file in enumerate(files):
            if number >= _TRIED and not any_known:
                break
            kind = recognise(file) or ""
            any_known = any_known or kind != ""
            if kind in _PER_IMAGE:
                found.setdefault(kind, []).extend(files[number:])  # looked at when they are read
                break
            if kind or file.suffix.lower() != ".txt":
                found.setdefault(kind, []).append(file)
    order = {kind: (kind != "", _readable(kind), len(files)) for kind, files in found.items()}
    return {kind: found[kind] for kind in sorted(found, key=lambda kind: order[kind], reverse=True)} if found.keys() - {""} else {}


def _readable(kind: str) -> bool:
    return kind in _TOOLS and _TOOLS[kind].read is not None


def recognise(file: Path) -> str | None:
    """The key of the tool that wrote a file, or None."""
    if file.suffix.lower() in (".tfrecord", ".record"):
        return "tfrecord"
    try:
        content = _content(Folder(file.parent), file, whole=False)
    except (OSError, ValueError, RecursionError):
        return None
    return next((kind for kind, tool in _TOOLS.items() if tool.matches(content)), None)


def message(kind: str) -> str:
    """What a file is and what to do, for a format that is not read."""
    return f"this is {_TOOLS[kind].title}, which is not read; {_TOOLS[kind].advice}"


def read(root: Path, found: dict[str, list[Path]], images: Path | None = None) -> RawDataset:
    """What the files say. Of several tools that can be read the one with most boxes is, and a note says what the others have.

    Args:
        root: the data folder.
        found: files by tool, as from ``find``.
        images: the folder of the images, if it is known; otherwise they are looked for in the data folder.

    Raises:
        UserError: a format that is only recognised, a broken file, no object, a path that leaves the folder.
    """
    folder, first = Folder(root), next(iter(found))
    if not _readable(first):
        raise UserError(f"{folder.show(found[first][0])}: {message(first)}")
    notes: list[str] = []
    contents = {first: _images(folder, first, found[first], notes)}
    for kind in filter(_readable, list(found)[1:]):
        try:
            contents[kind] = _images(folder, kind, found[kind], notes)
        except UserError as error:
            notes.append(f"left out: {error.line()}")
    best = max(contents, key=lambda kind: _boxes(contents[kind]))
    for kind, files in found.items():
        if kind != best and (kind in contents or not _readable(kind)):
            title = _TOOLS[kind].title if kind else "of no format that is known"
            boxes = f" with {count(_boxes(contents[kind]), 'box', 'boxes')}" if kind in contents else ""
            notes.append(f"{count(len(files), 'file')} ({title}){boxes} left out: {some(map(folder.show, files))}")
    raw = _assembled(folder, best, contents[best], images, len(found[best]) > 1 and best not in _PER_IMAGE)
    raw.notes += [*notes, *folder.notes()]
    return raw


def _boxes(found: list[tuple[Path, Image]]) -> int:
    return sum(len(image.shapes) for _, image in found)


def _images(folder: Folder, kind: str, files: Sequence[Path], notes: list[str]) -> list[tuple[Path, Image]]:
    """The images of a tool's files, each with its file; of many files with an image each those that are broken are left out with a note."""
    tool = _TOOLS[kind]
    assert tool.read is not None
    found: list[tuple[Path, Image]] = []
    others: list[Path] = []
    faults: list[UserError] = []
    for file in (Path(os.path.abspath(file)) for file in files):
        where = folder.show(file)
        folder.check_link(file, where)
        try:
            content = _content(folder, file, whole=True)
            if tool.matches(content):
                found += [(file, image) for image in tool.read(folder, file, content)]
            else:
                others.append(file)
        except OSError as error:
            faults.append(UserError(f"{where}: cannot be read ({one_line(error)})"))
        except DefusedXmlException as error:
            faults.append(UserError(f"{where}: XML entities are not accepted ({type(error).__name__}); export it again"))
        except (ValueError, RecursionError, ParseError, csv.Error, KeyError, TypeError, AttributeError, IndexError) as error:
            faults.append(UserError(f"{where}: not {tool.title} as it should be ({one_line(error)}); export it again"))
        if faults and (kind not in _PER_IMAGE or len(files) == 1):
            raise faults[0]
    if faults and not found:
        raise faults[0]
    if faults:
        notes.append(f"{len(faults)} of {len(files)} files left out, with their images: {faults[0].line()}")
    if others:
        notes.append(f"{len(others)} of {len(files)} files are not {tool.title} and are left out: {some(map(folder.show, others))}")
    return found


def _assembled(folder: Folder, kind: str, found: list[tuple[Path, Image]], images: Path | None, by_file: bool) -> RawDataset:
    """The images with their files and splits; ``by_file``: the names of several files may say which split each is."""
    title = _TOOLS[kind].title
    names = sorted({shape.name for _, image in found for shape in image.shapes if shape.name})
    raw = RawDataset(kind, names, list(range(len(names))), {}, [f"read as {title}"])
    if not names and not any(image.shapes for _, image in found):
        raise UserError(f"{folder.root}: no categories: {title} has no objects")
    if not names:
        raw.names, raw.ids = [_NEUTRAL], [0]
        raw.notes.append(f"no object in {title} has a class: all are of one class, {_NEUTRAL!r}")
    labels: dict[str | None, int] = {name: label for label, name in enumerate(names)}
    if not names:
        labels[None] = 0
    finder = ImageFinder(Folder(images or folder.root))
    by_path: dict[tuple[str, Path], RawImage] = {}
    twice: list[str] = []
    equal = 0
    for file, image in found:
        split = image.split or _split_of(folder, file, image, by_file)
        path = finder.find(images or image.base, image.name, image.where, split) if image.name else None
        objects = [RawObject(shape.where, labels.get(shape.name), shape.box, shape.raw, fault=shape.fault) for shape in image.shapes]
        if path is not None and (known := by_path.get((split, path))) is not None and known.relative == image.relative:
            have = {(entry.label, entry.box) for entry in known.objects}
            new = [entry for entry in objects if entry.box is None or (entry.label, entry.box) not in have]
            equal += len(objects) - len(new)
            known.objects += new
            twice.append(image.where)
            continue
        raw_image = RawImage(image.name, path, image.where, image.size, objects, image.relative)
        if path is not None:
            by_path[split, path] = raw_image
        raw.splits.setdefault(split, []).append(raw_image)
    if twice:
        again = f", without {count(equal, 'box that is', 'boxes that are')} the same" if equal else ""
        raw.notes.append(f"{count(len(twice), 'image')} annotated again, and the boxes put together{again}: {twice[0]}")
    _name_images(finder.folder, raw)
    _place_the_rest(raw)
    raw.notes += _notes([image for _, image in found])
    finder.finish(raw)
    return raw


def _name_images(folder: Folder, raw: RawDataset) -> None:
    """Give every image an id that no other has: its name without ending, or else its path below the folder of the images."""
    images = [image for group in raw.splits.values() for image in group]
    stems = Counter(_stem(str(image.id)) for image in images)
    paths = Counter(_stem(folder.show(image.path)) for image in images if image.path is not None)
    for image in images:
        stem = _stem(str(image.id))
        if stems[stem] > 1 and image.path is not None:
            shown = folder.show(image.path)
            stem = _stem(shown) if paths[_stem(shown)] == 1 else shown
        image.id = stem


def _place_the_rest(raw: RawDataset) -> None:
    """Where only some images are in a split, the others are trained on, unless they are in one by another file."""
    if "" not in raw.splits or len(raw.splits) == 1:
        return
    placed = {image.path for split, images in raw.splits.items() if split for image in images}
    rest = raw.splits.pop("")
    again = [image for image in rest if image.path in placed]
    rest = [image for image in rest if image.path not in placed]
    if again:
        boxes = sum(len(image.objects) for image in again)
        raw.notes.append(f"{count(len(again), 'image')} in a split and outside of one: left out there, with {count(boxes, 'box', 'boxes')}")
    if rest:
        raw.splits["train"] = [*raw.splits.get("train", []), *rest]
        raw.notes.append(f"{count(len(rest), 'image')} of no split: used for training")


def _notes(images: Iterable[Image]) -> list[str]:
    """One line per kind of thing that readers note of images: how many, and how many boxes are left out."""
    kinds: dict[str, list[int]] = {}
    for image in images:
        for kind, boxes in image.notes:
            kinds.setdefault(kind, []).append(boxes)
    return [
        f"{count(len(numbers), 'image')}: {kind}" + (f" ({count(sum(numbers), 'box', 'boxes')})" if any(numbers) else "")
        for kind, numbers in kinds.items()
    ]


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).with_suffix("").as_posix() if name.strip("/.\\") else name


def _split_of(folder: Folder, file: Path, image: Image, by_file: bool) -> str:
    """The split that the folders of an image's name speak of, or else the name of its file, or else the folders above."""
    named = path_parts(image.name)[:-1]
    places = [place.relative_to(folder.root) for place in (image.base, file.parent) if place.is_relative_to(folder.root)]
    above = [part for place in places for part in place.parts]
    words = [*named, *([file.stem] if by_file else ()), *above]
    return split_of(words)


def _content(folder: Folder, file: Path, *, whole: bool) -> Any:
    """JSON as it is, a CSV's rows, a text's lines, an XML file's root; unless ``whole``, only as much as tells what it is."""
    match file.suffix.lower():
        case ".json" if file.stat().st_size <= _LARGEST or whole:
            return json.loads(read_bytes(file))
        case ".xml" if whole:
            return fromstring(read_bytes(file))
        case ".xml":
            return Element("annotations") if b"<annotations" in read_bytes(file, _HEAD) else None
        case ".csv":
            text = folder.text(file) if whole else decoded(read_bytes(file, _HEAD).rpartition(b"\n")[0])[0]
            head = text.partition("\n")[0]
            rows = csv.reader(io.StringIO(text), delimiter=max(",;\t|", key=head.count))
            keys = [key.strip() for key in next(rows, [])]
            return [dict(itertools.zip_longest(keys, row[: len(keys)])) for row in rows if any(row)]
        case ".txt":
            return (folder.text(file) if whole else decoded(read_bytes(file, _HEAD))[0]).splitlines()
        case _:
            return json.loads(read_bytes(file, _LARGEST).partition(b"\n")[0])
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
