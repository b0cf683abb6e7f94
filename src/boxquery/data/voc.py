"""Pascal VOC: one XML per image.

Layouts: ``Annotations/`` (or ``annotations/``) with ``JPEGImages/`` (or ``images/``) and perhaps ``ImageSets/Main/{train,val,test}.txt``;
XML files beside their images, flat or in ``train/``, ``valid/``, ``test/``. Class names are those found, sorted; the ids are their
positions, for VOC has none.

Coordinates are used as they are, as pixel edges. VOC's own are 1-based and inclusive, most tools' are 0-based; the difference is at
most a pixel, and files do not say which they are. ``difficult`` becomes ``ignore``. ``part`` elements are not read.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from boxquery.data.folder import Folder, folders, split_name, visible
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.raw import Fault, RawDataset, RawImage, RawObject, as_number
from boxquery.errors import UserError, one_line

_ANNOTATIONS = ("Annotations", "annotations", "Annotations/xmls", "annotations/xmls")
_IMAGES = ("JPEGImages", "images", "Images")
_XML = frozenset({".xml"})
_SPLITS = ("train", "val", "test")
_WITHOUT = Fault("has no annotation", remedy="export it, or take the image off the list")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find(root: Path) -> bool:
    """True if the folder is in one of the layouts."""
    if (root / "ImageSets").is_dir() or _annotations(root) is not None or visible(root, "*.xml"):
        return True
    return any(split_name(place.name) and visible(place, "*.xml") for place in folders(root))


def read(root: Path) -> RawDataset:
    """What the XML files say.

    Raises:
        UserError: no XML files, broken XML, no named object, an image listed twice, a path that leaves the folder.
    """
    folder = Folder(root)
    root, notes = folder.root, []
    place = _annotations(root)
    groups = _flat(folder) if place is None else _standard(folder, place, notes)
    if not any(file for group in groups.values() for file in group.files.values()):
        raise UserError(f"{root}: no .xml annotations; put them into Annotations/ or beside the images")
    trees = {file: _parse(folder, file) for group in groups.values() for file in group.files.values() if file is not None}
    names = sorted({name for tree in trees.values() for entry in tree.findall("object") if (name := _text(entry, "name"))})
    if not names:
        raise UserError(f"{root}: no categories: no object in the .xml files has a name")
    labels = {name: label for label, name in enumerate(names)}
    splits: dict[str, list[RawImage]] = {}
    for split, group in groups.items():
        images = _by_id(folder, group.images)
        splits[split] = [
            RawImage(
                image_id,
                None,
                f"{group.where} {image_id}",
                fault=_WITHOUT,
            )
            if file is None
            else _image(folder, image_id, file, trees[file], group.images, images, labels)
            for image_id, file in group.files.items()
        ]
    return RawDataset("voc", names, list(range(len(names))), splits, notes)


@dataclass(frozen=True, slots=True)
class _Group:
    """The annotation files of a split by image id (None: listed, but missing), the folder of its images, and what lists them."""

    files: dict[str, Path | None]
    images: Path
    where: str


def _annotations(root: Path) -> Path | None:
    """The folder of the XML files, if they have one of their own."""
    places = [root / name for name in _ANNOTATIONS]
    found = next((place for place in places if visible(place, "*.xml")), None)
    return places[0] if found is None and places[0].is_dir() else found


def _by_id(folder: Folder, place: Path, suffixes: frozenset[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """Files below a folder by their path there without suffix; of several, the first in alphabetical order."""
    files: dict[str, Path] = {}
    for file in folder.files(place, suffixes):
        files.setdefault(os.path.splitext(os.path.relpath(file, place))[0].replace(os.sep, "/"), file)
    return files


def _standard(folder: Folder, place: Path, notes: list[str]) -> dict[str, _Group]:
    """Annotation files by split, from the annotation folder and ``ImageSets/Main/``."""
    images = next((path for name in _IMAGES if (path := folder.root / name).is_dir()), folder.root)
    files = _by_id(folder, place, _XML)
    lists = folder.root / "ImageSets" / "Main"
    found = {name: path for name in _SPLITS if (path := lists / f"{name}.txt").is_file()}
    if "train" not in found and (lists / "trainval.txt").is_file():
        found = {"train": lists / "trainval.txt", **{name: path for name, path in found.items() if name == "test"}}
    if not found:
        return {"": _Group(dict(files), images, folder.show(place))}
    groups = {name: _Group(_listed(folder, path, files), images, folder.show(path)) for name, path in found.items()}
    left = set(files) - {image_id for group in groups.values() for image_id in group.files}
    if left:
        notes.append(f"{len(left)} annotation file(s) are in none of the lists in ImageSets/Main and are left out")
    return groups


def _listed(folder: Folder, path: Path, files: dict[str, Path]) -> dict[str, Path | None]:
    """The annotation files of the image ids in a list, one per line."""
    result: dict[str, Path | None] = {}
    for where, name in folder.lines(path):
        folder.join(folder.root / "Annotations", f"{name}.xml", where)
        if name not in files and Path(name).suffix.lower() in IMAGE_SUFFIXES | _XML:
            name = Path(name).with_suffix("").as_posix()
        if name in result:
            raise UserError(f"{where}: image id {name!r} is listed twice; remove one")
        result[name] = files.get(name)
    return result


def _flat(folder: Folder) -> dict[str, _Group]:
    """Annotation files beside their images, by split folder if there are any."""
    found = folder.splits(folder.root, lambda place: _by_id(folder, place, _XML))
    groups = {name: _Group(dict(files), place, folder.show(place)) for name, (place, files) in found.items()}
    return groups or {"": _Group(dict(_by_id(folder, folder.root, _XML)), folder.root, str(folder.root))}


def _parse(folder: Folder, file: Path) -> Element:
    where = folder.show(file)
    try:
        tree = fromstring(file.read_bytes())
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({one_line(error)})") from error
    except DefusedXmlException as error:
        raise UserError(f"{where}: XML entities are not accepted ({type(error).__name__}); remove the document type declaration") from error
    except (ParseError, ValueError, LookupError, RecursionError) as error:
        raise UserError(f"{where}: broken XML ({one_line(error)}); export it again") from error
    if tree.tag != "annotation":
        raise UserError(f"{where}: not a Pascal VOC annotation: its first element is <{tree.tag}>, not <annotation>")
    return tree


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _image(
    folder: Folder, image_id: str, file: Path, tree: Element, base: Path, images: dict[str, Path], labels: dict[str, int]
) -> RawImage:
    """The image of an annotation file: the one of the same name, or else the one that its ``filename`` names."""
    where = folder.show(file)
    filename = _text(tree, "filename")
    named = folder.join(base, filename, where) if filename else None
    path = images.get(image_id, named)
    if named is not None and named.stem == file.stem and named.is_file():
        path = named  # of a.jpg and a.png, the one that a.xml means
    objects = []
    for number, entry in enumerate(tree.findall("object"), 1):
        texts = [_text(entry, f"bndbox/{corner}") for corner in _CORNERS]
        x1, y1, x2, y2 = (as_number(text) for text in texts)
        name = _text(entry, "name")
        objects.append(
            RawObject(
                where=f"{where} object {number}",
                label=labels.get(name),
                box=None if any(map(math.isnan, (x1, y1, x2, y2))) else (x1, y1, x2, y2),
                raw=f"{name or 'no name'}, " + ", ".join(f"{corner} {text}" for corner, text in zip(_CORNERS, texts, strict=True)),
                ignore=_text(entry, "difficult").lower() in ("1", "true"),
            )
        )
    size = (as_number(_text(tree, "size/width")), as_number(_text(tree, "size/height")))
    return RawImage(image_id, path, where, size if size[0] > 0 and size[1] > 0 else None, objects)
