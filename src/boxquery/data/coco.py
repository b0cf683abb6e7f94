"""COCO: one JSON per split with ``images``, ``annotations`` and ``categories``.

Layouts: a JSON file beside or above its images, or in any folder beside theirs; Roboflow's ``train/_annotations.coco.json``. A file's
split is in its name or in that of a folder above it. Category ids may be sparse and start anywhere: labels are their ranks, the ids stay
in ``Data.ids``. Boxes are x, y, width, height in pixels; segmentations are only read where a box is missing; ``iscrowd`` becomes
``ignore``. Values in another type than the format's (``coco_values.py``) and names of images that are not quite right (``find.py``) are
used where they are clear, with a note.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from boxquery.data import coco_values
from boxquery.data.coco_values import Ids, identifier
from boxquery.data.find import ImageFinder
from boxquery.data.folder import SPLITS, Folder, folders, read_bytes, split_name, split_of, visible
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.raw import Fault, RawDataset, RawImage, RawObject, as_number, stated_size
from boxquery.errors import UserError, count, one_line

_LISTS = ("images", "annotations", "categories")
_FILE_NAMES = ("file_name", "filename", "fileName", "file", "path", "name", "image", "coco_url", "url", "flickr_url")
_SAMPLE = 20  # images tried when the image folder is looked for
_LONGEST = 255  # characters of a file name that an operating system will look at
_SMALL = 4 << 20  # bytes of a file that is read wholly to see what it is
_SHOWN = 3  # names in a note
_HEAD = 1 << 16  # bytes of a larger one
_OTHER_TASKS = re.compile(r"(captions|person_keypoints|stuff|panoptic|image_info)_", re.IGNORECASE)
_WHOLE = re.compile(r"(trainval|all|full)\d*$", re.IGNORECASE)
_JSON = "*.[jJ][sS][oO][nN]"
_FEW = 20  # JSON files in a folder; where there are more, there is one per image, and a few are looked at
FOLDERS = re.compile(r"annot|ann|label|json|coco", re.IGNORECASE)  # names of folders that are looked into before the data folder itself


@dataclass(frozen=True, slots=True)
class Found:
    """The COCO files of a data folder, and others of the same splits, which are left out."""

    files: list[Path]
    left: list[Path]


def find(root: Path) -> Found:
    """The COCO files of a data folder: those of the first place where there are any, and of others for splits that it lacks."""
    roboflow = visible(root, "*/_annotations.coco.json") or visible(root, "_annotations.coco.json")
    inner = folders(root)
    named = [place for place in inner if FOLDERS.match(place.name) and not any(Folder(place).files(place, IMAGE_SUFFIXES))]
    splits = [place for place in inner if split_name(place.name)]
    of_splits, of_named = ([deep for place in places for deep in folders(place)] for places in (splits, named))
    return _of_groups(root, roboflow, [*([place] for place in named), splits, of_splits, [root], of_named])


def find_deeper(root: Path) -> Found:
    """The COCO files of the folders inside a data folder, for where the images are elsewhere in it."""
    inner = folders(root)
    return _of_groups(root, [], [*([place] for place in inner), [deep for place in inner for deep in folders(place)]])


def _of_groups(root: Path, first: list[Path], groups: list[list[Path]]) -> Found:
    """The JSON files of the first of these groups of folders that holds COCO files, and COCO files of the others for further splits."""
    folder, files, left = Folder(root), first, []
    splits = {_split_of(folder, file) for file in first}
    for group in groups:
        if "" in splits:  # a file of all images
            break
        here = [file for place in group for file in visible(place, _JSON) if file not in files]
        inside = list(filter(folder.holds, here))  # a link out is not opened to recognise it; beside COCO files it is refused
        sample = inside if len(inside) <= _FEW * max(1, len(group)) else inside[:3]
        known = list(filter(looks_like_coco, sample))
        if known and not files:
            files = here
            splits = {_split_of(folder, file) for file in known if file.stem.lower().startswith("instances")} or {
                _split_of(folder, file) for file in known
            }
            if splits >= {"train", "val"}:
                splits.discard("")
        else:
            new = [file for file in known if _split_of(folder, file)]
            files = files + [file for file in new if _split_of(folder, file) not in splits]
            left += [file for file in new if _split_of(folder, file) in splits]
            splits |= {_split_of(folder, file) for file in new}
    return Found(*_preferred(folder, files, left))


def _preferred(folder: Folder, files: list[Path], left: list[Path]) -> tuple[list[Path], list[Path]]:
    """Of several files of a split, those called "instances"; of those without a split, none where there are train and val."""
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_of(folder, file), []).append(file)
    instances = {split: [file for file in own if file.stem.lower().startswith("instances")] for split, own in splits.items()}
    kept = [file for split, own in splits.items() for file in instances[split] or own]
    if any(instances.values()):
        kept = [file for file in kept if not _OTHER_TASKS.match(file.stem)]
    if splits.keys() >= {"train", "val"} or (any(instances.values()) and not instances.get("")):
        unclear = [file for file in instances.get("", []) if not _WHOLE.search(file.stem)]
        kept = [file for file in kept if _split_of(folder, file) or file in unclear or not folder.holds(file) or not looks_like_coco(file)]
    return kept, left + [file for file in files if file not in kept and folder.holds(file) and looks_like_coco(file)]


def looks_like_coco(file: Path) -> bool:
    """True if a JSON file holds two of COCO's three lists, or, where it is large or broken, begins like one.

    Raises:
        OSError: it cannot be read.
    """
    if not file.is_file():
        return False
    head = read_bytes(file, _SMALL)
    try:
        if len(head) < _SMALL:
            content = json.loads(head)
            return isinstance(content, dict) and sum(isinstance(content.get(key), list) for key in _LISTS) > 1
    except (ValueError, RecursionError):
        pass
    return re.search(rb'"(images|annotations|categories)"\s*:\s*\[', head[:_HEAD]) is not None


def read(root: Path, files: list[Path], *, whole: bool = False, images: Path | None = None, left: Sequence[Path] = ()) -> RawDataset:
    """What the files say.

    Args:
        root: the data folder.
        files: one per split, or a single one without splits.
        whole: the single file has no splits, whatever it is called.
        images: the folder of the images, if it is known; otherwise it is looked for in the data folder.
        left: COCO files that are not read, for a note.

    Raises:
        UserError: broken or incomplete JSON, no or duplicate categories, categories that differ between files, files whose split is not
            clear, a path that leaves the folder.
    """
    folder = Folder(root)
    raw = RawDataset("coco", [], [], {})
    parts = _by_split(folder, _contents(folder, [Path(os.path.abspath(file)) for file in files], raw.notes), whole)
    if left:
        shown = ", ".join(folder.show(file) for file in left[:_SHOWN]) + (", ..." if len(left) > _SHOWN else "")
        used = ", ".join(part.where for part in parts.values())
        raw.notes.append(f"{count(len(left), 'other COCO file')} left out: {shown} ({used} {'are' if len(parts) > 1 else 'is'} read)")
    names = _all_categories(parts, raw.notes)
    raw.ids = sorted(names)
    raw.names = [names[number] for number in raw.ids]
    place = Folder(images or folder.root)
    finder = ImageFinder(place)
    for split, part in parts.items():
        base = part.image_folder(place, finder, raw.notes)
        raw.splits[split] = part.images(finder, base, split, {number: label for label, number in enumerate(raw.ids)}, raw.orphans)
        raw.notes += part.notes()
    finder.finish(raw)
    _drop_parents(raw, [category for part in parts.values() for category in part.content["categories"]])
    return raw


def _contents(folder: Folder, files: list[Path], notes: list[str]) -> dict[Path, Any]:
    """The COCO files among these with what they hold; others are left out with a note, unless there is only one."""
    contents: dict[Path, Any] = {}
    for file in files:
        where = folder.show(file)
        folder.check_link(file, where)
        if len(files) > 1 and not read_bytes(file).strip():
            notes.append(f"{where}: an empty file; left out")
            continue
        try:
            contents[file] = _load(file, where)
        except UserError as error:
            if len(files) == 1 or _split_of(folder, file) or looks_like_coco(file):
                raise
            notes.append(f"{error}; left out")
    faults = {file: fault for file, content in contents.items() if (fault := _fault(content))}
    if len(faults) == len(contents):
        raise UserError("; ".join(f"{folder.show(file)}: {fault}" for file, fault in list(faults.items())[:1]) or f"{folder.root}: no JSON")
    for file, fault in faults.items():
        notes.append(f"{folder.show(file)}: {fault}: left out")
    return {file: content for file, content in contents.items() if file not in faults}


def _load(file: Path, where: str) -> Any:
    try:
        return json.loads(read_bytes(file))
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({one_line(error)})") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply to be COCO annotations") from error
    except ValueError as error:  # broken JSON, broken UTF-8, numbers of absurd length
        raise UserError(f"{where}: broken JSON ({one_line(error)}); export it again") from error


def _fault(content: object) -> str:
    """Why the content of a file is not COCO annotations, or ""."""
    if not isinstance(content, dict):
        return "not COCO annotations: the file should hold an object with images, annotations and categories"
    for key in _LISTS:
        if not isinstance(content.get(key), list):
            return f"no list {key!r}; COCO annotations have images, annotations and categories"
    return ""


def _by_split(folder: Folder, contents: dict[Path, Any], whole: bool) -> dict[str, _Part]:
    parts: dict[str, _Part] = {}
    for file, content in contents.items():
        split = "" if whole else _split_of(folder, file)
        part = _Part(folder, file, content)
        if split in parts:
            alike = [folder.show(other) for other in contents if _split_of(folder, other) == split]
            both = f"{alike[0]} and {alike[1]}" if len(alike) == 2 else f"{alike[0]}, {alike[1]} and {len(alike) - 2} more"
            what = f"are {'both' if len(alike) == 2 else 'all'} {split or 'without a split'}"
            raise UserError(f"{folder.root}: {both} {what}; merge them, or name the one to use: --annotations {alike[0]}")
        parts[split] = part
    if "" in parts and len(parts) > 1:
        raise UserError(
            f"{parts[''].where}: is it train, val or test? Put the word into its name, or name the one file to use with --annotations"
        )
    return {split: parts[split] for split in (*SPLITS, "") if split in parts}


def _split_of(folder: Folder, file: Path) -> str:
    """The split that a file's name, or else a folder above it, speaks of."""
    return split_of((file.stem, *reversed(file.relative_to(folder.root).parts[:-1])))


