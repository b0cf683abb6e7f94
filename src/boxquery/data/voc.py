"""Pascal VOC: one XML per image.

Layouts: a folder of XML files (``Annotations/``, ``annots/``, ``labels/``, ``xml/``, ...) beside a folder of images; folders named after
splits, above or below these; XML files beside their images. Splits are named by lists (``ImageSets/Main/train.txt``), else by folders.
Class names are those found, sorted; the ids are their positions, for VOC has none.

Coordinates are used as they are, as pixel edges. VOC's own are 1-based and inclusive, most tools' are 0-based; the difference is at
most a pixel, and files do not say which they are. A rotated box (roLabelImg) or a polygon without ``bndbox`` becomes the upright box
around it. ``difficult`` becomes ``ignore``. ``part`` elements are not read.
"""

from __future__ import annotations

import codecs
import itertools
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from boxquery.data.find import ImageFinder
from boxquery.data.folder import Folder, folders, is_of_masks, read_bytes, split_name, split_of, split_words, visible
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.raw import Box, Fault, RawDataset, RawImage, RawObject, as_number, stated_size
from boxquery.errors import UserError, count, one_line

_FOLDER = re.compile(r"annotations?|annots?|annos?|anns?|labels?|xmls?|annotations?_?xmls?|voc_?labels?|bbox(es)?", re.IGNORECASE)
_IMAGES = re.compile(r"jpeg_?images?|images?|imgs?|pictures?|photos?", re.IGNORECASE)
_XML = frozenset({".xml"})
_WITHOUT = Fault("has no annotation", remedy="export it, or take the image off the list")
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_COLUMN = re.compile(r"(.+?)\s+-?[01]")  # of a list of one class: whether it is in the image
_ENCODING = re.compile(rb"""<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["'][^>]*\?>""")
_HEAD = 2048  # bytes that tell what an XML file is
_LOOKED_AT = 20  # files of a folder
_SHOWN = 3  # names in a note


def find(root: Path) -> bool:
    """True if the folder is in one of the layouts."""
    folder = Folder(root)
    if _holds_voc(folder, root):
        return True
    for place in folders(root):
        named = _FOLDER.fullmatch(place.name) is not None or split_name(place.name) is not None
        if place.name.lower() == "annotations" and any(map(_is_voc, itertools.islice(Folder(root).files(place, _XML), _LOOKED_AT))):
            return True
        if _holds_voc(folder, place) and (named or not any(path.suffix.lower() in IMAGE_SUFFIXES for path in visible(place))):
            return True
        if named and any(_holds_voc(folder, inner) for inner in folders(place)):
            return True
    return False


def is_named_so(root: Path) -> bool:
    """True if the folder has folders of VOC's names, whatever is in them."""
    return any(place.name.lower() in ("imagesets", "annotations") for place in folders(root))


def _holds_voc(folder: Folder, place: Path) -> bool:
    """Whether one of the first XML files in a folder begins like an annotation; links that leave the data folder are not opened."""
    return any(map(_is_voc, filter(folder.holds, visible(place, "*.[xX][mM][lL]")[:_LOOKED_AT])))


def _is_voc(file: Path) -> bool:
    return re.search(rb"<annotation[\s>]", read_bytes(file, _HEAD).replace(b"\0", b"")) is not None


