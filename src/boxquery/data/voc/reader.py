"""Pascal VOC: one XML per image.

Layouts: a folder of XML files (``Annotations/``, ``annots/``, ``labels/``, ``xml/``, ...) beside a folder of images; folders named after
splits, above or below these; XML files beside their images. Splits are named by lists (``ImageSets/Main/train.txt``), else by folders.
Class names are those found, sorted; the ids are their positions, for VOC has none.

Coordinates are used as they are, as pixel edges. VOC's own are 1-based and inclusive, most tools' are 0-based; the difference is at
most a pixel, and files do not say which they are. A rotated box (roLabelImg) or a polygon without ``bndbox`` becomes the upright box
around it. ``difficult`` becomes ``ignore``. ``part`` elements are not read.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree.ElementTree import Element

from boxquery.data.folder import Folder
from boxquery.data.raw import Fault, RawDataset, RawImage, RawObject, stated_size
from boxquery.data.voc.files import XML, parse
from boxquery.data.voc.pictures import Pictures
from boxquery.data.voc.splits import Group, annotation_folder, by_folder, by_image_folder, by_lists, split_folders
from boxquery.data.voc.values import CORNERS, box_in_place_of_corners, numbers, text_of
from boxquery.errors import UserError, count, some

_WITHOUT = Fault("has no annotation", remedy="export it, or take the image off the list")


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
    place = annotations or annotation_folder(folder)
    if place is None:
        base, files = folder.root, [file for inner in split_folders(folder.root) for file in folder.files(inner, XML)]
    else:
        base, files = place, list(folder.files(place, XML))
    everything = list(folder.files(folder.root, XML))
    groups = by_lists(folder, base, files, raw.notes) or by_folder(folder, base, files, raw.notes)
    if not any(file for group in groups.values() for file in group.files.values()):
        raise UserError(f"{folder.root}: no .xml annotations; put them into Annotations/ or beside the images")
    if outside := len(everything) - len(files):
        raw.notes.append(f"{count(outside, 'XML file')} outside {folder.show(base)}/ left out")
    pictures = Pictures(Folder(images or folder.root))
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
        raw.splits = by_image_folder(pictures.folder, raw.splits[""])
    if left := pictures.without((image.path for split in raw.splits.values() for image in split), everything):
        raw.notes.append(f"{count(len(left), 'image')} without an annotation file left out: {some(map(pictures.folder.show, left))}")
    return raw


def _trees(folder: Folder, groups: dict[str, Group], pictures: Pictures, notes: list[str]) -> dict[Path, Element]:
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
            tree = parse(folder, file)
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
        notes.append(f"{count(len(others), 'XML file')} of another kind left out: {some(map(folder.show, others))}")
    return trees


class _Reader:
    """Images from trees; ``names`` has the class names of the objects of each image, by ``RawImage.where``."""

    def __init__(self, folder: Folder, pictures: Pictures):
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
        filename = text_of(tree, "filename") or text_of(tree, "path")
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
                names.append(text_of(entry, "name"))
                objects.append(self._object(entry, box, f"{where} object {number}"))
        return RawImage(image_id, path, where, stated_size(text_of(tree, "size/width"), text_of(tree, "size/height")), objects)

    def _object(self, entry: Element, bndbox: Element | None, where: str) -> RawObject:
        """An object with one of its boxes, its label still missing."""
        texts = ["" if bndbox is None else text_of(bndbox, corner) for corner in CORNERS]
        box, fault = numbers(texts), None
        said = ", ".join(f"{corner} {text}" for corner, text in zip(CORNERS, texts, strict=True))
        if box is None and not any(texts):
            kind, box = box_in_place_of_corners(entry)
            self._around[kind] += box is not None
            if box is None:
                tags = ", ".join(f"<{child.tag}>" for child in entry if child.tag not in ("name", "pose", "truncated", "difficult", "part"))
                fault, said = Fault("box is not four numbers"), f"no bndbox{f', but {tags}' if tags else ''}"
        return RawObject(
            where=where,
            label=None,
            box=box,
            raw=f"{text_of(entry, 'name') or 'no name'}, {said}",
            ignore=text_of(entry, "difficult").lower() in ("1", "true", "yes"),
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
            number = count(len(self._without), "listed image")
            notes.append(f"{number} without an annotation file used as without objects: {some(self._without)}")
        return notes


def _exchange_corners(raw: RawDataset) -> None:
    """Exchange xmin and xmax, and ymin and ymax, where no box of the data has them in order: a habit of the tool, not a fault of a box."""
    objects = [entry for images in raw.splits.values() for image in images for entry in image.objects if entry.box is not None]
    boxes = [entry.box for entry in objects if entry.box is not None]
    for low, high in ((0, 2), (1, 3)):
        if boxes and all(box[low] > box[high] for box in boxes):
            raw.notes.append(f"{CORNERS[low]} is greater than {CORNERS[high]} in every box: they are exchanged")
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
