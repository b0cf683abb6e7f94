"""COCO: one JSON per split with ``images``, ``annotations`` and ``categories``.

Layouts: a JSON file beside or above its images, or in any folder beside theirs; Roboflow's ``train/_annotations.coco.json``. A file's
split is in its name or in that of a folder above it. Category ids may be sparse and start anywhere: labels are their ranks, the ids stay
in ``Data.ids``. Boxes are x, y, width, height in pixels; segmentations are only read where a box is missing; ``iscrowd`` becomes
``ignore``. Values in another type than the format's (``values.py``) and names of images that are not quite right (``find.py``) are
used where they are clear, with a note.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from boxquery.data.coco.categories import drop_parents, number_categories
from boxquery.data.coco.file import CocoFile
from boxquery.data.coco.layout import LISTS, looks_like_coco, split_of_file
from boxquery.data.find import ImageFinder
from boxquery.data.folder import SPLITS, Folder, read_bytes
from boxquery.data.raw import RawDataset
from boxquery.errors import UserError, count, one_line, some


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
        shown = some(map(folder.show, left))
        used = ", ".join(part.where for part in parts.values())
        raw.notes.append(f"{count(len(left), 'other COCO file')} left out: {shown} ({used} {'are' if len(parts) > 1 else 'is'} read)")
    names = number_categories(parts, raw.notes)
    raw.ids = sorted(names)
    raw.names = [names[number] for number in raw.ids]
    place = Folder(images or folder.root)
    finder = ImageFinder(place)
    for split, part in parts.items():
        base = part.image_folder(place, finder, raw.notes)
        raw.splits[split] = part.images(finder, base, split, {number: label for label, number in enumerate(raw.ids)}, raw.orphans)
        raw.notes += part.notes()
    finder.finish(raw)
    drop_parents(raw, [category for part in parts.values() for category in part.content["categories"]])
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
            if len(files) == 1 or split_of_file(folder, file) or looks_like_coco(file):
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
    for key in LISTS:
        if not isinstance(content.get(key), list):
            return f"no list {key!r}; COCO annotations have images, annotations and categories"
    return ""


def _by_split(folder: Folder, contents: dict[Path, Any], whole: bool) -> dict[str, CocoFile]:
    parts: dict[str, CocoFile] = {}
    for file, content in contents.items():
        split = "" if whole else split_of_file(folder, file)
        part = CocoFile(folder, file, content)
        if split in parts:
            alike = [folder.show(other) for other in contents if split_of_file(folder, other) == split]
            both = f"{alike[0]} and {alike[1]}" if len(alike) == 2 else f"{alike[0]}, {alike[1]} and {len(alike) - 2} more"
            what = f"are {'both' if len(alike) == 2 else 'all'} {split or 'without a split'}"
            raise UserError(f"{folder.root}: {both} {what}; merge them, or name the one to use: --annotations {alike[0]}")
        parts[split] = part
    if "" in parts and len(parts) > 1:
        raise UserError(
            f"{parts[''].where}: is it train, val or test? Put the word into its name, or name the one file to use with --annotations"
        )
    return {split: parts[split] for split in (*SPLITS, "") if split in parts}
