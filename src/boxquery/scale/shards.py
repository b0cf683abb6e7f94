"""Results in shards, files of a line per image, so that what was found is kept whenever the process dies. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.errors import UserError
from boxquery.files import atomic_write, clear_leftovers, read_mapping, write_json
from boxquery.result import Result

#: in the output folder: shards, and the file that lists them
FOLDER, INDEX = "shards", "index.json"
#: version of both
FORMAT = 1


class Shards:
    """The shards of one prediction, each written as a whole by the process that collects results.

    ``shards/index.json`` says with which model and settings they were made and, once all are there, which they are.

    Args:
        out: the output folder.
        settings: what the results depend on: plain values.

    Raises ``UserError`` where the folder holds shards made with other settings.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any]):
        self.folder, self.settings = out / FOLDER, dict(settings)
        self.damaged: list[str] = []
        known = read_mapping(self.folder / INDEX)
        if known.get("format", FORMAT) != FORMAT:
            raise UserError(f"{self.folder / INDEX}: format {known['format']} is of another boxquery; choose another --out")
        for name, value in known.get("settings", {}).items():
            if name in settings and settings[name] != value:
                raise UserError(
                    f"{out}: was begun with {name}={value!r}, not {settings[name]!r}; choose another --out, or repeat the command"
                )
        #: path of an image -> the shard that has it
        self.shard_of: dict[str, int] = {}
        self.counts: dict[int, int] = {}
        clear_leftovers(self.folder)
        for file in sorted(self.folder.glob("predictions-*.jsonl")):
            self._add(file)

    def _add(self, file: Path) -> list[dict[str, Any]]:
        try:
            number, lines = int(file.stem.partition("-")[2]), [json.loads(line) for line in file.read_bytes().splitlines()]
            self.shard_of |= dict.fromkeys((line["path"] for line in lines), number)
        except (ValueError, KeyError, TypeError, RecursionError):
            self.damaged.append(file.name)
            return []
        self.counts[number] = len(lines)
        return lines

    def begin(self) -> None:
        """Write the index of a prediction that has begun; damaged shards are removed, and their images are to be looked at again."""
        for name in self.damaged:
            (self.folder / name).unlink()
        write_json(self.folder / INDEX, {"format": FORMAT, "settings": self.settings, "complete": False})

    def write(self, lines: str) -> list[dict[str, Any]]:
        """A further shard; returns its lines."""
        return self._add(atomic_write(self._file(max(self.counts, default=-1) + 1), lines))

    def finish(self) -> None:
        """Write the index of a prediction that is complete."""
        shards = [{"file": self._file(number).name, "images": images} for number, images in sorted(self.counts.items())]
        write_json(self.folder / INDEX, {"format": FORMAT, "settings": self.settings, "complete": True, "shards": shards})

    def read(self, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        """What was found in images, in this order."""
        shard = lru_cache(maxsize=16)(self._read)
        for path in paths:
            yield shard(self.shard_of[path])[path]

    def _read(self, number: int) -> dict[str, dict[str, Any]]:
        lines = map(json.loads, self._file(number).read_bytes().splitlines())
        return {line["path"]: line for line in lines}

    def _file(self, number: int) -> Path:
        return self.folder / f"predictions-{number:05}.jsonl"


def line_of(path: str, result: Result, remarks: Sequence[str]) -> str:
    """A line of a shard; numbers are exact.

    Args:
        remarks: how the image was read where that is not plain.
    """
    height, width = result.size
    found = {name: getattr(result, name).tolist() for name in ("boxes", "scores", "labels")}
    values = {"path": path, "width": width, "height": height, **found, "names": result.names, "category_ids": result.ids}
    return json.dumps({**values, "remarks": list(remarks)})


def skipped_line(path: str, reason: str) -> str:
    """A line of a shard for an image that could not be read."""
    return json.dumps({"path": path, "skipped": reason})


def result_of(line: Mapping[str, Any]) -> Result:
    """The result that a line was made of."""
    return Result(
        boxes=np.array(line["boxes"], dtype=np.float32).reshape(-1, 4),
        scores=np.array(line["scores"], dtype=np.float32),
        labels=np.array(line["labels"], dtype=np.int64),
        names=line["names"],
        ids=line["category_ids"],
        size=(line["height"], line["width"]),
        path=line["path"],
    )