def read(root: Path, *, images: Path | None = None, annotations: Path | None = None) -> RawDataset:
    """What the XML files say.

    Args:
        root: the data folder.
        images: the folder of the images, if it is known; otherwise they are looked for in the data folder.
        annotations: the folder of the XML files, likewise.

    Raises:
        UserError: no XML files, broken XML, no named object, an image listed twice, a path that leaves the folder.
    """
    folder = Folder(root)
    raw = RawDataset("voc", [], [], {})
    place = annotations or _place(folder)
    if place is None:
        base, files = folder.root, [file for inner in _split_folders(folder.root) for file in folder.files(inner, _XML)]
    else:
        base, files = place, list(folder.files(place, _XML))
    everything = list(folder.files(folder.root, _XML))
    groups = _listed(folder, base, files, raw.notes) or _by_folder(folder, base, files, raw.notes)
    if not any(file for group in groups.values() for file in group.files.values()):
        raise UserError(f"{folder.root}: no .xml annotations; put them into Annotations/ or beside the images")
    if outside := len(everything) - len(files):
        raw.notes.append(f"{count(outside, 'XML file')} outside {folder.show(base)}/ left out")
    pictures = _Pictures(Folder(images or folder.root))
    trees = _trees(folder, groups, pictures, raw.notes)
    reader = _Reader(folder, pictures)
    for split, group in groups.items():
        if group.files and not any(group.files.values()):
            raw.absent[split] = f"none of its {count(len(group.files), 'image')} has an annotation"
            raw.notes.append(f"none of the {count(len(group.files), 'image')} of {split} ({group.where}) has an annotation: left out")
            continue
        raw.splits[split] = [
            reader.without_file(image_id, f"{group.where} {image_id}", split)
            if file is None
            else reader.image(image_id, file, trees[file], split)
            for image_id, file in group.files.items()
            if file is None or file in trees
        ]
    raw.names = sorted({name for names in reader.names.values() for name in names if name})
    if not raw.names:
        raise UserError(f"{folder.root}: no categories: no object in the .xml files has a name")
    raw.ids = list(range(len(raw.names)))
    labels = {name: label for label, name in enumerate(raw.names)}
    for split in raw.splits.values():
        for image in split:
            for entry, name in zip(image.objects, reader.names.get(image.where, ()), strict=True):
                entry.label = labels.get(name)
    _exchange_corners(raw)
    raw.notes += reader.notes()
    pictures.finder.finish(raw)
    _put_together(raw)
    if list(raw.splits) == [""]:
        raw.splits = _by_image_folder(pictures.folder, raw.splits[""])
    if left := pictures.without((image.path for split in raw.splits.values() for image in split), everything):
        raw.notes.append(f"{count(len(left), 'image')} without an annotation file left out: {_some(pictures.folder, left)}")
    return raw


# -- which files, and which splits ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """The annotation files of a split by image id (None: listed, but missing), and what lists them."""

    files: dict[str, Path | None]
    where: str
    listed: bool


def _place(folder: Folder) -> Path | None:
    """The folder of all XML files; None if each split has its own."""
    named = [place for place in folders(folder.root) if _FOLDER.fullmatch(place.name)]
    filled = [place for place in named if next(folder.files(place, _XML), None)]
    if filled:
        return max(filled, key=lambda place: sum(1 for _ in folder.files(place, _XML)))
    if _split_folders(folder.root) and not _holds_voc(folder, folder.root):
        return None
    others = [place for place in folders(folder.root) if _holds_voc(folder, place)]
    return others[0] if len(others) == 1 and not _holds_voc(folder, folder.root) else folder.root


def _split_folders(root: Path) -> list[Path]:
    return [place for place in folders(root) if split_name(place.name) and next(Folder(root).files(place, _XML), None)]


def _id(file: Path, base: Path) -> str:
    return os.path.splitext(os.path.relpath(file, base))[0].replace(os.sep, "/")


def _by_folder(folder: Folder, base: Path, files: list[Path], notes: list[str]) -> dict[str, _Group]:
    """Splits by the folders below ``base`` that are named after one."""
    parts: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        parts[split_of(file.relative_to(base).parts[:-1])].append(file)
    if len(parts) > 1 and (left := parts.pop("", None)):
        notes.append(f"{count(len(left), 'annotation file')} in no folder of a split left out: {_some(folder, left)}")
    groups = {}
    for split, inside in parts.items():
        top = Path(os.path.commonpath([file.parent for file in inside]))
        groups[split] = _Group({_id(file, top): file for file in inside}, folder.show(top), listed=False)
    return groups


