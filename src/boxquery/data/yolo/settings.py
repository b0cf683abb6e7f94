"""What a YOLO data set says of itself, in ``data.yaml``, ``obj.data`` or a class list: class names, places of splits, key points."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from boxquery.data.folder import Folder, folders, read_bytes, visible
from boxquery.data.raw import as_number
from boxquery.data.yolo.geometry import Keypoints
from boxquery.data.yolo.lines import looks_like_labels
from boxquery.errors import UserError, one_line

_KEYS = {"train": ("train",), "val": ("val", "valid", "validation", "dev", "eval"), "test": ("test", "testing")}
YAML = frozenset({".yaml", ".yml"})
_USUAL = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_LISTS = ("classes.txt", "obj.names", "_darknet.labels", "classes.names", "labels.txt", "notes.json", "predefined_classes.txt")
_DEPTH = 2  # folders below the data folder in which class lists are looked for
_NOTHING = ("", "~", "null", "none")


@dataclass(slots=True)
class Settings:
    """What the files say.

    Attributes:
        where: the file, for messages.
        names: class names by number; empty where nothing lists them.
        entries: of "train", "val", "test": the folders, lists or images, as written; empty where no file lists any.
        path: what the entries are relative to, as written.
        keypoints: of every line, or None.
        notes: what was inferred.
    """

    where: str
    names: dict[int, str]
    entries: dict[str, list[str]] = field(default_factory=dict)
    path: str = ""
    keypoints: Keypoints | None = None
    notes: list[str] = field(default_factory=list)


def find_settings(root: Path) -> Path | None:
    """The settings file of a folder: one of the usual names, another YAML file with ``names``, or darknet's ``.data``."""
    found = [root / name for name in _USUAL if (root / name).is_file()]
    return next(iter([*found, *_other_settings(root)]), None)


def _other_settings(root: Path) -> list[Path]:
    folder = Folder(root)
    files = [file for file in visible(root) if file.suffix.lower() in (*YAML, ".data") and file.name not in _USUAL and folder.holds(file)]
    return sorted((file for file in files if b"names" in read_bytes(file)), key=lambda file: file.suffix.lower() == ".data")


def is_class_list(name: str) -> bool:
    """True for the names that tools give to their list of classes."""
    return name.lower() in _LISTS or name.lower().endswith(".names")


def read_settings(folder: Folder, head: Path) -> Settings:
    """The settings of a data folder.

    Args:
        folder: the data folder.
        head: its YAML or ``.data`` file, its class list, or the folder itself.

    Raises:
        UserError: a broken file, a class number that is listed twice, class lists that differ.
    """
    where, notes = folder.show(head), list[str]()
    if head.suffix.lower() in YAML:
        settings = _of_yaml(folder, head)
    elif head.suffix.lower() == ".data":
        settings = _of_darknet(folder, head)
    else:
        settings = Settings(where, {} if head.is_dir() else _listed(folder, head, notes), notes=notes)
    if head.is_file() and head.parent == folder.root:
        usual = [folder.root / name for name in _USUAL if (folder.root / name).is_file()]
        if others := [folder.show(file) for file in (*usual, *_other_settings(folder.root)) if file != head and settings.entries]:
            settings.notes.append(f"{where} is used, though {' and '.join(others)} could be as well; give the file itself to choose")
    if not settings.names:
        settings.names = _of_class_lists(folder, settings.notes)
    return settings


# -- data.yaml ----------------------------------------------------------------------------------------------------------------------------


