"""Files that are written whole or not at all, and read with an error that says what to do."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from boxquery.errors import UserError, encodable

#: suffix of files that are still being written
PARTIAL = ".new"


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); delete it and write it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); delete it and write it again") from error


def read_mapping(path: Path) -> dict[str, Any]:
    text = read_text(path)
    if not text.strip():
        return {}
    try:
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); delete it and write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of names to values, found a {type(value).__name__}")
    return value


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """A file to write (and read back) that takes the place of ``path`` when all of it is on the disk, and not at all where that fails.

    It is written beside its place, so that nobody ever reads half of it, whenever the process dies. Raises ``UserError`` where the
    operating system refuses (a full disk, a read-only folder).
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(handle)  # or a power cut could leave the new name on an empty file
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp makes it private; a report is for colleagues
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise UserError(f"{path}: cannot be written ({error.strerror or error}); make room, or write elsewhere") from error
        raise


def atomic_write(path: Path, content: str | bytes) -> Path:
    """Write a file through ``atomic_open``."""
    with atomic_open(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def csv_lines(rows: Iterable[Iterable[Any]]) -> bytes:
    """Rows of cells as CSV; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(["" if cell is None else encodable(str(cell)) for cell in row] for row in rows)
    return text.getvalue().encode()


def write_table(path: Path, rows: Iterable[Iterable[Any]]) -> Path:
    """Write a CSV file."""
    return atomic_write(path, csv_lines(rows))


def clear_leftovers(folder: Path) -> None:
    """Remove what a process that died left beside the files of a folder. Only for who knows that nobody else is writing there."""
    for leftover in folder.glob(f"**/.*{PARTIAL}"):
        leftover.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> Path:
    """Write strict JSON (no NaN: a ValueError)."""
    return atomic_write(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