def _listed(folder: Folder, base: Path, files: list[Path], notes: list[str]) -> dict[str, _Group]:
    """Splits by lists of image names; empty if there are none."""
    sets = [place for place in folders(folder.root) if place.name.lower() == "imagesets"]
    order = {"main": 0, "layout": 1, "segmentation": 2}
    places = [inner for place in sets for inner in sorted(folders(place), key=lambda p: order.get(p.name.lower(), 3))]
    unused: list[Path] = []
    for place in [*places, *sets, folder.root]:
        lists = {
            path: folder.lines(path) for path in visible(place, "*.[tT][xX][tT]") if path.is_file() and (sets or split_name(path.stem))
        }
        found: dict[str, Path] = {}
        for path in sorted(lists, key=lambda path: (len(path.stem), path.name)):
            split = split_name(path.stem)
            if split and split not in found and not _of_one_class(path, lists[path]):
                found[split] = path
        whole = next((path for path in lists if path.stem.lower() in ("trainval", "train_val")), None)
        if whole and "train" not in found:
            found = {"train": whole, **found}
        unused += [path for path in lists if path not in (*found.values(), whole) and not _of_one_class(path, lists[path])]
        if found:
            break
    else:
        found, lists = {}, {}
    if sets and unused:
        notes.append(f"{count(len(unused), 'list')} not used: {_some(folder, unused)}")
    table = _Names(files, base)
    groups = {split: _Group(_entries(folder, path, lists[path], table), folder.show(path), listed=True) for split, path in found.items()}
    if groups and whole and found.get("train") == whole and "val" in groups:
        kept = {name: file for name, file in groups["train"].files.items() if name not in groups["val"].files}
        groups["train"] = replace(groups["train"], files=kept)
    if groups and not any(group.files for group in groups.values()):
        notes.append(f"{count(len(found), 'list')} without names not used: {_some(folder, list(found.values()))}")
        return {}
    left = set(files) - {file for group in groups.values() for file in group.files.values()}
    if groups and left:
        what = folder.show(next(iter(found.values())).parent)
        notes.append(f"{count(len(left), 'annotation file')} in none of the lists in {what} left out: {_some(folder, sorted(left))}")
    return groups


def _of_one_class(path: Path, lines: list[tuple[str, str]]) -> bool:
    """Whether a list is one of VOC's per class (``cat_train.txt``): each image with 1, 0 or -1."""
    return "_" in path.stem and bool(lines) and all(_COLUMN.fullmatch(line) for _, line in lines)


class _Names:
    """Annotation files by the names that a list may give them."""

    def __init__(self, files: list[Path], base: Path):
        self.ids = {_id(file, base): file for file in files}
        self._ends: dict[str, list[str]] = defaultdict(list)
        for name in self.ids:
            self._ends[name.rpartition("/")[2].casefold()].append(name)

    def find(self, name: str) -> str | None:
        """The id that a line means: itself, without ending, or the only one, or the only one in a folder of the same name, that ends so."""
        name = name.replace("\\", "/")
        for each in (name, re.sub(r"\.\w{1,5}$", "", name)):
            if each in self.ids:
                return each
            folders, _, last = each.casefold().rpartition("/")
            found = self._ends.get(last, [])
            if len(found) > 1 and folders:
                parts = set(folders.split("/"))
                found = [one for one in found if parts & set(one.casefold().split("/")[:-1])]
            if len(found) == 1:
                return found[0]
        return None


def _entries(folder: Folder, path: Path, lines: list[tuple[str, str]], table: _Names) -> dict[str, Path | None]:
    """The annotation files of a list: a line has a name, perhaps with an ending, a path, a column of a class, or a comment."""
    result: dict[str, Path | None] = {}
    for where, line in lines:
        line = re.sub(r"(^|\s)#.*", "", line).strip().strip('"')
        if not line:
            continue
        column = _COLUMN.fullmatch(line)
        names = [line, *([column[1].strip('"')] if column else ()), *(reversed(line.split()) if " " in line or "\t" in line else ())]
        name = next(filter(None, map(table.find, names)), None)
        if name is None:
            name = names[1] if column else line
            folder.join(folder.root / "Annotations", f"{name}.xml", where)
        if name in result:
            raise UserError(f"{where}: image id {name!r} is listed twice; remove one")
        result[name] = table.ids.get(name)
    return result


def _by_image_folder(folder: Folder, images: list[RawImage]) -> dict[str, list[RawImage]]:
    """Splits by the folders of the images, if every image that is there lies in that of a split, and one of them is "train"."""
    parts: dict[str, list[RawImage]] = defaultdict(list)
    for image in images:
        path = None if image.fault or image.path is None else Path(folder.show(image.path))
        parts["train" if path is None else split_of(path.parts[:-1])].append(image)
    return dict(parts) if "" not in parts and len(parts) > 1 else {"": images}


