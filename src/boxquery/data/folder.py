"""The data folder: paths that stay inside it, text files, and which folders are splits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PureWindowsPath
from typing import TypeVar

from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.errors import UserError, one_line

T = TypeVar("T")
_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|validation|valid|val|test|testing)(?:[^a-z]|$)")


class Folder:
    """A folder that no path in the data may leave.

    Attributes:
        root: absolute and without ".."; messages show paths relative to it.
    """

    def __init__(self, root: Path):
        self.root = Path(os.path.abspath(root))
        self._real = os.path.realpath(root)
        self._parents: dict[str, str] = {}

    def join(self, base: Path, name: str, where: str) -> Path:
        """``base / name``, which need not exist. ``name`` comes from the data: it may use ``..`` or be absolute.

        Raises:
            UserError: it leaves the folder, by itself or through a link.
        """
        name = name.replace("\\", "/")
        path = os.path.normpath(os.path.join(base, name))
        windows = PureWindowsPath(name)
        if "\0" in name or (windows.drive and windows.root):
            raise UserError(f"{where}: {name!r} is not a path inside the data folder; use paths relative to it")
        if _within(path, self._real):
            path = os.path.normpath(os.path.join(self.root, os.path.relpath(path, self._real)))  # where the root itself is a link
        if not _within(path, str(self.root)):
            raise UserError(f"{where}: {name!r} leaves the data folder {self.root}; move the file inside")
        self.check_link(path, where)
        return Path(path)

    def check_link(self, path: str | Path, where: str) -> None:
        """Raises UserError if ``path`` is, or lies under, a link to somewhere outside the folder."""
        parent, name = os.path.split(path)
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        real = os.path.join(self._parents[parent], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if not _within(real, self._real):
            raise UserError(f"{where}: {self.show(path)} is a link that leaves the data folder {self.root}; put the files themselves there")

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
        for place, folders, names in os.walk(under):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if os.path.splitext(name)[1].lower() in suffixes and not name.startswith("."):
                    path = os.path.join(place, name)
                    self.check_link(path, self.show(path))
                    yield Path(path)

    def images(self, under: Path) -> list[Path]:
        """Image files below a folder, by their suffixes."""
        return list(self.files(under, IMAGE_SUFFIXES))

    def splits(self, base: Path, content: Callable[[Path], T]) -> dict[str, tuple[Path, T]]:
        """The folders in ``base`` that are named after a split and have content, by split. Raises ``UserError`` for two of one split."""
        found: dict[str, tuple[Path, T]] = {}
        for place in sorted(path for path in base.iterdir() if path.is_dir()) if base.is_dir() else ():
            name = split_name(place.name)
            if name and (here := content(place)):
                if name in found:
                    raise UserError(f"{self.root}: two folders look like {name}; keep one")
                found[name] = place, here
        return found

    def text(self, path: Path) -> str:
        """A UTF-8 text file, with or without a byte order mark.

        Raises:
            UserError: it is a link that leaves the folder, cannot be read, or is not UTF-8.
        """
        self.check_link(path, self.show(path))
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.show(path)}: cannot be read as UTF-8 text ({one_line(error)}); repair or remove the file") from error

    def lines(self, path: Path) -> list[tuple[str, str]]:
        """The lines of a text file that are not blank, stripped, each with what names it in messages."""
        lines = enumerate(self.text(path).splitlines(), 1)
        return [(f"{self.show(path)} line {number}", line.strip()) for number, line in lines if line.strip()]


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def split_name(text: str) -> str | None:
    """ "train", "val" or "test" if a file or folder name speaks of one ("instances_train2017", "valid"), else None."""
    found = _SPLIT.search(text.lower())
    return {"tr": "train", "va": "val", "te": "test"}[found[1][:2]] if found else None
