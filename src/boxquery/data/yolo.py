"""YOLO: one text file per image, one line per object: class, then centre x, centre y, width, height in 0..1, or a polygon's corners.

Layouts: a ``data.yaml`` with ``names`` and ``train``, ``val``, ``test`` (folders, lists of folders, or text files of image paths); or
``classes.txt`` with ``images/{train,val}`` and ``labels/{train,val}``, with ``train/{images,labels}``, or with images and labels side by
side. The label file of ``.../images/.../a.jpg`` is ``.../labels/.../a.txt``, or beside the image. A polygon becomes the box around it. An
image without a label file has no objects.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from boxquery.data.folder import Folder, visible
from boxquery.data.raw import NO_FILE, Fault, RawDataset, RawImage, RawObject, as_number
from boxquery.errors import UserError, one_line

_SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASSES = ("classes.txt", "obj.names", "labels/classes.txt")
_TEXT = frozenset({".txt"})
_SPLITS = (("train", ("train",)), ("val", ("val", "valid", "validation")), ("test", ("test",)))


def find(root: Path) -> Path | None:
    """The settings or class list of a folder in one of the layouts, or the folder itself if it has neither; None in no layout."""
    for name in (*_SETTINGS, *_CLASSES):
        if (root / name).is_file():
            return root / name
    settings = sorted([*visible(root, "*.yaml"), *visible(root, "*.yml")])
    if len(settings) == 1 and b"names" in settings[0].read_bytes():
        return settings[0]
    return root if (root / "labels").is_dir() or (root / "train" / "labels").is_dir() else None


def read(root: Path, head: Path) -> RawDataset:
    """What the label files say.

    Args:
        root: the data folder.
        head: what ``find`` found there.

    Raises:
        UserError: broken settings, no categories, no label files, an image listed twice, a path that leaves the folder.
    """
    folder = Folder(root)
    root, head = folder.root, Path(os.path.abspath(head))
    settings: dict[str, Any] = {}
    names: dict[int, str] = {}
    if head.suffix.lower() in (".yaml", ".yml"):
        settings = _settings(folder, head)
        names = _names(settings, folder.show(head))
    elif not head.is_dir():
        names = dict(enumerate(line for _, line in folder.lines(head)))
    if not names:
        raise UserError(f"{root}: no categories; list them under 'names' in data.yaml, or one a line in classes.txt")
    ids = sorted(names)
    raw = RawDataset("yolo", [names[i] for i in ids], ids, {})
    labels = {number: label for label, number in enumerate(ids)}
    listed = any(key in settings for key, _ in _SPLITS)
    splits = _splits_of_settings(folder, head, settings, raw.notes) if listed else _splits_of_folders(folder)
    missing = total = 0
    for split, source in splits.items():
        raw.splits[split] = images = []
        used: set[Path] = set()
        for image_id, path in source.images:
            text = _label_file(folder, path)
            missing += text is None
            total += 1
            used |= {text} if text else set()
            objects = [] if text is None else _objects(folder, text, labels)
            images.append(RawImage(image_id, path, folder.show(path), None, objects, relative=True))
        texts = [file for place in source.labels for file in folder.files(place, _TEXT)] if images else []
        for text in texts:
            if text not in used and text.name not in _CLASSES:
                where, objects = folder.show(text), _objects(folder, text, labels)
                images.append(RawImage(where, None, where, None, objects, relative=True, fault=Fault(NO_FILE, text.stem)))
    if total and missing == total:
        raise UserError(f"{root}: no label files for {total} images; they belong in labels/ beside images/, or beside the images")
    if missing:
        raw.notes.append(f"{missing} of {total} images have no label file: taken as images without objects")
    return raw


@dataclass(frozen=True, slots=True)
class _Source:
    """The images of a split with their ids, and the folders whose label files should all belong to one of them."""

    images: list[tuple[str, Path]]
    labels: list[Path]


def _settings(folder: Folder, file: Path) -> dict[str, Any]:
    where, text = folder.show(file), folder.text(file)
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken YAML ({one_line(error)})") from error
    if not isinstance(settings, dict):
        raise UserError(f"{where}: should hold 'names' and 'train', 'val'")
    return settings


def _names(settings: dict[str, Any], where: str) -> dict[int, str]:
    names = settings.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in names):
        raise UserError(f"{where}: no categories; 'names' should be a list, or map class numbers to names")
    if wrong := [i for i, name in names.items() if not isinstance(name, (str, int, float))]:
        raise UserError(f"{where}: class {wrong[0]} under 'names' should be a word, not a {type(names[wrong[0]]).__name__}")
    return {i: str(name).strip() or f"class {i}" for i, name in names.items()}


def _splits_of_settings(folder: Folder, head: Path, settings: dict[str, Any], notes: list[str]) -> dict[str, _Source]:
    """The splits that a settings file lists."""
    where = folder.show(head)
    base = folder.root
    if settings.get("path") not in (None, "", "."):
        try:
            base = folder.join(folder.root, str(settings["path"]), f"{where} path")
        except UserError:
            if not any(isinstance(settings.get(key), str) and (folder.root / settings[key]).exists() for key, _ in _SPLITS):
                raise
            notes.append(f"{where}: 'path' points elsewhere; the folder of the file itself is used")
    splits: dict[str, _Source] = {}
    for split, keys in _SPLITS:
        if entry := next((settings[key] for key in keys if settings.get(key)), None):
            entries = entry if isinstance(entry, list) else [entry]
            if not all(isinstance(item, str) for item in entries):
                raise UserError(f"{where} {split}: should be a folder, a list of folders, or a text file of image paths")
            splits[split] = _source(folder, base, [_place(folder, base, item, f"{where} {split}", notes) for item in entries])
    return splits


def _place(folder: Folder, base: Path, name: str, where: str, notes: list[str]) -> Path:
    """The folder or list that an entry names."""
    inner = name.replace("\\", "/")
    while inner.startswith("../"):
        inner = inner[3:]
    if inner != name and not (base / name).exists() and (base / inner).exists():
        notes.append(f"{where}: {name!r} does not exist, {inner!r} does and is used")  # as some exporters write it
        name = inner
    place = folder.join(base, name, where)
    if not place.exists():
        raise UserError(f"{where}: there is no {folder.show(place)}; correct the path")
    return place


def _splits_of_folders(folder: Folder) -> dict[str, _Source]:
    """The splits, from the names of folders."""
    root = folder.root
    for base in (root / "images", root):
        if found := folder.splits(base, folder.images):
            inner = {name: place / "images" for name, (place, _) in found.items()}
            return {name: _source(folder, root, [inner[name] if inner[name].is_dir() else place]) for name, (place, _) in found.items()}
    return {"": _source(folder, root, [root / "images" if (root / "images").is_dir() else root])}


def _source(folder: Folder, base: Path, places: Sequence[Path]) -> _Source:
    """Folders and lists of images as the source of one split."""
    images = [pair for place in places for pair in _images(folder, base, place, alone=len(places) == 1)]
    labels = [_labels_folder(folder, place) for place in places if place.is_dir()]
    return _Source(images, [place for place in labels if place is not None and place.is_dir()])


def _images(folder: Folder, base: Path, place: Path, *, alone: bool) -> list[tuple[str, Path]]:
    """Images of a folder or of a text file of paths, with ids: their path in that folder, or in ``base``, without suffix."""
    if place.is_dir():
        start = place if alone else base
        return [(path.relative_to(start).with_suffix("").as_posix(), path) for path in folder.images(place)]
    pairs = []
    for where, name in folder.lines(place):
        path = folder.join(base, name, where)
        if not path.is_file() and (place.parent / name).is_file():
            path = folder.join(place.parent, name, where)
        pairs.append((Path(folder.show(path)).with_suffix("").as_posix(), path))
    return pairs


def _label_file(folder: Folder, image: Path) -> Path | None:
    """The label file of an image, or None where there is none."""
    beside = image.with_suffix(".txt")
    labels = _labels_folder(folder, image.parent)
    for place in (beside,) if labels is None else (labels / beside.name, beside):
        if place.is_file():
            return place
    return None


def _labels_folder(folder: Folder, images: Path) -> Path | None:
    """The folder of the label files of an absolute image folder: its last part "images" replaced by "labels", if it has one."""
    parts = images.relative_to(folder.root).parts
    if "images" not in parts:
        return None
    last = max(i for i, part in enumerate(parts) if part == "images")
    return folder.root.joinpath(*parts[:last], "labels", *parts[last + 1 :])


def _objects(folder: Folder, file: Path, labels: dict[int, int]) -> list[RawObject]:
    objects = []
    for where, line in folder.lines(file):
        first, *rest = line.split()
        category = as_number(first)
        label = labels.get(int(category)) if math.isfinite(category) and category == int(category) else None
        objects.append(RawObject(where, label, _box(rest), line))
    return objects


def _box(fields: list[str]) -> tuple[float, float, float, float] | None:
    """Centre and size, or a polygon of three corners or more, as xyxy in 0..1; None if it is neither."""
    values = [as_number(text) for text in fields]
    if any(map(math.isnan, values)):
        return None
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(values) >= 6 and len(values) % 2 == 0:
        return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    return None
