"""Which images a YOLO data set's splits have: by its settings, by lists of images, by the names of folders."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from boxquery.data.find import ImageFinder
from boxquery.data.folder import SPLITS, Folder, folders, path_parts, split_name, split_words, visible
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.raw import RawDataset
from boxquery.data.yolo.settings import Settings
from boxquery.errors import UserError, count


@dataclass(slots=True)
class ListedImage:
    """An image of a split: its id, its file, which may be missing, and what names it in messages."""

    id: str
    path: Path
    where: str


@dataclass(slots=True)
class SplitSource:
    """A split: its images by file, and the folders, if any, that hold them all."""

    images: dict[Path, ListedImage] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)


def splits_of_settings(
    folder: Folder, pictures: Folder, finder: ImageFinder, settings: Settings, raw: RawDataset
) -> dict[str, SplitSource]:
    """The splits that a settings file lists, or else those that folders and lists show. Those that are not there: in ``raw.absent``.

    Args:
        folder: the data folder.
        pictures: the folder of the images, if the user names it; otherwise the same.
        finder: of images in ``pictures``.
        settings: what the data says of itself.
        raw: gets notes, and why a split is not there.
    """
    if not settings.entries:
        return _splits_of_folders(folder, pictures, finder, raw.notes)
    base, found = folder.root, {}
    if settings.path and (place := _place(folder, folder.root, settings.path, "")) is not None and place.is_dir():
        base = place
    changed = {} if not settings.path or base == _exact(folder, folder.root, settings.path) else {settings.path: base}
    for split, entries in settings.entries.items():
        places = [_place(folder, base, entry, split) for entry in entries]
        if pictures is not folder:
            pairs = zip(entries, places, strict=True)
            places = [place if place and place.is_file() else _place(pictures, pictures.root, entry, split) for entry, place in pairs]
        if any(place is None for place in places):
            wrong = entries[places.index(None)]
            raw.absent[split] = _absent(folder, base, wrong, f"{settings.where} {split}")
        else:
            found[split] = [place for place in places if place is not None]
    for split, places in found.items():
        others = [place for other in found if other != split for place in found[other]]
        pairs = zip(settings.entries[split], places, strict=True)
        guessed = {entry: place for entry, place in pairs if _exact(folder, base, _pattern(entry)) != place}
        if wrong := [entry for entry, place in guessed.items() if any(other.is_relative_to(place) for other in others)]:
            raw.absent[split] = _absent(folder, base, wrong[0], f"{settings.where} {split}")  # what was found is another split's
    found = {split: places for split, places in found.items() if split not in raw.absent}
    dead = [split for split in raw.absent if all(map(_is_of_another_machine, settings.entries[split]))]
    if dead or settings.where.endswith(".data"):
        taken = {place for places in found.values() for place in places}
        for split, place in _split_folders(folder).items():
            if split in raw.absent and (split in dead or settings.where.endswith(".data")) and place not in taken:
                del raw.absent[split]
                found[split] = [place]
    if not found and pictures is not folder:
        raw.absent.clear()
        return _splits_of_folders(folder, pictures, finder, raw.notes)
    if not found:
        raise UserError(_why_none(folder, base, settings, raw.absent))
    for split, places in found.items():
        entries = settings.entries[split]
        pairs = zip(entries, places, strict=False)
        changed |= {entry: place for entry, place in pairs if _exact(folder, base, _pattern(entry)) != place}
    if changed and pictures is folder:
        taken_as = {entry: "the data folder" if place == folder.root else folder.show(place) for entry, place in changed.items()}
        shown = ", ".join(f"{entry!r} as {place}" for entry, place in [*taken_as.items()][:4])
        raw.notes.append(f"{settings.where}: what does not exist as written is taken from the data folder: {shown}")
    for split, reason in raw.absent.items():
        raw.notes.append(f"{reason}: left out{_labels_left(folder, settings.entries[split], split)}")
    base = base if pictures is folder else pictures.root
    return {split: _source(folder, pictures, finder, base, found[split], split, raw.notes) for split in SPLITS if split in found}


def unlisted(pictures: Folder, settings: Settings, splits: dict[str, SplitSource]) -> dict[Path, tuple[str, SplitSource]]:
    """Folders of images beside those that a settings file lists, each with the split that it may be: "" for none or one that is listed."""
    result: dict[Path, tuple[str, SplitSource]] = {}
    listed = {path.parent for source in splits.values() for path in source.images}
    starts = [place for source in splits.values() for place in source.folders] if settings.entries else []
    for split, start in ((split, start) for split in splits for start in starts if start in splits[split].folders):
        parts = start.relative_to(pictures.root).parts if start.is_relative_to(pictures.root) else ()
        level = next((i for i in reversed(range(len(parts))) if split_name(parts[i]) == split), None)
        if level is None:
            continue
        for beside in folders(pictures.root.joinpath(*parts[:level])):
            place, name = beside.joinpath(*parts[level + 1 :]), split_name(beside.name) or ""
            if place in result or any(other.is_relative_to(place) or place.is_relative_to(other) for other in listed.union(starts)):
                continue
            if images := pictures.images(place):
                members = {path: ListedImage(_id(path.relative_to(place)), path, pictures.show(path)) for path in images}
                result[place] = "" if name in settings.entries else name, SplitSource(members, [place])
    return result


def _absent(folder: Folder, base: Path, entry: str, where: str) -> str:
    """What is not there."""
    if folder.leaves(base, entry):
        return f"{where}: there is no {'/'.join(path_parts(entry)[-2:])} in the data folder ({entry!r})"
    return f"{where}: there is no {folder.show(base / entry)}"


def _labels_left(folder: Folder, entries: list[str], split: str) -> str:
    """What to say of the label files of a split whose images are not there."""
    texts: dict[Path, None] = {}
    for parts in (path_parts(_pattern(entry)) for entry in entries):
        for skipped in range(len(parts)):
            tail = ["labels" if part.casefold() == "images" else part for part in parts[skipped:]]
            if split in split_words(tail) and "labels" in tail and (place := without_case(folder.root, tail)) is not None:
                texts |= dict.fromkeys(folder.files(place, frozenset({".txt"})))
                break
    if not texts:
        return ""
    boxes = sum(len(folder.lines(text)) for text in texts)
    return f" with {count(len(texts), 'label file')} ({count(boxes, 'box', 'boxes')}), as in {folder.show(next(iter(texts)))}"


def _why_none(folder: Folder, base: Path, settings: Settings, absent: dict[str, str]) -> str:
    """Why no split is there, in the words of the first."""
    split = next(iter(absent))
    entry = next((entry for entry in settings.entries[split] if folder.leaves(base, entry)), settings.entries[split][0])
    if folder.leaves(base, entry):
        inside = "/".join(path_parts(entry)[-2:])
        return (
            f"{settings.where} {split}: {entry!r} leaves the data folder {folder.root}, and there is no {inside} inside; correct the path"
        )
    if settings.path and folder.leaves(folder.root, settings.path):
        where, path = f"{settings.where} path", settings.path
        return f"{where}: {path!r} leaves the data folder {folder.root}, and there is no {entry} inside; correct the path"
    return f"{absent[split]}; it should be a folder, a list of folders or images, or a text file of image paths"


def _is_of_another_machine(entry: str) -> bool:
    """True for an absolute path that does not exist here."""
    return bool(PureWindowsPath(entry).drive) or (PurePosixPath(entry).is_absolute() and not os.path.lexists(entry))


def _pattern(entry: str) -> str:
    """The folder of ``images/train/*.jpg``."""
    head, _, last = entry.replace("\\", "/").rpartition("/")
    return head if "*" in last else entry


def _exact(folder: Folder, base: Path, entry: str) -> Path | None:
    """The folder or file of exactly that path, if there is one inside the data folder."""
    if folder.leaves(base, entry):
        return None
    path = folder.join(base, entry, entry)
    return path if path.exists() else None


def _place(folder: Folder, base: Path, entry: str, split: str) -> Path | None:
    """The folder, list or image that an entry of the settings names: exactly, or by the end of its path, whatever the case."""
    entry = _pattern(entry)
    if (path := _exact(folder, base, entry)) is not None:
        return path
    parts = path_parts(entry)
    for skipped in range(len(parts)):
        if split and split in split_words(parts[:skipped]) and not split_words(parts[skipped:]):
            return None  # what is left of the path no longer says which split it is
        for start in dict.fromkeys((base, folder.root)):
            if (path := without_case(start, parts[skipped:])) is not None:
                return path
    return None


def without_case(start: Path, parts: list[str]) -> Path | None:
    """``start`` joined with parts whose case may differ; None if that does not exist, or is not unique."""
    path = start
    for part in parts:
        if (path / part).exists():
            path = path / part
            continue
        alike = [inner for inner in (*folders(path), *visible(path)) if inner.name.casefold() == part.casefold()] if path.is_dir() else []
        if len(alike) != 1:
            return None
        path = alike[0]
    return path


def _split_folders(folder: Folder) -> dict[str, Path]:
    """The image folders that are named after a split, below or above a folder ``images``."""
    root = folder.root
    images = without_case(root, ["images"])
    for base in [*([images] if images else []), root, *folders(root)]:
        if found := folder.splits(base, folder.images):
            return {split: without_case(place, ["images"]) or place for split, (place, _) in found.items()}
    return {}


def _splits_of_folders(folder: Folder, pictures: Folder, finder: ImageFinder, notes: list[str]) -> dict[str, SplitSource]:
    """The splits, from lists of images in the folder or from the names of folders."""
    lists: dict[str, list[Path]] = defaultdict(list)
    for file in visible(folder.root, "*.[tT][xX][tT]"):
        split, lines = split_name(file.stem), folder.lines(file) if file.is_file() else []
        if split and lines and os.path.splitext(lines[0][1])[1].lower() in IMAGE_SUFFIXES:
            lists[split].append(file)
    if lists:
        notes.append(f"the splits are those of {', '.join(folder.show(file) for files in lists.values() for file in files)}")
        return {split: _source(folder, pictures, finder, pictures.root, lists[split], split, notes) for split in SPLITS if split in lists}
    if found := _split_folders(pictures):
        return {split: _source(folder, pictures, finder, pictures.root, [place], split, notes) for split, place in found.items()}
    images = without_case(pictures.root, ["images"])
    place = images if images is not None and pictures.images(images) else pictures.root
    return {"": _source(folder, pictures, finder, pictures.root, [place], "", notes)}


def _source(
    folder: Folder, pictures: Folder, finder: ImageFinder, base: Path, places: list[Path], split: str, notes: list[str]
) -> SplitSource:
    """Folders, lists and single images as the source of one split."""
    source, comments, twice = SplitSource(folders=[place for place in places if place.is_dir()]), 0, 0
    for place in places:
        if place.is_dir():
            start = place if len(places) == 1 else base if place.is_relative_to(base) else pictures.root
            images = [ListedImage(_id(path.relative_to(start)), path, pictures.show(path)) for path in pictures.images(place)]
        elif place.suffix.lower() in IMAGE_SUFFIXES:
            images = [ListedImage(_id(Path(pictures.show(place))), place, pictures.show(place))]
        else:
            images = []
            for where, line in folder.lines(place):
                name = line.strip("\"'")
                near = place.parent / name
                exact = near if not folder.leaves(place.parent, name) and not (base / name).is_file() and near.is_file() else None
                path = (
                    folder.join(place.parent, name, where)
                    if exact
                    else finder.find(base, name, where, "" if len(path_parts(name)) > 1 else split)
                )
                if line.startswith("#") and not path.is_file():
                    comments += 1
                else:
                    images.append(ListedImage(_id(Path(pictures.show(path))), path, where))
        twice += len(images) - len({image.path for image in images} - source.images.keys())
        for image in images:
            source.images.setdefault(image.path, image)
    if comments:
        notes.append(f"{count(comments, 'line')} of the list of {split or 'images'} {'is a comment' if comments == 1 else 'are comments'}")
    same: dict[str, list[ListedImage]] = defaultdict(list)
    for image in source.images.values():
        same[image.id].append(image)
    if several := [images for images in same.values() if len(images) > 1]:
        for image in (image for images in several for image in images):
            image.id += image.path.suffix
        names = " and ".join(image.path.name for image in several[0])
        notes.append(
            f"{sum(map(len, several))} images{f' of {split}' if split else ''} differ from another by their ending alone: {names};"
            " each is used, with the same labels; move away those that are masks or copies"
        )
    if twice:
        notes.append(f"{count(twice, 'image')} of {split or 'the data'} {'is' if twice == 1 else 'are'} listed more than once: used once")
    return source


def _id(path: Path) -> str:
    return path.with_suffix("").as_posix()
