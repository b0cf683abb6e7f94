"""The files of a run folder that the report is made from: written whole or not at all, read with what is missing left empty."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.data.dataset import Data
from boxquery.errors import UserError, plain
from boxquery.files import read_mapping, read_text, write_json


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
        read_mapping(folder / "config.yaml"),
        _table(folder / "metrics.csv"),
        read_mapping(folder / "evaluation.json"),
        read_mapping(folder / "data.json"),
        read_mapping(folder / "pictures.json"),
        read_mapping(folder / "transfer.json"),
        read_mapping(folder / "check.json"),
        read_mapping(folder / "diagnosis.json"),
    )


def _table(path: Path) -> list[dict[str, float]]:
    rows = []
    for cells in csv.DictReader(read_text(path).splitlines()):
        row = {name: _number(cell) for name, cell in cells.items() if name is not None and isinstance(cell, str)}
        rows.append({name: value for name, value in row.items() if math.isfinite(value)})
    return rows


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def write_evaluation(run: Path, split: str, result: dict[str, Any]) -> Path:
    """Put the result of ``evaluate`` for one split into ``evaluation.json``, beside those of other splits."""
    path = run / "evaluation.json"
    return write_json(path, read_mapping(path) | {split: result})


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
