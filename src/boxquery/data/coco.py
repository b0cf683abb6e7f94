"""COCO: one JSON per split with ``images``, ``annotations`` and ``categories``.

Layouts: a JSON file beside or above its images; ``annotations/instances_train2017.json`` with ``train2017/`` or ``images/``; Roboflow's
``train/_annotations.coco.json``. Category ids may be sparse and start anywhere: labels are their ranks, the ids stay in ``Data.ids``.
Boxes are x, y, width, height in pixels; segmentations are not read; ``iscrowd`` becomes ``ignore``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from boxquery.data.find import ImageFinder
from boxquery.data.folder import Folder, split_name, visible
from boxquery.data.raw import Fault, RawDataset, RawImage, RawObject, as_number
from boxquery.errors import UserError, one_line

_SAMPLE = 20  # images tried when the image folder is looked for
_LONGEST = 255  # characters of a file name that an operating system will look at


def find(root: Path) -> list[Path]:
    """The JSON files that a folder in one of the layouts trains and evaluates on; empty if it is none."""
    roboflow = visible(root, "*/_annotations.coco.json") or visible(root, "_annotations.coco.json")
    if roboflow:
        return roboflow
    for name in ("annotations", "Annotations"):
        files = visible(root / name, "*.json")
        if files:
            return [file for file in files if file.stem.startswith("instances")] or files
    return visible(root, "*.json")


def read(root: Path, files: list[Path], *, whole: bool = False) -> RawDataset:
    """What the files say.

    Args:
        root: the data folder.
        files: one per split, or a single one without splits.
        whole: the single file has no splits, whatever it is called.

    Raises:
        UserError: broken or incomplete JSON, no or duplicate categories, categories that differ between files, files whose split is not
            clear, a path that leaves the folder.
    """
    folder = Folder(root)
    by_split: dict[str, Path] = {}
    for file in (Path(os.path.abspath(file)) for file in files):
        folder.check_link(file, folder.show(file))
        name = "" if whole else split_name(file.parent.name if file.stem == "_annotations.coco" else file.stem) or ""
        if name in by_split:
            both = f"{folder.show(by_split[name])} and {folder.show(file)}"
            raise UserError(f"{folder.root}: {both} are both {name or 'without a split'}; name the one to use")
        by_split[name] = file
    if "" in by_split and len(by_split) > 1:
        raise UserError(f"{folder.show(by_split[''])}: is it train, val or test? Put the word into its name, or name the one file to use")
    contents = {name: _load(folder, file) for name, file in by_split.items()}
    names = _categories(folder, by_split, contents)
    ids = sorted(names)
    labels = {number: label for label, number in enumerate(ids)}
    raw = RawDataset("coco", [names[i] for i in ids], ids, {})
    finder = ImageFinder(folder)
    for name, content in contents.items():
        base = _image_folder(folder, finder, by_split[name], content["images"], raw.notes)
        raw.splits[name] = _images(folder, finder, base, by_split[name], content, labels, raw.orphans)
    finder.finish(raw)
    return raw


def _load(folder: Folder, file: Path) -> dict[str, Any]:
    where = folder.show(file)
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({one_line(error)})") from error
    except RecursionError as error:
        raise UserError(f"{where}: nested too deeply to be COCO annotations") from error
    except ValueError as error:  # broken JSON, broken UTF-8, numbers of absurd length
        raise UserError(f"{where}: broken JSON ({one_line(error)}); export it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: not COCO annotations: the file should hold an object with images, annotations and categories")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{where}: no list {key!r}; COCO annotations have images, annotations and categories")
    return content


def _categories(folder: Folder, files: dict[str, Path], contents: dict[str, dict[str, Any]]) -> dict[int, str]:
    """Names by id, over all files."""
    names: dict[int, str] = {}
    for split, content in contents.items():
        where = folder.show(files[split])
        seen: set[int] = set()
        for number, category in enumerate(content["categories"]):
            category_id = _value(category, "id", int)
            if category_id is None or not isinstance(category.get("name"), str):
                raise UserError(f"{where} categories[{number}]: needs an integer 'id' and a 'name'")
            if category_id in seen:
                raise UserError(f"{where} categories[{number}]: category id {category_id} is already taken; make ids unique")
            seen.add(category_id)
            name = category["name"].strip() or f"category {category_id}"
            if (other := names.setdefault(category_id, name)) != name:
                raise UserError(f"{where}: category {category_id} is {name!r} here, but {other!r} in another split; use one list for all")
    if not names:
        raise UserError(f"{folder.show(next(iter(files.values())))}: no categories; list them under 'categories'")
    return names


def _images(
    folder: Folder,
    finder: ImageFinder,
    base: Path,
    file: Path,
    content: dict[str, Any],
    labels: dict[int, int],
    orphans: list[tuple[str, Fault]],
) -> list[RawImage]:
    where, split = folder.show(file), split_name(file.stem) or ""
    images: dict[int | str, RawImage] = {}
    for number, entry in enumerate(content["images"]):
        image_id = _value(entry, "id", int, str)
        if image_id is None:
            raise UserError(f"{where} images[{number}]: needs an 'id' that is an integer or a string")
        if image_id in images:
            raise UserError(f"{where} images[{number}]: image id {image_id!r} is already taken; make ids unique")
        name, text = entry.get("file_name"), f"{where} image {image_id!r}"
        path = finder.find(base, name, text, split) if isinstance(name, str) and name else None
        size = (as_number(entry.get("width")), as_number(entry.get("height")))
        images[image_id] = RawImage(image_id, path, text, size if size[0] > 0 and size[1] > 0 else None)
    for number, entry in enumerate(content["annotations"]):
        if not isinstance(entry, dict):
            orphans.append((f"{where} annotations[{number}]", Fault("not an object", repr(entry)[:80])))
            continue
        text = f"{where} annotation {entry.get('id', f'[{number}]')}"
        image_id = _value(entry, "image_id", int, str)
        if image_id not in images:
            orphans.append((text, Fault("unknown image", repr(entry.get("image_id"))[:80], "export images and annotations together")))
            continue
        images[image_id].objects.append(
            RawObject(
                where=f"{text} (image {image_id!r})",
                label=labels.get(_value(entry, "category_id", int)),
                box=_box(entry.get("bbox")),
                raw=(entry.get("category_id"), entry.get("bbox")),
                ignore=as_number(entry.get("iscrowd", 0)) == 1,
                area=as_number(entry.get("area")),
            )
        )
    return list(images.values())


def _value(entry: object, key: str, *types: type) -> Any:
    """The value of a key, or None if it is not of these types (a bool is no int)."""
    value = entry.get(key) if isinstance(entry, dict) else None
    return value if isinstance(value, types) and not isinstance(value, bool) else None


def _box(value: object) -> tuple[float, float, float, float] | None:
    """COCO's x, y, width, height as xyxy; None if it is not four numbers (not even NaN or infinite ones)."""
    if not isinstance(value, list) or len(value) != 4 or any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in value):
        return None
    x, y, width, height = (as_number(v) for v in value)
    return x, y, x + width, y + height


def _image_folder(folder: Folder, finder: ImageFinder, file: Path, images: list[Any], notes: list[str]) -> Path:
    """The folder in which most of a few of the files are found: one of those that are usual, or else any."""
    token = file.stem.removeprefix("instances_")
    split = split_name(file.stem)
    root = folder.root
    places = [file.parent, root / token, root / "images" / token, root / token / "images"]
    if split:
        for base in (root, root / "images"):
            alike = sorted(p for p in base.iterdir() if p.is_dir() and split_name(p.name) == split) if base.is_dir() else []
            places += [inner for place in alike for inner in (place, place / "images")]
    places += [root / "images", root / "JPEGImages", root]
    step = max(1, len(images) // _SAMPLE)
    names = [entry["file_name"] for entry in images[::step] if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)]
    names = [name.replace("\\", "/") for name in names if "\0" not in name and len(name) < _LONGEST]
    found = {place: sum(not folder.leaves(place, name) and (place / name).is_file() for name in names) for place in places}
    best = max(places, key=lambda place: found[place])
    if not found[best] and (inferred := finder.best_base(names, split or "")):
        notes.append(f"{folder.show(file)}: its images are in {folder.show(inferred)}/")
        return inferred
    return best if found[best] else root
