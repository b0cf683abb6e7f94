"""Which annotation files there are, and the split of each: by lists of image names, or by folders."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from boxquery.data.folder import Folder, folders, split_name, split_of, visible
from boxquery.data.raw import RawImage
from boxquery.data.voc.files import FOLDER, XML, holds_voc
from boxquery.errors import UserError, count, some

_COLUMN = re.compile(r"(.+?)\s+-?[01]")  # of a list of one class: whether it is in the image


@dataclass(frozen=True, slots=True)
class Group:
    """The annotation files of a split by image id (None: listed, but missing), and what lists them."""

    files: dict[str, Path | None]
    where: str
    listed: bool


def annotation_folder(folder: Folder) -> Path | None:
    """The folder of all XML files; None if each split has its own."""
    named = [place for place in folders(folder.root) if FOLDER.fullmatch(place.name)]
    filled = [place for place in named if next(folder.files(place, XML), None)]
    if filled:
        return max(filled, key=lambda place: sum(1 for _ in folder.files(place, XML)))
    if split_folders(folder.root) and not holds_voc(folder, folder.root):
        return None
    others = [place for place in folders(folder.root) if holds_voc(folder, place)]
    return others[0] if len(others) == 1 and not holds_voc(folder, folder.root) else folder.root


def split_folders(root: Path) -> list[Path]:
    return [place for place in folders(root) if split_name(place.name) and next(Folder(root).files(place, XML), None)]


def _id(file: Path, base: Path) -> str:
    return os.path.splitext(os.path.relpath(file, base))[0].replace(os.sep, "/")


def by_folder(folder: Folder, base: Path, files: list[Path], notes: list[str]) -> dict[str, Group]:
    """Splits by the folders below ``base`` that are named after one."""
    parts: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        parts[split_of(file.relative_to(base).parts[:-1])].append(file)
    if len(parts) > 1 and (left := parts.pop("", None)):
        notes.append(f"{count(len(left), 'annotation file')} in no folder of a split left out: {some(map(folder.show, left))}")
    groups = {}
    for split, inside in parts.items():
        top = Path(os.path.commonpath([file.parent for file in inside]))
        groups[split] = Group({_id(file, top): file for file in inside}, folder.show(top), listed=False)
    return groups


def by_lists(folder: Folder, base: Path, files: list[Path], notes: list[str]) -> dict[str, Group]:
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
        notes.append(f"{count(len(unused), 'list')} not used: {some(map(folder.show, unused))}")
    table = _Names(files, base)
    groups = {split: Group(_entries(folder, path, lists[path], table), folder.show(path), listed=True) for split, path in found.items()}
    if groups and whole and found.get("train") == whole and "val" in groups:
        kept = {name: file for name, file in groups["train"].files.items() if name not in groups["val"].files}
        groups["train"] = replace(groups["train"], files=kept)
    if groups and not any(group.files for group in groups.values()):
        notes.append(f"{count(len(found), 'list')} without names not used: {some(map(folder.show, found.values()))}")
        return {}
    left = set(files) - {file for group in groups.values() for file in group.files.values()}
    if groups and left:
        what = folder.show(next(iter(found.values())).parent)
        shown = some(map(folder.show, sorted(left)))
        notes.append(f"{count(len(left), 'annotation file')} in none of the lists in {what} left out: {shown}")
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


def by_image_folder(folder: Folder, images: list[RawImage]) -> dict[str, list[RawImage]]:
    """Splits by the folders of the images, if every image that is there lies in that of a split, and one of them is "train"."""
    parts: dict[str, list[RawImage]] = defaultdict(list)
    for image in images:
        path = None if image.fault or image.path is None else Path(folder.show(image.path))
        parts["train" if path is None else split_of(path.parts[:-1])].append(image)
    return dict(parts) if "" not in parts and len(parts) > 1 else {"": images}
