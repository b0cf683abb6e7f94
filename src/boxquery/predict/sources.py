"""From the files, folders and globs that a user names to a list of images, each with a name of its own. Imports no torch."""

from __future__ import annotations

import glob
import os
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from boxquery.data.folder import is_hidden
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.errors import UserError, count, some
from boxquery.result import name_to_id

#: bytes of a file or folder name that is written; file systems end at 255, and a suffix and a number follow
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image to look at.

    Attributes:
        path: the file.
        name: its path below the common folder of all images, with "/".
        stem: what the files that are written for it are called, without ending: as ``name``, unique among all images.
        id: ``image_id`` of its detections, unique among all images.
    """

    path: Path
    name: str
    stem: str
    id: int | str


def find_images(sources: Sequence[str]) -> tuple[list[ImageFile], list[str]]:
    """The images of all sources in the order given, each once, and notes on what was decided.

    Args:
        sources: image files, folders (searched recursively) and globs.

    Raises:
        UserError: a source that is not there, or no image in any of them.
    """
    files: dict[str, tuple[Path, Path]] = {}
    again: list[Path] = []
    passed: Counter[str] = Counter()
    for source in sources:
        for path, base in _files(source, passed):
            real = os.path.realpath(path)
            if real in files:
                again.append(path)
            else:
                files[real] = path, base
    if not files:
        there = f"; there are {_endings(passed)}" if passed else ""
        raise UserError(f"{', '.join(sources)}: no image there ({', '.join(sorted(IMAGE_SUFFIXES))} are looked for{there})")
    notes = [f"skipped files that are not images: {_endings(passed)}"] if passed else []
    if again:
        notes.append(f"{count(len(again), 'image')} named more than once, looked at once: {some(map(str, again))}")
    root = Path(os.path.commonpath([os.path.abspath(base) for _, base in files.values()]))
    names = [PurePath(os.path.relpath(os.path.abspath(path), root)) for path, _ in files.values()]
    stems, ids = _stems(names), _ids(names, notes)
    images = [
        ImageFile(path, name.as_posix(), stem, id_)
        for (path, _), name, stem, id_ in zip(files.values(), names, stems, ids, strict=True)
    ]  # fmt: skip
    return images, notes


def _files(source: str, passed: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """Image files of a source, each with the folder that its name is relative to; others are counted by suffix."""
    path = Path(source).expanduser()
    if path.is_dir():
        yield from _folder(path, passed)
    elif path.is_file():
        yield path, path.parent
    else:
        matches = sorted(glob.glob(os.path.expanduser(source), recursive=True))
        if not matches:
            raise UserError(f"{source}: no such image or folder, and no match as a glob")
        for match in map(Path, matches):
            if match.is_dir():
                if "**" not in source:  # which has matched what is in it
                    yield from _folder(match, passed)
            elif match.suffix.lower() in IMAGE_SUFFIXES:
                yield match, match.parent
            else:
                passed[match.suffix.lower()] += 1


def _folder(root: Path, passed: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """As ``_files``, without what is hidden, and without the pictures that an earlier call has written there."""
    for folder, folders, names in os.walk(root):
        written = {"pictures", "crops"} & set(folders) if "predictions.json" in names else set()
        for name in sorted(written):
            passed[f"{name}/ of an earlier result"] += 1
        folders[:] = sorted(name for name in folders if not is_hidden(name) and name not in written)
        for name in sorted(names):
            if is_hidden(name):
                continue
            if (suffix := Path(name).suffix.lower()) in IMAGE_SUFFIXES:
                yield Path(folder) / name, root
            else:
                passed[suffix] += 1


def _stems(names: Sequence[PurePath]) -> list[str]:
    """Their paths without ending where that is unique, also on a file system that ignores case; otherwise with it."""
    short = [PurePath(*map(_shorten, name.with_suffix("").parts)) for name in names]
    whole = [PurePath(*map(_shorten, name.parts)) for name in names]
    folders = {parent for stem in short for parent in stem.parents}
    chosen = short if _unique(short, lambda stem: str(stem).casefold()) and not any(stem in folders for stem in short) else whole
    return [stem.as_posix() for stem in chosen]


def _shorten(part: str) -> str:
    """A file name that leaves room for an ending; a long one is cut and gets a check sum."""
    raw = os.fsencode(part)
    return part if len(raw) <= _LONGEST else f"{os.fsdecode(raw[: _LONGEST - 9]).rstrip()}~{zlib.crc32(raw):08x}"


def _ids(names: Sequence[PurePath], notes: list[str]) -> list[int | str]:
    """The first kind of id that tells all images apart: name without ending (a number if it is one), path without ending, path."""
    kinds: dict[str, Callable[[PurePath], int | str]] = {
        "the file's name without its ending": name_to_id,
        "the path without its ending": lambda name: name.with_suffix("").as_posix(),
        "the path": lambda name: name.as_posix(),
    }
    clash = ""
    for kind, make in kinds.items():
        ids = [make(name) for name in names]
        same, number = Counter(ids).most_common(1)[0]
        if number == 1:
            if clash:
                notes.append(f"image_id is {kind}, since names alone do not tell images apart: {clash}")
            return ids
        clash = clash or some(name.as_posix() for name, id_ in zip(names, ids, strict=True) if id_ == same)
    raise AssertionError("paths are unique")


def _unique(values: Sequence[PurePath], key: Callable[[PurePath], Hashable]) -> bool:
    return len({key(value) for value in values}) == len(values)


def _endings(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {suffix or 'without ending'}" for suffix, number in counts.most_common(6))
