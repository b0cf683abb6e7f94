"""What ``boxquery predict`` writes: pictures, COCO's result format, YOLO lines, a table, a picture per box. Imports no torch."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self, get_args

from boxquery.errors import UserError, encodable, printable
from boxquery.files import atomic_open, atomic_write, csv_lines
from boxquery.pages.images import encode
from boxquery.predict.sources import ImageFile
from boxquery.result import Result

Kind = Literal["pictures", "json", "txt", "csv", "crops"]
#: what is written of each kind, in the output folder
PLACES: dict[Kind, str] = {"pictures": "pictures", "json": "predictions.json", "txt": "labels", "csv": "predictions.csv", "crops": "crops"}
_CLASSES = "classes.txt"
_COLUMNS = ("file_name", "image_id", "width", "height", "class", "category_id", "score", "x1", "y1", "x2", "y2")
#: what a folder cannot be called on some file system
_UNSAFE = re.compile(r'[\x00-\x1f\x7f/\\:*?"<>|]')


def check_kinds(words: Sequence[str]) -> list[Kind]:
    """``pictures,json`` or several words -> kinds. Raises ``UserError`` for one that does not exist."""
    kinds = [word.strip() for each in words for word in each.split(",") if word.strip()]
    for kind in kinds:
        if kind not in get_args(Kind):
            raise UserError(f"--save {kind}: choose from {', '.join(get_args(Kind))}")
    if not kinds:
        raise UserError(f"--save: name at least one of {', '.join(get_args(Kind))}")
    return [kind for kind in get_args(Kind) if kind in kinds]


def new_folder(out: Path | None) -> Path:
    """The folder to write to; for None the first of ``predictions``, ``predictions-2``, ... that is free.

    Raises ``UserError`` for one that holds another result: the two would be mixed.
    """
    if out is None:
        number, out = 1, Path("predictions")
        while out.exists():
            number += 1
            out = Path(f"predictions-{number}")
        return out
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; name a folder as --out")
    if held := [name for name in PLACES.values() if (out / name).exists()]:
        raise UserError(f"{out}: holds another result ({', '.join(held)}); choose another --out, or delete that one")
    return out


class ResultWriter:
    """Writes the results of images, one after the other, into a folder. Where that fails, what it has written is removed.

    Args:
        out: the folder.
        classes: class names by label.
    """

    def __init__(self, out: Path, kinds: Sequence[Kind], classes: Sequence[str | None]):
        self.out, self.kinds, self.rows = out, kinds, 0
        self.classes = list(classes)
        self.folders = _folder_names(classes)
        self.written: list[Path] = []
        self.stack = ExitStack()
        self.tables: dict[str, BinaryIO] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for kind in self.kinds:
                if kind in ("json", "csv"):
                    self.tables[kind] = stack.enter_context(atomic_open(self.out / PLACES[kind]))
                else:
                    (self.out / PLACES[kind]).mkdir(parents=True, exist_ok=True)
            self.stack = stack.pop_all()
        if "json" in self.kinds:
            self.tables["json"].write(b"[")
        if "csv" in self.kinds:
            self.tables["csv"].write(csv_lines([_COLUMNS]))
        if "txt" in self.kinds:
            self._write(self.out / _CLASSES, "".join(f"{_one_line(name)}\n" for name in self.classes).encode())
        return self

    def add(self, file: ImageFile, result: Result) -> None:
        """Write what was found in an image."""
        rows = [{"image_id": file.id, "file_name": file.name, **row} for row in result.to_coco(file.id)]
        for kind in self.kinds:
            match kind:
                case "pictures":
                    self._write(self.out / "pictures" / f"{file.stem}.jpg", encode(result.draw(), quality=90))
                case "json":
                    for number, row in enumerate(rows, self.rows):
                        self.tables["json"].write(("," if number else "").encode() + b"\n" + json.dumps(row).encode())
                case "txt":
                    self._write(self.out / "labels" / f"{file.stem}.txt", _yolo_lines(result).encode())
                case "csv":
                    for row, name, box in zip(rows, result.names, result.boxes.tolist(), strict=True):
                        corners = [round(value, 2) for value in box]
                        size = result.size[1], result.size[0]
                        cells = (file.name, file.id, *size, name, row["category_id"], row["score"], *corners)
                        self.tables["csv"].write(csv_lines([cells]))
                case "crops":
                    self._crops(file, result)
        self.rows += len(rows)

    def _crops(self, file: ImageFile, result: Result) -> None:
        image = result.pixels()
        for number, (label, (x1, y1, x2, y2)) in enumerate(zip(result.labels.tolist(), result.boxes.tolist(), strict=True)):
            left, top = min(int(x1), image.width - 1), min(int(y1), image.height - 1)
            crop = image.crop((left, top, max(left + 1, round(x2)), max(top + 1, round(y2))))
            self._write(self.out / "crops" / self.folders[label] / f"{file.stem}-{number}.jpg", encode(crop, quality=95))

    def _write(self, path: Path, content: bytes) -> None:
        self.written.append(atomic_write(path, content))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None and "json" in self.tables:
            self.tables["json"].write(b"\n]\n")
        self.stack.__exit__(kind, error, trace)
        if error is not None:
            self._remove()

    def _remove(self) -> None:
        for path in self.written:
            path.unlink(missing_ok=True)
        for folder, _, _ in os.walk(self.out, topdown=False):
            with suppress(OSError):  # what is not empty is not ours
                os.rmdir(folder)


def _yolo_lines(result: Result) -> str:
    """Label, centre, size in shares of the image, and score, a line per box."""
    height, width = result.size
    lines = []
    for label, (x1, y1, x2, y2), score in zip(result.labels.tolist(), result.boxes.tolist(), result.scores.tolist(), strict=True):
        values = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values), f"{score:.5f}"]))
    return "".join(f"{line}\n" for line in lines)


def _one_line(name: str | None) -> str:
    return "" if name is None else printable(" ".join(name.split()))


def _folder_names(classes: Sequence[str | None]) -> list[str]:
    """A folder name per class, safe on every file system, and unique even where case is ignored."""
    names: list[str] = []
    taken: set[str] = set()
    for label, name in enumerate(classes):
        safe = _UNSAFE.sub("_", encodable(name or "")).strip(" .").encode()[:100].decode(errors="ignore") or f"class {label}"
        while safe.casefold() in taken:
            safe = f"{safe} ({label})"
        taken.add(safe.casefold())
        names.append(safe)
    return names