def _some(folder: Folder, files: list[Path]) -> str:
    return ", ".join(folder.show(file) for file in files[:_SHOWN]) + (", ..." if len(files) > _SHOWN else "")


# -- what a file says ----------------------------------------------------------------------------------------------------------------------


class _Pictures:
    """The image files of the data."""

    def __init__(self, folder: Folder):
        self.folder, self.finder = folder, ImageFinder(folder)
        self.files = folder.images(folder.root)
        self._stems: dict[str, list[Path]] = defaultdict(list)
        for path in self.files:
            self._stems[path.stem].append(path)
        self.base = next((place for place in folders(folder.root) if _IMAGES.fullmatch(place.name)), folder.root)

    def find(self, folder: Folder, image_id: str, file: Path, filename: str, where: str, split: str) -> Path:
        """The image of an annotation file: the one of the same name, or else the one that its ``filename`` names.

        Of several of the same name it is the very ``filename``, then one in no folder of annotations, then the nearest. A mask is used only
        if it is the very ``filename`` and there is nothing else.
        """
        last = PureWindowsPath(filename.replace("\\", "/")).name
        beside = {part.casefold() for part in file.relative_to(folder.root).parts[:-1]} if file.is_relative_to(folder.root) else set()
        ranks: dict[Path, tuple[bool, bool, bool, int]] = {}
        for path in self._stems.get(image_id.rpartition("/")[2], []):
            parts = path.relative_to(self.folder.root).parts[:-1]
            other = split_words(parts)
            mask, named = is_of_masks(parts), path.name == last
            if not (split and other and split not in other) and (named or not mask):
                near = len(beside & {part.casefold() for part in parts}) * 2 + (path.parent == file.parent)
                ranks[path] = not mask, named, not any(map(_FOLDER.fullmatch, parts)), near
        best = [path for path, rank in ranks.items() if rank == max(ranks.values())]
        same_folder = len({path.parent for path in best}) == 1
        if best and same_folder and (not self.folder.leaves(self.base, filename) or Path(last).stem == best[0].stem):
            return best[0]  # of a.jpg and a.png, the one that a.xml means
        beside_it = file.parent / filename
        base = (
            file.parent
            if file.is_relative_to(self.folder.root) and not self.folder.leaves(file.parent, filename) and beside_it.is_file()
            else self.base
        )
        return self.finder.find(base, filename or f"{image_id}.jpg", where, split)

    def has(self, stem: str) -> bool:
        """Whether there is an image file of a name."""
        return stem in self._stems

    def of_name(self, image_id: str, split: str) -> Path | None:
        """The only image file of a name that is no mask and in no folder of another split."""
        found = []
        for path in self._stems.get(image_id.replace("\\", "/").rpartition("/")[2], []):
            parts = path.relative_to(self.folder.root).parts[:-1]
            other = split_words(parts)
            if not is_of_masks(parts) and not (split and other and split not in other):
                found.append(path)
        return found[0] if len(found) == 1 else None

    def without(self, used: Iterable[Path | None], files: list[Path]) -> list[Path]:
        """Image files in the folders of those used that are not among them, nor called like one of the annotation files."""
        known, stems = set(used), {file.stem for file in files}
        places = {path.parent for path in known if path is not None}
        return [path for path in self.files if path not in known and path.parent in places and path.stem not in stems]


