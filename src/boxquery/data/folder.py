"""The data folder: paths that stay inside it, text files read or refused in one line, names of splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.errors import UserError

_SPLIT = re.compile(r"(?:^|[^a-z])(train|training|validation|valid|val|test|testing)(?:[^a-z]|$)")


class Folder:
    """A folder that nothing in the data may lead out of.

    Attributes:
        root: absolute and without ".."; messages show paths relative to it.
    """

    def __init__(self, root: Path):
        self.root = Path(os.path.abspath(root))
        self._real = os.path.realpath(root)
        self._parents: dict[str, str] = {}

    def join(self, base: Path, name: str, where: str) -> Path:
        """``base / name``, which need not exist. ``name`` comes from the data: it may use ``..`` or be absolute, but not lead out.

        Raises:
            UserError: it leads out of the folder, by itself or through a link.
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

    def files(self, under: Path, endings: frozenset[str] | set[str], *, deep: bool = True) -> Iterator[Path]:
        """Files below (or directly in, unless ``deep``) a folder, with one of the lower-case endings, sorted, without hidden ones.

        Raises:
            UserError: one of them, or ``under`` itself, is a link that leads out of the folder.
        """
        if not under.is_dir():
            return
        self.check_link(under, self.show(under))
        for place, folders, names in os.walk(under):
            folders[:] = sorted(name for name in folders if not name.startswith(".")) if deep else []
            for name in sorted(names):
                if os.path.splitext(name)[1].lower() in endings and not name.startswith("."):
                    path = os.path.join(place, name)
                    self.check_link(path, self.show(path))
                    yield Path(path)

    def images(self, under: Path, *, deep: bool = True) -> list[Path]:
        """Image files below (or directly in) a folder, by their endings."""
        return list(self.files(under, IMAGE_SUFFIXES, deep=deep))

    def text(self, path: Path) -> str:
        """A UTF-8 text file, with or without a byte order mark.

        Raises:
            UserError: it cannot be read or is not UTF-8.
        """
        try:
            return path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.show(path)}: cannot be read as UTF-8 text ({one_line(error)}); repair or remove the file") from error


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def split_name(text: str) -> str | None:
    """ "train", "val" or "test" if a file or folder name speaks of one ("instances_train2017", "valid"), else None."""
    found = _SPLIT.search(text.lower())
    return {"tr": "train", "va": "val", "te": "test"}[found[1][:2]] if found else None


def one_line(error: BaseException) -> str:
    """An exception's own words on one line."""
    return " ".join(str(error).split()) or type(error).__name__
