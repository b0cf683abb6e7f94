"""One COCO file: its categories, and its images with their objects."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from boxquery.data.coco.layout import split_of_file
from boxquery.data.coco.values import Ids, box_of, identifier, integer
from boxquery.data.find import ImageFinder
from boxquery.data.folder import Folder, folders, split_name
from boxquery.data.raw import Fault, RawImage, RawObject, as_number, stated_size
from boxquery.errors import UserError

_FILE_NAMES = ("file_name", "filename", "fileName", "file", "path", "name", "image", "coco_url", "url", "flickr_url")
_SAMPLE = 20  # images tried when the image folder is looked for
_LONGEST = 255  # characters of a file name that an operating system will look at


class CocoFile:
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
            if isinstance(own, str) and (number := integer(own)) is not None:
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
        token, split = file.stem.removeprefix("instances_"), split_of_file(self.folder, file)
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
        box, reading, fault = box_of(entry)
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
