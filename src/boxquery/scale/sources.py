"""The images of a folder or a bucket: which there are, and reading them on any machine. Imports no torch.

An address is what ``pyarrow`` opens (``s3://bucket/folder``, ``gs://``, ``hdfs://``, ``file:///``), else what ``fsspec`` does.
"""

from __future__ import annotations

import re
import socket
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from boxquery.data.folder import is_hidden
from boxquery.data.images import IMAGE_SUFFIXES
from boxquery.data.video import without_password
from boxquery.errors import UserError, first_line
from boxquery.predict.sources import Source, find_images, name_sources

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")
#: files that are fetched ahead, and how often each is asked for before the network is to blame
_AHEAD, _TRIES = 8, 3


def find_anywhere(sources: Sequence[str]) -> tuple[list[Source], str, list[str]]:
    """The images of all sources, each once; an address of their file system, empty for this machine's; and notes on what was decided.

    Args:
        sources: image files, folders (searched recursively) and globs, all of them paths or all of them addresses.

    Raises ``UserError`` for a source that is not there, no image in any of them, or sources on several file systems.
    """
    shown = list(map(without_password, sources))
    schemes = {found[1] if (found := _SCHEME.match(source)) else "" for source in sources}
    if len(schemes) > 1:
        raise UserError(f"{', '.join(shown)}: name sources on one file system, since images are named after their common folder")
    if schemes == {""}:
        images, notes = find_images(sources)
        return [replace(image, path=Path(image.path).absolute()) for image in images], "", notes
    passed: Counter[str] = Counter()
    images, notes = name_sources(shown, [each for source in sources for each in _listed(source, passed)], passed)
    return images, sources[0], notes


def _listed(source: str, passed: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """The image files of an address, each with the folder that its name is relative to; others are counted by suffix."""
    shown = without_password(source)
    try:
        system, path = _opened(source)
        path = path.rstrip("/")
        matches = [path]
        if re.search(r"[*?[]", path):
            matches = sorted(match for match in system.glob(path) if not is_hidden(PurePosixPath(match).name))
        files = [(PurePosixPath(file), PurePosixPath(match)) for match in matches for file in sorted(system.find(match))]
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"{shown}: cannot be listed ({first_line(error)[:160]}); check the address and the access to it") from error
    if not files:
        raise UserError(f"{shown}: nothing there; check the address")
    for file, match in files:
        if any(map(is_hidden, file.relative_to(match).parts)):
            continue
        if (suffix := file.suffix.lower()) in IMAGE_SUFFIXES:
            yield Path(file), Path(match.parent if file == match else match)
        else:
            passed[suffix] += 1


def read_from(system: str, paths: Sequence[str], folder: Path) -> Iterator[tuple[str, Path]]:
    """Each path with a file, to be read until the next one is asked for; those of an address are fetched into ``folder``, a few ahead.

    A file that has gone since it was listed is named all the same.

    Raises ``UserError`` for a folder that this machine does not have, and where fetching fails.
    """
    if not system:
        for path in map(Path, paths):
            if not path.parent.is_dir():
                raise UserError(
                    f"{path}: {socket.gethostname()} has no such folder; share it with all machines of the cluster, or name an address"
                )
            yield str(path), path
        return
    waiting: deque[tuple[str, Future[bytes | None]]] = deque()
    left = iter(paths)
    with ThreadPoolExecutor(_AHEAD) as pool:
        while True:
            waiting.extend((path, pool.submit(_fetch, system, path)) for path in islice(left, _AHEAD - len(waiting)))
            if not waiting:
                return
            path, fetched = waiting.popleft()
            file = folder / PurePosixPath(path).name
            if (content := fetched.result()) is not None:
                file.write_bytes(content)
            yield path, file
            file.unlink(missing_ok=True)


def _fetch(address: str, path: str) -> bytes | None:
    """The bytes of a file; None if it has gone since it was listed."""
    for left in reversed(range(_TRIES)):
        try:
            return _opened(address)[0].cat_file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if not left:
                raise UserError(f"{path}: cannot be fetched ({first_line(error)[:160]}); check the network and the access to it") from error
    raise AssertionError("the last attempt raises")


@cache
def _opened(address: str) -> tuple[Any, str]:
    """The file system of an address, with the methods of fsspec's, and the path on it."""
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem

    try:
        system, path = FileSystem.from_uri(address)
    except ArrowInvalid:  # not one of its own
        return fsspec.url_to_fs(address)
    return ArrowFSWrapper(system), path
