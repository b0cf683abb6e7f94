"""A folder that grows: its images and videos, those that are there and those that come."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from boxquery.data.video import is_video_file, require_av
from boxquery.errors import UserError
from boxquery.predict.sources import Source, files_below, shorten
from boxquery.result import name_to_id

#: seconds between two looks
INTERVAL = 1.0


class WatchedFolders:
    """Iterates sources, and waits for more until it is interrupted. A file comes when it no longer changes, once.

    Args:
        folders: searched recursively.
        out: what is written there is not looked at.
    """

    def __init__(self, folders: Sequence[str], out: Path):
        if others := [word for word in folders if not os.path.isdir(Path(word).expanduser())]:
            raise UserError(f"--watch: {others[0]} is no folder; name folders that images are put into")
        self.folders, self.out = [Path(word).expanduser() for word in folders], os.path.realpath(out)
        self.root = Path(os.path.commonpath([os.path.abspath(folder) for folder in self.folders]))
        self._stems: set[str] = set()
        self._ids: set[int | str] = set()

    def __iter__(self) -> Iterator[Source]:
        seen: set[str] = set()
        changing: dict[str, tuple[int, int]] = {}
        while True:
            for folder in self.folders:
                for path, _ in files_below(folder, Counter()):
                    real = os.path.realpath(path)
                    if real in seen or real.startswith(self.out + os.sep):
                        continue
                    state = _state(path)
                    if state is not None and (changing.get(real) == state or state[1] < (time.time() - 2 * INTERVAL) * 1e9):
                        seen.add(real)
                        changing.pop(real, None)
                        yield self._named(path)
                    elif state is not None:
                        changing[real] = state
            time.sleep(INTERVAL)

    def _named(self, path: Path) -> Source:
        """A source with names that none before has; they do not depend on those that come later."""
        name = PurePath(os.path.relpath(os.path.abspath(path), self.root))
        stems = [PurePath(*map(shorten, each.parts)).as_posix() for each in (name.with_suffix(""), name)]
        stem = next((each for each in stems if each.casefold() not in self._stems), stems[-1])
        ids = [name_to_id(name), name.with_suffix("").as_posix(), name.as_posix()]
        id_ = next((each for each in ids if each not in self._ids), ids[-1])
        self._stems.add(stem.casefold())
        self._ids.add(id_)
        if moving := is_video_file(path):
            require_av(name.as_posix())
        return Source(path, name.as_posix(), stem, id_, "video" if moving else "image")


def _state(path: Path) -> tuple[int, int] | None:
    """What changes while a file is written; None once it is gone."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
