"""The files of a run folder that the report is made from: written whole or not at all, read with what is missing left empty."""

from __future__ import annotations

import csv
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

from boxquery.data.dataset import Data
from boxquery.errors import UserError, plain

#: the ending of files that are not whole yet
BESIDE = ".new"


@dataclass(frozen=True, slots=True)
class Run:
    """What is known about a run.

    Attributes:
        folder: where it was read.
        config: ``config.yaml``; {} if missing.
        epochs: rows of ``metrics.csv``; a cell that is empty, no number or not finite is left out of its row.
        evaluation: ``evaluation.json``: split name -> the dict of ``boxquery.evaluation.metrics.evaluate``.
        data: ``data.json``, see ``write_data``; {} if missing.
        pictures: ``pictures.json``, see ``boxquery.report.pictures``; {} if missing.
        transfer: ``transfer.json``, see ``boxquery.transfer.Transfer``; {} where the run did not start from a trained model.
        check: ``check.json``, see ``boxquery.check.command``; {} if missing.
        diagnosis: ``diagnosis.json``, see ``boxquery.training.diagnosis``; {} if missing.
    """

    folder: Path
    config: dict[str, Any]
    epochs: list[dict[str, float]]
    evaluation: dict[str, dict[str, Any]]
    data: dict[str, Any]
    pictures: dict[str, Any]
    transfer: dict[str, Any]
    check: dict[str, Any] = field(default_factory=dict)
    diagnosis: dict[str, Any] = field(default_factory=dict)


def read_run(folder: Path) -> Run:
    """Read what there is.

    Raises:
        UserError: no such folder, or one of its files cannot be understood.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; give the folder that `boxquery train --out` wrote")
    return Run(
        folder,
        _mapping(folder / "config.yaml"),
        _table(folder / "metrics.csv"),
        _mapping(folder / "evaluation.json"),
        _mapping(folder / "data.json"),
        _mapping(folder / "pictures.json"),
        _mapping(folder / "transfer.json"),
        _mapping(folder / "check.json"),
        _mapping(folder / "diagnosis.json"),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); delete it and write it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); delete it and write it again") from error


def _mapping(path: Path) -> dict[str, Any]:
    text = _text(path)
    if not text.strip():
        return {}
    try:
        value = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); delete it and write it again") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of names to values, found a {type(value).__name__}")
    return value


def _table(path: Path) -> list[dict[str, float]]:
    rows = []
    for cells in csv.DictReader(_text(path).splitlines()):
        row = {name: _number(cell) for name, cell in cells.items() if name is not None and isinstance(cell, str)}
        rows.append({name: value for name, value in row.items() if math.isfinite(value)})
    return rows


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write (and read back) that takes the place of ``path`` when all of it is on the disk, and not at all where that fails.

    It is written beside its place, so that nobody ever reads half of it, whenever the process dies. Raises ``UserError`` where the
    operating system refuses (a full disk, a read-only folder).
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=BESIDE)
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


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file through ``whole``."""
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


def clear_leftovers(folder: Path) -> None:
    """Remove what a process that died left beside the files of a folder. Only for who knows that nobody else is writing there."""
    for leftover in folder.glob(f"**/.*{BESIDE}"):
        leftover.unlink(missing_ok=True)


def write_json(path: Path, value: dict[str, Any]) -> Path:
    """Write strict JSON (no NaN: a ValueError)."""
    return write_whole(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_evaluation(run: Path, split: str, result: dict[str, Any]) -> Path:
    """Put the result of ``evaluate`` for one split into ``evaluation.json``, beside those of other splits."""
    path = run / "evaluation.json"
    return write_json(path, _mapping(path) | {split: result})


def data_facts(data: Data) -> dict[str, Any]:
    """What a data set is, in counts.

    ``{"source", "format", "names": [..], "ids": [..], "splits": {name: {"images", "empty_images", "objects", "ignored", "per_class": [C]}},
    "notes": [..], "skipped": [..]}``; ``objects`` and ``per_class`` do not count ignored ones.
    """
    splits = {}
    for name, split in data.splits.items():
        labels = [record.labels[~record.ignore] for record in split]
        per_class = np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(data.names))
        splits[name] = {
            "images": len(split),
            "empty_images": sum(len(record.boxes) == 0 for record in split),
            "objects": int(per_class.sum()),
            "ignored": int(sum(record.ignore.sum() for record in split)),
            "per_class": per_class.tolist(),
        }
    facts = {"source": plain(str(data.source)), "format": data.format, "names": data.names, "ids": data.ids, "splits": splits}
    return facts | {"notes": data.notes, "skipped": data.skipped}


def write_data(run: Path, data: Data) -> Path:
    """Write ``data.json``: ``data_facts``."""
    return write_json(run / "data.json", data_facts(data))