class _Reader:
    """Images from trees; ``names`` has the class names of the objects of each image, by ``RawImage.where``."""

    def __init__(self, folder: Folder, pictures: _Pictures):
        self._folder, self._pictures = folder, pictures
        self.names: dict[str, list[str]] = {}
        self._around: Counter[str] = Counter()
        self._tags: Counter[str] = Counter()  # of objects that are not in <object>
        self._boxes = 0  # beyond the first of an object
        self._without: list[str] = []

    def without_file(self, image_id: str, where: str, split: str) -> RawImage:
        """An image that is listed, but has no annotation file: it has no objects, if it is there."""
        path = self._pictures.of_name(image_id, split)
        if path is None:
            return RawImage(image_id, None, where, fault=_WITHOUT)
        self._without.append(where)
        return RawImage(image_id, path, where)

    def image(self, image_id: str, file: Path, tree: Element, split: str) -> RawImage:
        where = self._folder.show(file)
        filename = _text(tree, "filename") or _text(tree, "path")
        path = self._pictures.find(self._folder, image_id, file, filename, where, split)
        entries = [*tree.findall("object"), *tree.findall("objects/object")]
        if not entries:
            entries = [entry for entry in tree.iter() if entry.find("bndbox") is not None]
            self._tags.update(entry.tag for entry in entries)
        names: list[str] = []
        objects: list[RawObject] = []
        self.names[where] = names
        for number, entry in enumerate(entries, 1):
            boxes = entry.findall("bndbox")
            self._boxes += max(0, len(boxes) - 1)
            for box in boxes or [None]:
                names.append(_text(entry, "name"))
                objects.append(self._object(entry, box, f"{where} object {number}"))
        return RawImage(image_id, path, where, stated_size(_text(tree, "size/width"), _text(tree, "size/height")), objects)

    def _object(self, entry: Element, bndbox: Element | None, where: str) -> RawObject:
        """An object with one of its boxes, its label still missing."""
        texts = ["" if bndbox is None else _text(bndbox, corner) for corner in _CORNERS]
        box, fault = _numbers(texts), None
        said = ", ".join(f"{corner} {text}" for corner, text in zip(_CORNERS, texts, strict=True))
        if box is None and not any(texts):
            kind, box = _around(entry)
            self._around[kind] += box is not None
            if box is None:
                tags = ", ".join(f"<{child.tag}>" for child in entry if child.tag not in ("name", "pose", "truncated", "difficult", "part"))
                fault, said = Fault("box is not four numbers"), f"no bndbox{f', but {tags}' if tags else ''}"
        return RawObject(
            where=where,
            label=None,
            box=box,
            raw=f"{_text(entry, 'name') or 'no name'}, {said}",
            ignore=_text(entry, "difficult").lower() in ("1", "true", "yes"),
            fault=fault,
        )

    def notes(self) -> list[str]:
        what = {"robndbox": ("rotated box (robndbox)", "rotated boxes (robndbox)"), "polygon": ("polygon", "polygons")}
        notes = [
            f"{count(number, *what[kind])} without bndbox: the upright box around is used"
            for kind, number in self._around.items()
            if number
        ]
        notes += [f"{count(number, 'object')} in <{tag}> in place of <object>: read alike" for tag, number in self._tags.items()]
        if self._boxes:
            notes.append(f"{count(self._boxes, 'bndbox', 'bndboxes')} beyond the first of an object: each is an object of its own")
        if self._without:
            shown = ", ".join(self._without[:_SHOWN]) + (", ..." if len(self._without) > _SHOWN else "")
            notes.append(f"{count(len(self._without), 'listed image')} without an annotation file used as without objects: {shown}")
        return notes


def _numbers(texts: list[str]) -> Box | None:
    x1, y1, x2, y2 = (as_number(text) for text in texts)
    return None if any(map(math.isnan, (x1, y1, x2, y2))) else (x1, y1, x2, y2)


def _around(entry: Element) -> tuple[str, Box | None]:
    """What an object has in place of ``bndbox``, and the upright box around it."""
    for tag in ("robndbox", "rotated_bndbox", "rotated", "rbndbox"):
        if entry.find(tag) is not None:
            x, y, width, height, angle = (as_number(_text(entry, f"{tag}/{name}")) for name in ("cx", "cy", "w", "h", "angle"))
            half_x = (width * abs(math.cos(angle)) + height * abs(math.sin(angle))) / 2 if math.isfinite(angle) else math.nan
            half_y = (width * abs(math.sin(angle)) + height * abs(math.cos(angle))) / 2 if math.isfinite(angle) else math.nan
            corners = (x - half_x, y - half_y, x + half_x, y + half_y)
            return "robndbox", corners if all(map(math.isfinite, corners)) and width > 0 and height > 0 else None
    polygon = entry.find("polygon")
    if polygon is None:
        return "", None
    xs, ys = (
        [as_number((point.text or "").strip()) for point in polygon.iter() if re.fullmatch(rf"{axis}\d*", point.tag)] for axis in "xy"
    )
    if len(xs) < 2 or len(xs) != len(ys) or not all(map(math.isfinite, xs + ys)):
        return "polygon", None
    return "polygon", (min(xs), min(ys), max(xs), max(ys))


