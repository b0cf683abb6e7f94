"""YOLO: one text file per image, a line per object: class, then centre x, centre y, width, height in 0..1, or a polygon's corners.

Layouts: a ``data.yaml`` with ``names`` and ``train``, ``val``, ``test`` (folders, lists of folders, or text files of image paths); or
``classes.txt`` with ``images/{train,val}`` and ``labels/{train,val}``, with ``train/{images,labels}``, or with images and labels side by
side. The label file of ``.../images/.../a.jpg`` is ``.../labels/.../a.txt``, or beside the image. A polygon becomes the box around it. An
image without a label file is one without objects.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from boxquery.data.folder import Folder, one_line, split_name
from boxquery.data.raw import RawDataset, RawImage, RawObject, as_number
from boxquery.errors import UserError

_SETTINGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASSES = ("classes.txt", "obj.names", "labels/classes.txt")
_TEXT = frozenset({".txt"})
_SPLITS = (("train", ("train",)), ("val", ("val", "valid", "validation")), ("test", ("test",)))


def find(root: Path) -> Path | None:
    """The settings or class list of a folder in one of the layouts (a folder without is given back itself); None if it is none."""
    for name in (*_SETTINGS, *_CLASSES):
        if (root / name).is_file():
            return root / name
    settings = sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    if len(settings) == 1 and b"names" in settings[0].read_bytes():
        return settings[0]
    return root if (root / "labels").is_dir() or (root / "train" / "labels").is_dir() else None


def read(root: Path, head: Path) -> RawDataset:
    """Lists what the label files say.

    Args:
        root: the data folder.
        head: what ``find`` found there.

    Raises:
        UserError: broken settings, no categories, no label files, an image listed twice, a path that leaves the folder.
    """
    folder = Folder(root)
    root, head = folder.root, Path(os.path.abspath(head))
    listing = RawDataset("yolo", [], [], {})
    settings: dict[str, Any] = {}
    if head.suffix.lower() in (".yaml", ".yml"):
        folder.check_link(head, folder.show(head))
        settings = _settings(folder, head)
        names = _names(settings, folder.show(head))
    else:
        names = dict(enumerate(_class_list(folder, head)))
    if not names:
        raise UserError(f"{root}: no categories; list them under 'names' in data.yaml, or one a line in classes.txt")
    listing.ids = sorted(names)
    listing.names = [names[i] for i in listing.ids]
    labels = {number: label for label, number in enumerate(listing.ids)}
    found = _from_settings(folder, head, settings, listing.notes) if any(key in settings for key, _ in _SPLITS) else _from_folders(folder)
    missing = total = 0
    for split, source in found.items():
        listing.splits[split] = images = []
        used: set[Path] = set()
        for identity, path in source.images:
            text = _label_file(folder, path)
            missing += text is None
            total += 1
            used |= {text} if text else set()
            objects = [] if text is None else _objects(folder, text, labels)
            images.append(RawImage(identity, path, folder.show(path), None, objects, relative=True))
        texts = [file for place in source.labels for file in folder.files(place, _TEXT)] if images else []
        for text in texts:
            if text not in used and text.name not in _CLASSES:
                where, objects = folder.show(text), _objects(folder, text, labels)
                images.append(RawImage(where, None, where, None, objects, relative=True, fault=f"{text.stem}: no such file"))
    if total and missing == total:
        raise UserError(f"{root}: no label files for {total} images; they belong in labels/ beside images/, or beside the images")
    if missing:
        listing.notes.append(f"{missing} of {total} images have no label file: taken as images without objects")
    return listing


@dataclass(slots=True)
class _Source:
    """The images of a split with their ids, and the folders whose label files should all belong to one of them."""

    images: list[tuple[str, Path]] = field(default_factory=list)
    labels: list[Path] = field(default_factory=list)


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


def _class_list(folder: Folder, head: Path) -> list[str]:
    if head.is_dir():
        return []
    folder.check_link(head, folder.show(head))
    return [line.strip() for line in folder.text(head).splitlines() if line.strip()]


def _from_settings(folder: Folder, head: Path, settings: dict[str, Any], notes: list[str]) -> dict[str, _Source]:
    """The splits, from the entries of a settings file."""
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
        entry = next((settings[key] for key in keys if settings.get(key)), None)
        if entry is None:
            continue
        entries = entry if isinstance(entry, list) else [entry]
        if not all(isinstance(item, str) for item in entries):
            raise UserError(f"{where} {split}: should be a folder, a list of folders, or a text file of image paths")
        places = [_place(folder, base, item, f"{where} {split}", notes) for item in entries]
        splits[split] = _source(folder, base, places)
    return splits


def _place(folder: Folder, base: Path, name: str, where: str, notes: list[str]) -> Path:
    """The folder or list that an entry means."""
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


def _source(folder: Folder, base: Path, places: list[Path]) -> _Source:
    """Folders and lists of images as the source of one split."""
    source = _Source()
    for place in places:
        source.images += _images(folder, base, place, alone=len(places) == 1)
        labels = _labels_place(folder, place) if place.is_dir() else None
        if labels is not None and labels.is_dir():
            source.labels.append(labels)
    return source


def _images(folder: Folder, base: Path, place: Path, *, alone: bool) -> list[tuple[str, Path]]:
    """Images of a folder or of a text file of paths, with ids: their path in that folder, or in ``base``, without ending."""
    if place.is_dir():
        images = folder.images(place)
        start = place if alone else base
        return [(path.relative_to(start).with_suffix("").as_posix(), path) for path in images]
    pairs = []
    for number, line in enumerate(folder.text(place).splitlines(), 1):
        name = line.strip()
        if name:
            where = f"{folder.show(place)} line {number}"
            path = folder.join(base, name, where)
            if not path.is_file() and (place.parent / name).is_file():
                path = folder.join(place.parent, name, where)
            pairs.append((Path(folder.show(path)).with_suffix("").as_posix(), path))
    return pairs


def _from_folders(folder: Folder) -> dict[str, _Source]:
    """The splits, from the names of folders."""
    root = folder.root
    splits: dict[str, _Source] = {}
    for base in (root / "images", root):
        for place in sorted(p for p in base.iterdir() if p.is_dir()) if base.is_dir() else ():
            name = split_name(place.name)
            images = folder.images(place) if name else []
            if name and images:
                if name in splits:
                    raise UserError(f"{root}: two folders look like {name}; keep one")
                start = place / "images" if (place / "images").is_dir() else place
                splits[name] = _source(folder, root, [start])
        if splits:
            return splits
    place = root / "images" if (root / "images").is_dir() else root
    return {"": _source(folder, root, [place])}


def _label_file(folder: Folder, image: Path) -> Path | None:
    """The label file of an image, or None where there is none."""
    beside = image.with_suffix(".txt")
    labels = _labels_place(folder, image.parent)
    for place in (beside,) if labels is None else (labels / beside.name, beside):
        if place.is_file():
            folder.check_link(place, folder.show(place))
            return place
    return None


def _labels_place(folder: Folder, images: Path) -> Path | None:
    """The folder of the label files of an absolute image folder: its last part "images" replaced by "labels", if it has one."""
    root = folder.root
    parts = images.relative_to(root).parts
    if "images" not in parts:
        return None
    last = max(i for i, part in enumerate(parts) if part == "images")
    return root.joinpath(*parts[:last], "labels", *parts[last + 1 :])


def _objects(folder: Folder, file: Path, labels: dict[int, int]) -> list[RawObject]:
    objects, where = [], folder.show(file)
    for number, line in enumerate(folder.text(file).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        category = as_number(fields[0])
        label = labels.get(int(category)) if math.isfinite(category) and category == int(category) else None
        objects.append(RawObject(f"{where} line {number}", label, _box(fields[1:]), line))
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
