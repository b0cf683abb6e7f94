"""The data folder: paths that stay inside it, text files, and which folders are splits."""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import TypeVar

from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.errors import UserError, one_line

T = TypeVar("T")
SPLITS = ("train", "val", "test")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|trn|validation|valid|val|dev|eval|evaluation|test|testing|tst)(?:set|data)?(?:[^a-z]|$)")
_MASKS = re.compile(
    r"((gt|seg|binary|semantic|instance)_)?(masks?|trimaps?|segmentations?|depths?)|segmentation_?(class|object)\w*", re.IGNORECASE
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_LEFTOVERS = frozenset({"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin"})


def is_hidden(name: str) -> bool:
    """True for files and folders that an operating system or an editor leaves beside the data (``._a.png``, ``__MACOSX``, ...)."""
    return name.startswith(".") or name.lower() in _LEFTOVERS


def visible(place: Path, pattern: str = "*") -> list[Path]:
    """The files in a folder that match a pattern, sorted, without what is hidden (``is_hidden``), and without pipes and the like."""
    return sorted(path for path in place.glob(pattern) if not any(map(is_hidden, path.relative_to(place).parts)) and path.is_file())


def is_of_masks(parts: Iterable[str]) -> bool:
    """True if one of the folders of a path is called as those of masks, trimaps or depth images are."""
    return any(map(_MASKS.fullmatch, parts))


def folders(place: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones; none where the folder cannot be looked into."""
    try:
        with os.scandir(place) as entries:
            return [place / name for name in sorted(entry.name for entry in entries if _is_folder(entry) and not is_hidden(entry.name))]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir()  # a link to itself is an error of the latter


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """The bytes of a file, at most ``limit``. Raises ``OSError`` for a pipe or a device too, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    with path.open("rb") as file:
        return file.read(limit)


class Folder:
    """A folder that no path in the data may leave.

    Attributes:
        root: absolute and without ".."; messages show paths relative to it.
    """

    def __init__(self, root: Path):
        self.root = Path(os.path.abspath(root))
        self._real = os.path.realpath(root)
        self._parents: dict[str, str] = {}
        self._encodings: dict[str, dict[str, None]] = {}

    def join(self, base: Path, name: str, where: str) -> Path:
        """``base / name``, which need not exist. ``name`` comes from the data: it may use ``..`` or be absolute.

        Raises:
            UserError: it leaves the folder, by itself or through a link.
        """
        path = self._inside(base, name)
        if path is None and ("\0" in name or PureWindowsPath(name).drive):
            raise UserError(f"{where}: {name!r} is not a path inside the data folder; use paths relative to it")
        if path is None:
            raise UserError(f"{where}: {name!r} leaves the data folder {self.root}; move the file inside")
        self.check_link(path, where)
        return Path(path)

    def leaves(self, base: Path, name: str) -> bool:
        """True if ``name``, as a path from ``base``, is outside the folder or no path at all, before any link is followed."""
        return self._inside(base, name) is None

    def _inside(self, base: Path, name: str) -> str | None:
        """``base / name`` below ``root``, or None."""
        name = name.replace("\\", "/")
        windows = PureWindowsPath(name)
        if "\0" in name or (windows.drive and windows.root):
            return None
        path = os.path.normpath(os.path.join(base, name))
        if _within(path, self._real):
            path = os.path.normpath(os.path.join(self.root, os.path.relpath(path, self._real)))  # where the root itself is a link
        return path if _within(path, str(self.root)) else None

    def check_link(self, path: str | Path, where: str) -> None:
        """Raises UserError if ``path`` is, or lies under, a link to somewhere outside the folder."""
        if not self.holds(path):
            raise UserError(f"{where}: {self.show(path)} is a link that leaves the data folder {self.root}; put the files themselves there")

    def holds(self, path: str | Path) -> bool:
        """True if ``path``, its links followed, is inside the folder."""
        parent, name = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        real = os.path.join(self._parents[parent], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        return _within(real, self._real)

    def show(self, path: str | Path) -> str:
        """The path relative to the folder, with forward slashes, for messages."""
        return Path(os.path.relpath(path, self.root)).as_posix()

    def files(self, under: Path, suffixes: frozenset[str]) -> Iterator[Path]:
        """Files below a folder with one of the lower-case suffixes, sorted, without hidden ones.

        Raises:
            UserError: one of them, or ``under`` itself, is a link that leaves the folder.
        """
        if not under.is_dir():
            return
        self.check_link(under, self.show(under))
        for path in self.walk(under):
            if (ending := os.path.splitext(path.name)[1].lower()) in suffixes:
                if ending not in IMAGE_SUFFIXES and not path.is_file():
                    continue  # a pipe, or a link to nothing; of images validation says so
                if not self.holds(path):
                    self.check_link(path, self.show(path))
                yield path

    def walk(self, under: Path) -> Iterator[Path]:
        """All files below a folder, sorted, without hidden ones; links to folders are not followed."""
        for place, inner, names in os.walk(under):
            inner[:] = sorted(name for name in inner if not is_hidden(name))
            for name in sorted(names):
                if not is_hidden(name):
                    yield Path(place, name)

    def images(self, under: Path) -> list[Path]:
        """Image files below a folder, by their suffixes."""
        return list(self.files(under, IMAGE_SUFFIXES))

    def splits(self, base: Path, content: Callable[[Path], T]) -> dict[str, tuple[Path, T]]:
        """The folders in ``base`` that are named after a split and have content, by split. Raises ``UserError`` for two of one split."""
        found: dict[str, tuple[Path, T]] = {}
        for place in folders(base):
            name = split_name(place.name)
            if name and (here := content(place)):
                if name in found:
                    raise UserError(f"{self.root}: {self.show(found[name][0])}/ and {self.show(place)}/ both look like {name}; keep one")
                found[name] = place, here
        return found

    def text(self, path: Path) -> str:
        """A text file in UTF-8, in UTF-16 with its byte order mark, or else in cp1252, as Windows writes it (see ``notes``).

        Raises:
            UserError: it is a link that leaves the folder, cannot be read, or is no text.
        """
        self.check_link(path, self.show(path))
        try:
            text, encoding = decoded(read_bytes(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.show(path)}: cannot be read as UTF-8 text ({one_line(error)}); repair or remove the file") from error
        if encoding != "UTF-8":
            self._encodings.setdefault(encoding, {})[self.show(path)] = None
        return text

    def notes(self) -> list[str]:
        """Which text files are not in UTF-8."""
        shown = ((encoding, len(files), next(iter(files))) for encoding, files in self._encodings.items())
        return [f"{count} text file(s) are not UTF-8 and were read as {encoding} (first: {first})" for encoding, count, first in shown]

    def lines(self, path: Path) -> list[tuple[str, str]]:
        """The lines of a text file that are not blank, stripped, each with what names it in messages."""
        shown, lines = self.show(path), enumerate(self.text(path).splitlines(), 1)
        return [(f"{shown} line {number}", line.strip()) for number, line in lines if line.strip()]


def decoded(content: bytes) -> tuple[str, str]:
    """Text, and its encoding."""
    with suppress(UnicodeDecodeError):
        return content.decode("utf-8-sig"), "UTF-8"
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) and len(content) > 2:
        return content.decode("utf-16"), "UTF-16"
    if b"\0" in content or content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        content.decode("utf-8")
    return content.decode("cp1252"), "cp1252 (Windows)"


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def split_name(text: str) -> str | None:
    """ "train", "val" or "test" if a file or folder name speaks of one ("instances_train2017", "valid"), else None."""
    found = _SPLIT.search(_CAMEL.sub("_", text).lower())
    return {"tr": "train", "va": "val", "de": "val", "ev": "val", "te": "test", "ts": "test"}[found[1][:2]] if found else None


def split_of(names: Iterable[str]) -> str:
    """The split that the first of these names to speak of one means, or ""."""
    return next(filter(None, map(split_name, names)), "")


def split_words(names: Iterable[str]) -> set[str]:
    """The splits that any of these names speak of."""
    return {word for name in names if (word := split_name(name))}


def path_parts(name: str) -> list[str]:
    """The parts of a path that the data holds, without quotes, drive, root, ``.``, ``..`` and ``~``."""
    parts = name.strip().strip("\"'").replace("\\", "/").split("/")
    return [part for i, part in enumerate(parts) if part not in ("", ".", "..", "~") and not (i == 0 and part.endswith(":"))]