class _Part:
    """One COCO file."""

    def __init__(self, folder: Folder, file: Path, content: dict[str, Any]):
        self.folder, self.file, self.content = folder, file, content
        self.where = folder.show(file)
        self.categories = Ids()
        self.numbers: dict[int | str, int] = {}  # the data set's category ids by the file's own
        self._readings: Counter[tuple[str, str]] = Counter()
        self._examples: dict[tuple[str, str], str] = {}

    def took(self, of: str, text: str, example: str = "") -> None:
        """Count a value of ``images``, ``annotations`` or ``categories`` that was read otherwise than it is written."""
        self._readings[of, text] += 1
        self._examples.setdefault((of, text), example)

    def notes(self) -> list[str]:
        """One line per kind of value that was read otherwise than it is written."""
        notes = []
        for (of, text), number in self._readings.items():
            total = len(self.content[of])
            share = f"all {total} {of}" if number == total else f"{number} of {total} {of}"
            notes.append(f"{self.where}: in {share} {text}{self._examples[of, text]}")
        return notes

    def names(self) -> dict[int | str, str]:
        """Category names by the file's own ids."""
        names: dict[int | str, str] = {}
        for number, category in enumerate(self.content["categories"]):
            where = f"{self.where} categories[{number}]"
            own = identifier(category.get("id")) if isinstance(category, dict) else None
            name = self._name(category) if own is not None else None
            if own is None or name is None:
                raise UserError(f"{where}: needs an integer 'id' and a 'name'")
            if isinstance(own, str) and (number := coco_values.integer(own)) is not None:
                self.took("categories", "the id is text", f" ({own!r} is read as {number})")
                own = number
            name = name.strip() or f"category {own}"
            if own in names and names[own] != name:
                raise UserError(f"{where}: category id {own} is already taken; make ids unique")
            if own in names:
                self.took("categories", "the entry is the same as another: used once")
            names[own] = name
            self.categories.add(own, name)
        return names

    def _name(self, category: dict[str, Any]) -> str | None:
        name = category.get("name")
        if name is None and isinstance(name := category.get("supercategory"), str):
            self.took("categories", "there is no name: the supercategory is used", f" ({name!r})")
        elif isinstance(name, (int, float)) and not isinstance(name, bool):
            self.took("categories", "the name is a number", f" ({name!r} is read as {str(name)!r})")
            name = str(name)
        return name if isinstance(name, str) else None

    def image_folder(self, folder: Folder, finder: ImageFinder, notes: list[str]) -> Path:
        """The place in a folder where most of a few of the files are found: one of those that are usual, or else any."""
        file, root = self.file, folder.root
        token, split = file.stem.removeprefix("instances_"), _split_of(self.folder, file)
        places = [file.parent, root / token, root / "images" / token, root / token / "images"]
        if split:
            for base in (root, root / "images"):
                alike = [place for place in folders(base) if split_name(place.name) == split]
                places += [inner for place in alike for inner in (place, place / "images")]
        places += [file.parent.parent / "images", root / "images", root / "JPEGImages", root]
        images = self.content["images"]
        names = [_file_name(entry)[0] for entry in images[:: max(1, len(images) // _SAMPLE)] if isinstance(entry, dict)]
        names = [name.replace("\\", "/") for name in names if name and "\0" not in name and len(name) < _LONGEST]
        found = {place: sum(not folder.leaves(place, name) and (place / name).is_file() for name in names) for place in places}
        best = max(places, key=lambda place: found[place])
        if not found[best] and (inferred := finder.best_base(names, split)):
            notes.append(f"{self.where}: its images are in {folder.show(inferred)}/")
            return inferred
        return best if found[best] else root

    def images(
        self, finder: ImageFinder, base: Path, split: str, labels: dict[int, int], orphans: list[tuple[str, Fault]]
    ) -> list[RawImage]:
        """The images with their objects. What belongs to no image goes to ``orphans``."""
        images: dict[int | str, RawImage] = {}
        ids, named, of_file = Ids(), {}, {}
        for number, entry in enumerate(self.content["images"]):
            given = entry.get("id") if isinstance(entry, dict) else None
            own = identifier(given)
            if own is None:
                raise UserError(f"{self.where} images[{number}]: needs an 'id' that is an integer or a string")
            name, key = _file_name(entry)
            size = stated_size(entry.get("width"), entry.get("height"))
            if own in images:
                if (name, size) != named[own]:
                    raise UserError(f"{self.where} images[{number}]: image id {own!r} is already taken; make ids unique")
                self.took("images", "the entry is the same as another: used once", f" ({own!r})")
                continue
            if isinstance(given, float):
                self.took("images", "the id is a decimal number", f" ({given!r} is read as {own})")
            if key not in ("", "file_name"):
                self.took("images", f"there is no file_name: {key!r} is used", f" ({name!r})")
            named[own] = name, size
            if name in of_file:
                self.took("images", "the file is that of another entry: their boxes are put together", f" ({name!r})")
                images[own] = of_file[name]
                ids.add(own)
                continue
            text = f"{self.where} image {own!r}"
            path = finder.find(base, name, text, split) if name else None
            images[own] = RawImage(own, path, text, size)
            if name:
                of_file[name] = images[own]
            ids.add(own, name, os.path.basename(name), os.path.splitext(os.path.basename(name))[0])
        for number, entry in enumerate(self.content["annotations"]):
            if not isinstance(entry, dict):
                orphans.append((f"{self.where} annotations[{number}]", Fault("not an object", repr(entry)[:80])))
                continue
            text = f"{self.where} annotation {entry.get('id', f'[{number}]')}"
            given = entry.get("image_id")
            own = ids.meant_by(given)
            if own is None or own not in images:
                orphans.append((text, Fault("unknown image", repr(given)[:80], "export images and annotations together")))
                continue
            self._reference("image_id", given, own)
            images[own].objects.append(self._object(entry, f"{text} (image {own!r})", labels))
        return list({id(image): image for image in images.values()}.values())

    def _object(self, entry: dict[str, Any], where: str, labels: dict[int, int]) -> RawObject:
        given = entry.get("category_id")
        own = self.categories.meant_by(given)
        number = None if own is None else self.numbers.get(own)
        if number is not None and own is not None:
            self._reference("category_id", given, own)
        box, reading, fault = coco_values.box(entry)
        if reading:
            self.took("annotations", reading, f" ({str(entry['bbox'])[:60]})" if entry.get("bbox") else "")
        return RawObject(
            where=where,
            label=None if number is None else labels.get(number),
            box=box,
            raw=(given, entry.get("bbox")),
            ignore=entry.get("iscrowd") is True or as_number(entry.get("iscrowd", 0)) == 1,
            area=as_number(entry.get("area")),
            fault=fault,
        )

    def _reference(self, key: str, given: object, own: int | str) -> None:
        """Count a reference that is written in another type than the id it means."""
        if type(given) is not type(own):
            self.took("annotations", f"{key} is {_kind(given)}", f" ({given!r}), the id is {_kind(own)} ({own!r})")
        elif given != own:
            self.took("annotations", f"{key} is a name", f" ({given!r} is {own!r})")


def _kind(value: object) -> str:
    return {str: "text", int: "a number", float: "a decimal number"}.get(type(value), "of another type")


def _file_name(entry: dict[str, Any]) -> tuple[str, str]:
    """The name of an image's file, and the key it is under; of several, the first that is known."""
    for key in _FILE_NAMES:
        if isinstance(name := entry.get(key), str) and name:
            return name, key
        if key == "file_name" and isinstance(name, int) and not isinstance(name, bool):
            return str(name), key
    return "", ""


def _all_categories(parts: dict[str, _Part], notes: list[str]) -> dict[int, str]:
    """Names by id over all files; sets ``numbers`` of each."""
    names: dict[int, str] = {}
    for part in parts.values():
        own = part.names()
        ids = {name: number for number, name in names.items()}
        texts = [number for number in own if isinstance(number, str)]
        if texts:
            first = 1 + max([*names, *(number for number in own if isinstance(number, int))], default=-1)
            new = itertools.count(first)
            part.numbers = {i: i if isinstance(i, int) else ids[name] if name in ids else next(new) for i, name in own.items()}
            notes.append(f"{part.where}: category ids are words ({texts[0]!r}): numbered, from {part.numbers[texts[0]]} on")
        elif len(set(own.values()) & set(ids)) == len(own) and any(ids[name] != number for number, name in own.items()):
            part.numbers = {number: ids[name] for number, name in own.items()}
            notes.append(f"{part.where}: its category ids are others than those of the files before it: matched by name")
        else:
            part.numbers = {number: number for number in own if isinstance(number, int)}
        for i, name in own.items():
            number = part.numbers[i]
            if (other := names.setdefault(number, name)) != name:
                raise UserError(f"{part.where}: category {number} is {name!r} here, but {other!r} in another split; use one list for all")
    if not names:
        raise UserError(f"{next(iter(parts.values())).where}: no categories; list them under 'categories'")
    return names


def _drop_parents(raw: RawDataset, categories: list[Any]) -> None:
    """Take out a category that no box has and that is only the ``supercategory`` of others, as Roboflow writes one with id 0."""
    parents = {category.get("supercategory") for category in categories if category.get("supercategory") != category.get("name")}
    top = {category["name"] for category in categories if category.get("supercategory") in (None, "", "none", category.get("name"))}
    used = {obj.label for images in raw.splits.values() for image in images for obj in image.objects}
    dropped = [label for label, name in enumerate(raw.names) if name in parents & top and label not in used]
    if not dropped or len(dropped) == len(raw.names):
        return
    kept = [label for label in range(len(raw.names)) if label not in dropped]
    raw.notes.append(f"category {' and '.join(repr(raw.names[i]) for i in dropped)} is the parent of others and has no boxes: left out")
    labels = {old: new for new, old in enumerate(kept)}
    raw.names, raw.ids = [raw.names[i] for i in kept], [raw.ids[i] for i in kept]
    for images in raw.splits.values():
        for image in images:
            for obj in image.objects:
                obj.label = None if obj.label is None else labels[obj.label]
