"""From what a user names (files, folders, globs, cameras, addresses) to sources, each with a name of its own. Imports no torch."""

from __future__ import annotations

import glob
import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePath
from typing import Literal

from boxquery.data.folder import is_hidden
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.video import camera_of, is_stream, is_video_file, require_av, without_password
from boxquery.data.web import is_web_image
from boxquery.errors import UserError, count, some
from boxquery.result import name_to_id

SourceKind = Literal["image", "video", "live", "web image"]
#: what is not in the name of a file that is written for an address
_UNSAFE = re.compile(r"[^\w.-]+")
#: bytes of a file or folder name that is written; file systems end at 255, and a suffix and a number follow
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Source:
    """An image or a video to look at.

    Attributes:
        path: the file; or the camera or address.
        name: a file's path below the common folder of all files, with "/"; else the camera or the address, without a password.
        stem: what the files that are written for it are called, without ending: as ``name``, unique among all sources.
        id: ``image_id`` of its detections, unique among all sources.
        kind: what it is.
    """

    path: Path | str
    name: str
    stem: str
    id: int | str
    kind: SourceKind = "image"

    @property
    def has_frames(self) -> bool:
        return self.kind in ("video", "live")


@dataclass(frozen=True, slots=True)
class Item:
    """What one result belongs to: an image, or a frame of a video.

    Attributes:
        frame, time: of a frame its number, from 0, and the seconds since the first one.
        rate, time_base: of its video: frames per second, and the unit of time stamps in seconds.
    """

    source: Source
    frame: int | None = None
    time: Fraction | None = None
    rate: Fraction = Fraction(25)
    time_base: Fraction = Fraction(1, 90_000)

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def stem(self) -> str:
        return self.source.stem if self.frame is None else f"{self.source.stem}/{self.frame:06d}"

    @property
    def sequence(self) -> str:
        """What objects can be followed through: a video, or the images of a folder."""
        return self.name if self.frame is not None else str(PurePath(self.name).parent)

    @property
    def id(self) -> int | str:
        return self.source.id if self.frame is None else f"{self.source.id}#{self.frame}"


def find_sources(words: Sequence[str]) -> tuple[list[Source], list[str]]:
    """The images and videos that are meant, in the order given, each once, and notes on what was decided.

    Args:
        words: image and video files, folders (searched recursively), globs, cameras (``camera:0``) and addresses.

    Raises:
        UserError: a source that is not there, no image or video in any of them, or a video where PyAV is not installed.
    """
    files: list[tuple[Path, Path]] = []
    others: dict[str, SourceKind] = {}
    passed: Counter[str] = Counter()
    for word in words:
        if not os.path.isfile(word) and not os.path.isdir(word) and (is_stream(word) or camera_of(word) is not None):
            others[word] = "web image" if is_web_image(word) else "live"
        else:
            files += _files(word, passed)
    found, notes = name_sources(words, files, passed, others)
    if moving := next((source for source in found if source.has_frames), None):
        require_av(moving.name)
    return found, notes


def find_images(words: Sequence[str]) -> tuple[list[Source], list[str]]:
    """As ``find_sources``, of image files alone; videos are passed over."""
    passed: Counter[str] = Counter()
    images: list[tuple[Path, Path]] = []
    for path, base in (file for word in words for file in _files(word, passed)):
        if is_video_file(path):
            passed[path.suffix.lower()] += 1
        else:
            images.append((path, base))
    return name_sources(words, images, passed)


def check_there(source: str) -> None:
    """Raises ``UserError`` for a source that is neither a file nor a folder and matches nothing as a glob; none is looked into."""
    path = os.path.expanduser(source)
    if not os.path.exists(path) and next(glob.iglob(path, recursive=True), None) is None:
        raise UserError(f"{source}: no such image or folder, and no match as a glob")


