"""The categories of all COCO files of a data set."""

from __future__ import annotations

import itertools
from typing import Any

from boxquery.data.coco.file import CocoFile
from boxquery.data.raw import RawDataset
from boxquery.errors import UserError


def number_categories(parts: dict[str, CocoFile], notes: list[str]) -> dict[int, str]:
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


def drop_parents(raw: RawDataset, categories: list[Any]) -> None:
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