def _exchange_corners(raw: RawDataset) -> None:
    """Exchange xmin and xmax, and ymin and ymax, where no box of the data has them in order: a habit of the tool, not a fault of a box."""
    objects = [entry for images in raw.splits.values() for image in images for entry in image.objects if entry.box is not None]
    boxes = [entry.box for entry in objects if entry.box is not None]
    for low, high in ((0, 2), (1, 3)):
        if boxes and all(box[low] > box[high] for box in boxes):
            raw.notes.append(f"{_CORNERS[low]} is greater than {_CORNERS[high]} in every box: they are exchanged")
            for entry in objects:
                assert entry.box is not None
                x1, y1, x2, y2 = entry.box
                entry.box = (x2, y1, x1, y2) if low == 0 else (x1, y2, x2, y1)


def _put_together(raw: RawDataset) -> None:
    """Make one image of those of a split that are the same file, with the objects of all."""
    for split, images in raw.splits.items():
        of_path: dict[Path, RawImage] = {}
        kept, joined = [], []
        for image in images:
            if image.path is None or image.fault is not None or image.path not in of_path:
                kept.append(image)
                if image.path is not None and image.fault is None:
                    of_path[image.path] = image
            else:
                of_path[image.path].objects += image.objects
                joined.append((of_path[image.path].where, image.where))
        if joined:
            raw.splits[split] = kept
            example = " and ".join(joined[0])
            raw.notes.append(
                f"{count(len(joined), 'annotation file')} of an image that has another: the objects are put together ({example})"
            )


def _trees(folder: Folder, groups: dict[str, _Group], pictures: _Pictures, notes: list[str]) -> dict[Path, Element]:
    """The content of the files. One that is no annotation, is not listed and belongs to no image is left out with a note.

    Raises:
        UserError: broken XML, or another kind of XML; the first, and how many there are.
    """
    trees: dict[Path, Element] = {}
    others: list[Path] = []
    faults: list[UserError] = []
    files = [(group.listed, file) for group in groups.values() for file in group.files.values() if file is not None]
    for listed, file in files:
        try:
            tree = _parse(folder, file)
            if tree.tag == "annotation":
                trees[file] = tree
            elif listed or pictures.has(file.stem):
                where = folder.show(file)
                raise UserError(f"{where}: not a Pascal VOC annotation: its first element is <{tree.tag}>, not <annotation>")
            else:
                others.append(file)
        except UserError as error:
            faults.append(error)
    if len(faults) > 1:
        raise UserError(f"{faults[0]}; {len(faults)} of {len(files)} annotation files cannot be read")
    if faults:
        raise faults[0]
    if others:
        notes.append(f"{count(len(others), 'XML file')} of another kind left out: {_some(folder, others)}")
    return trees


def _parse(folder: Folder, file: Path) -> Element:
    """The root element, without namespaces."""
    where = folder.show(file)
    try:
        data = read_bytes(file)
        tree = fromstring(_decoded(data))
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({one_line(error)})") from error
    except DefusedXmlException as error:
        raise UserError(f"{where}: XML entities are not accepted ({type(error).__name__}); remove the document type declaration") from error
    except (ParseError, ValueError, LookupError, RecursionError) as error:
        raise UserError(f"{where}: broken XML ({one_line(error)}); export it again") from error
    for element in tree.iter():
        element.tag = element.tag.rpartition("}")[2]
    return tree


def _decoded(data: bytes) -> bytes | str:
    """The text of a file in an encoding that the XML parser does not know but Python does; otherwise the bytes as they are."""
    declared = _ENCODING.match(data.removeprefix(codecs.BOM_UTF8).lstrip())
    if declared is None:
        return data.removeprefix(codecs.BOM_UTF8).lstrip() if data.startswith((codecs.BOM_UTF8, b" ", b"\n", b"\r")) else data
    name = codecs.lookup(declared[1].decode()).name
    if name.startswith(("utf-8", "utf-16", "utf_16")):
        return data.lstrip()
    name = "gb18030" if name in ("gb2312", "gbk") else name  # what writes the smaller sets uses the larger one
    body = data.removeprefix(codecs.BOM_UTF8).lstrip()[declared.end() :]
    try:
        return body.decode(name)
    except UnicodeDecodeError:
        return body.decode("utf-8")  # declared, but not used; an error is one of broken XML


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