def name_sources(
    words: Sequence[str], found: Sequence[tuple[Path, Path]], passed: Counter[str], others: Mapping[str, SourceKind] | None = None
) -> tuple[list[Source], list[str]]:
    """Files that were found, each once and with names of its own, and notes on what was decided.

    Args:
        words: what the user named, for messages.
        found: files, each with the folder that its name is relative to.
        passed: numbers of the files that are not looked at, by suffix.
        others: cameras and addresses, with what they are.

    Raises ``UserError`` where there is nothing to look at.
    """
    files: dict[str, tuple[Path, Path]] = {}
    again: list[str] = []
    others = others or {}
    for path, base in found:
        real = os.path.realpath(path)
        if real in files:
            again.append(str(path))
        else:
            files[real] = path, base
    if not files and not others:
        there = f"; there are {_endings(passed)}" if passed else ""
        raise UserError(f"{', '.join(words)}: no image or video there ({', '.join(sorted(IMAGE_SUFFIXES))} are looked for{there})")
    notes = [f"skipped files that are no images or videos: {_endings(passed)}"] if passed else []
    if again:
        notes.append(f"{count(len(again), 'image')} named more than once, looked at once: {some(again)}")
    root = Path(os.path.commonpath([os.path.abspath(base) for _, base in files.values()])) if files else Path()
    names = [PurePath(os.path.relpath(os.path.abspath(path), root)) for path, _ in files.values()]
    names += [PurePath(name) for name in _names_of(others)]
    stems, ids = _stems(names), _ids(names, notes)
    kinds: list[SourceKind] = ["video" if is_video_file(path) else "image" for path, _ in files.values()]
    shown = [name.as_posix() for name in names[: len(files)]] + [without_password(word) for word in others]
    paths = [*(path for path, _ in files.values()), *others]
    return list(map(Source, paths, shown, stems, ids, [*kinds, *others.values()])), notes


def _files(source: str, passed: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """Image and video files of a source, each with the folder that its name is relative to; others are counted by suffix."""
    path = Path(source).expanduser()
    if path.is_dir():
        yield from files_below(path, passed)
    elif path.is_file():
        yield path, path.parent
    else:
        check_there(source)
        for match in map(Path, sorted(glob.glob(os.path.expanduser(source), recursive=True))):
            if match.is_dir():
                if "**" not in source:  # which has matched what is in it
                    yield from files_below(match, passed)
            elif _is_looked_at(match):
                yield match, match.parent
            else:
                passed[match.suffix.lower()] += 1


def files_below(root: Path, passed: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """As ``_files`` of a folder, without what is hidden, and without the pictures that an earlier call has written there."""
    for folder, folders, names in os.walk(root):
        written = {"pictures", "crops", "videos"} & set(folders) if "predictions.json" in names else set()
        for name in sorted(written):
            passed[f"{name}/ of an earlier result"] += 1
        folders[:] = sorted(name for name in folders if not is_hidden(name) and name not in written)
        for name in sorted(names):
            if is_hidden(name):
                continue
            if _is_looked_at(path := Path(folder) / name):
                yield path, root
            else:
                passed[path.suffix.lower()] += 1


def _is_looked_at(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES or is_video_file(path)


def _names_of(addresses: Iterable[str]) -> list[str]:
    """A file name per camera or address, all different."""
    names: list[str] = []
    for address in addresses:
        name = _UNSAFE.sub("-", without_password(address)).strip("-") or "stream"
        names.append(f"{name}~{zlib.crc32(address.encode()):08x}" if name in names else name)
    return names


def _stems(names: Sequence[PurePath]) -> list[str]:
    """Their paths without ending where that is unique, also on a file system that ignores case; otherwise with it."""
    short = [PurePath(*map(shorten, name.with_suffix("").parts)) for name in names]
    whole = [PurePath(*map(shorten, name.parts)) for name in names]
    folders = {parent for stem in short for parent in stem.parents}
    chosen = short if _unique(short, lambda stem: str(stem).casefold()) and not any(stem in folders for stem in short) else whole
    return [stem.as_posix() for stem in chosen]


def shorten(part: str) -> str:
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