class _TextLoader(yaml.SafeLoader):
    """YAML whose unquoted words and numbers stay the text that they are, and whose keys are unique."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, number in keys.items() if number > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is listed twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _of_yaml(folder: Folder, file: Path) -> Settings:
    where, text = folder.show(file), folder.text(file)
    try:
        content = yaml.load(text, _TextLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken YAML ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{where}: should hold 'names' and 'train', 'val'")
    content = {str(key).strip().lower(): value for key, value in content.items()}
    settings = Settings(where, {})
    settings.names = _names(folder, content, settings)
    settings.entries = {split: entry for split, keys in _KEYS.items() if (entry := _entry(content, keys, f"{where} {split}"))}
    path = content.get("path")
    settings.path = path.strip() if isinstance(path, str) and path.strip().lower() not in _NOTHING else ""
    if "kpt_shape" in content:
        settings.keypoints = _keypoints(content["kpt_shape"], settings)
    return settings


def _entry(content: dict[str, Any], keys: tuple[str, ...], where: str) -> list[str]:
    for key in keys:
        entry = content.get(key)
        items = entry if isinstance(entry, list) else [entry] if entry is not None else []
        if not all(isinstance(item, str) for item in items):
            raise UserError(f"{where}: should be a folder, a list of folders or images, or a text file of image paths")
        if items := [item.strip() for item in items if item.strip().lower() not in _NOTHING]:
            return items
    return []


def _keypoints(value: object, settings: Settings) -> Keypoints | None:
    numbers = [as_number(item) for item in value] if isinstance(value, list) else []
    if len(numbers) == 2 and numbers[0] > 0 and numbers[0] == int(numbers[0]) and numbers[1] in (2, 3):
        return Keypoints(int(numbers[0]), int(numbers[1]), stated=True)
    settings.notes.append(f"{settings.where}: 'kpt_shape' should be [number of key points, 2 or 3]; it is not used")
    return None


def _names(folder: Folder, content: dict[str, Any], settings: Settings) -> dict[int, str]:
    """The class names: a list, a map, a list of maps, text with commas, or the file that has them."""
    where, names, count = settings.where, content.get("names"), _number(content.get("nc"))
    if isinstance(names, str) and names.strip().lower() not in _NOTHING:
        if (file := _named_file(folder, names)) is not None:
            names = _listed(folder, file, settings.notes)
        else:
            names = [name for part in names.strip("[]").split(",") if (name := part.strip(" '\""))]
    if isinstance(names, list) and names and all(isinstance(item, dict) for item in names):
        names = _of_maps(names, where)
    if isinstance(names, list):
        names = dict(enumerate(names))
    if names is None or isinstance(names, str):
        others = _of_class_lists(folder, settings.notes)
        if not others and not count:
            raise UserError(f"{where}: no categories; 'names' should be a list, or map class numbers to names")
        if not others and count:
            settings.notes.append(f"{where}: no 'names'; the {count} classes that 'nc' counts are called class 0, class 1, ...")
        return others or {i: f"class {i}" for i in range(count or 0)}
    result = _numbered(names, where)
    if count and count != len(result):
        settings.notes.append(f"{where}: 'nc' is {count}, but 'names' lists {len(result)} classes; those are used")
    return result


def _of_maps(items: Sequence[Any], where: str) -> dict[Any, Any] | list[Any]:
    """``- 0: cat`` or ``- name: cat`` or ``- {id: 0, name: cat}``."""
    if all("name" in item for item in items):
        if not all("id" in item for item in items):
            return [item["name"] for item in items]
        items = [{str(item["id"]): item["name"]} for item in items]
    pairs = [pair for item in items for pair in item.items()]
    _fail_if_twice([key for key, _ in pairs], where)
    return dict(pairs)


def _fail_if_twice(keys: Iterable[object], where: str) -> None:
    if twice := [key for key, number in Counter(keys).items() if number > 1]:
        raise UserError(f"{where}: class {twice[0]} is listed twice under 'names'; make class numbers unique")


def _numbered(names: object, where: str) -> dict[int, str]:
    if not isinstance(names, dict) or not names:
        raise UserError(f"{where}: no categories; 'names' should be a list, or map class numbers to names")
    keys = [_number(key) for key in names]
    if None in keys and all(isinstance(value, str) and _number(value) is not None for value in names.values()):
        names = {value: str(key) for key, value in names.items()}  # cat: 0
        keys = [_number(key) for key in names]
    if None in keys:
        raise UserError(f"{where}: no categories; 'names' should be a list, or map class numbers to names")
    _fail_if_twice(keys, where)
    if wrong := [key for key, name in zip(keys, names.values(), strict=True) if isinstance(name, (list, dict))]:
        raise UserError(f"{where}: class {wrong[0]} under 'names' should be a word, not a list or map")
    return {key: str(name).strip() or f"class {key}" for key, name in zip(keys, names.values(), strict=True) if key is not None}


def _number(value: object) -> int | None:
    return int(value) if isinstance(value, (int, str)) and re.fullmatch(r"\s*\d{1,9}\s*", str(value)) else None


# -- darknet, and lists of classes --------------------------------------------------------------------------------------------------------


def _of_darknet(folder: Folder, file: Path) -> Settings:
    """``key = value`` lines: classes, train, valid, names."""
    where = folder.show(file)
    pairs = (line.partition("=") for _, line in folder.lines(file))
    values = {key.strip().lower(): value.strip() for key, _, value in pairs}
    entries = {split: [value] for split, keys in _KEYS.items() if (value := next((values[k] for k in keys if values.get(k)), ""))}
    names = _named_file(folder, values.get("names", ""))
    notes = list[str]()
    return Settings(where, {} if names is None else _listed(folder, names, notes), entries, notes=notes)


def _named_file(folder: Folder, name: str) -> Path | None:
    """The file inside the folder that settings name; leading folders that are not there are left out."""
    parts = [part for part in name.strip().replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if "," in name or len(name) > 250:
        return None
    return next((path for i in range(len(parts)) if (path := folder.root.joinpath(*parts[i:])).is_file()), None)


def _of_class_lists(folder: Folder, notes: list[str]) -> dict[int, str]:
    """The names in a list of classes somewhere in the folder; {} where there is none."""
    places, found = [folder.root], list[Path]()
    for _ in range(_DEPTH + 1):
        found += [file for place in places for file in visible(place) if is_class_list(file.name) and file.is_file()]
        places = [inner for place in places for inner in folders(place)]
    lists = {file: names for file in sorted(found, key=_rank) if (names := _listed(folder, file, notes))}
    if not lists:
        return {}
    first = next(iter(lists))
    names = lists[first]
    for file, other in lists.items():
        if file.name != first.name or file.parent == folder.root or first.parent == folder.root or file == first:
            continue
        if any(names[i] != other[i] for i in names.keys() & other.keys()):
            raise UserError(f"{folder.show(first)} and {folder.show(file)} list different classes; keep one, or list 'names' in data.yaml")
        names = max(names, other, key=len)
    if first.parent != folder.root:
        notes.append(f"class names are from {folder.show(first)}")
    if others := [folder.show(file) for file, other in lists.items() if other != names]:
        notes.append(f"class names are from {folder.show(first)}; {' and '.join(others[:3])} would say otherwise")
    return names


def _rank(file: Path) -> tuple[int, int, str]:
    name = file.name.lower()
    return (_LISTS.index(name) if name in _LISTS else 1), len(file.parts), str(file)


def _listed(folder: Folder, file: Path, notes: list[str]) -> dict[int, str]:
    """The names in a file: one a line, or Label Studio's ``categories``; {} if it is no list of names."""
    if file.suffix.lower() == ".json":
        try:
            content = json.loads(folder.text(file))
            return _numbered({str(item["id"]): item["name"] for item in content["categories"]}, folder.show(file))
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
    lines = [line for _, line in folder.lines(file)]
    if lines and all(map(looks_like_labels, lines)):
        return {}  # the label file of an image called labels.jpg
    numbered = [re.fullmatch(rf"{i}\s*[:;,.)\s]\s*(\S.*)", line) for i, line in enumerate(lines)]
    if len(lines) > 1 and all(numbered):
        return {i: found[1] for i, found in enumerate(numbered) if found}
    every = [line.strip() for line in folder.text(file).strip().splitlines()]
    if len(lines) < len(every) and (len(lines) < 3 or any(every[1::2])):  # otherwise every second line is blank
        names = f"class {(blank := every.index(''))} is {lines[blank]!r}"
        notes.append(
            f"{folder.show(file)} has a blank line among the names: it is left out, and {names}; remove it, or name the class there"
        )
    return dict(enumerate(lines))
