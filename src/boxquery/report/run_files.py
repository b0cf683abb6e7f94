"""The files of a run folder that its report is made from."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.data.dataset import AnyData, Data
from boxquery.data.scenes.records import SceneData, SceneDetections
from boxquery.errors import UserError, printable
from boxquery.evaluation.coco_matching import ImageDetections
from boxquery.evaluation.median_box import median_boxes
from boxquery.files import read_mapping, read_text, write_json

#: columns of ``metrics.csv`` and keys of ``check.json`` that version 0.1.0 named otherwise
_OLD_NAMES = {
    "processor_seconds": "cpu_seconds", "ahead": "feasibility", "objects_an_image": "objects_per_image", "copies": "equal_images",
    "learn": "overfit",
}  # fmt: skip
DATA = "data.json"
"""Facts of the data set, in a run's folder."""
_DETECTIONS = ("boxes", "scores", "labels")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The contents of a run folder; a missing file is empty here.

    Attributes:
        folder: where they were read.
        config: ``config.yaml``.
        epochs: rows of ``metrics.csv``; cells that are empty, not a number, NaN or inf are left out.
        evaluation: ``evaluation.json``: split name -> the dict of ``boxquery.evaluation.metrics.evaluate``.
        analysis: ``analysis.json``: split name -> the dict of ``boxquery.evaluation.analysis.analyse``.
        data: ``data.json``, see ``data_facts``.
        pictures: ``pictures.json``, see ``boxquery.report.pictures``.
        transfer: ``transfer.json``, see ``boxquery.transfer.Transfer``; empty if the run did not start from a trained model.
        check: ``check.json``, see ``boxquery.check.command``.
        diagnosis: ``diagnosis.json``, see ``boxquery.training.diagnosis``.
    """

    folder: Path
    config: dict[str, Any]
    epochs: list[dict[str, float]]
    evaluation: dict[str, dict[str, Any]]
    analysis: dict[str, dict[str, Any]]
    data: dict[str, Any]
    pictures: dict[str, Any]
    transfer: dict[str, Any]
    check: dict[str, Any]
    diagnosis: dict[str, Any]

    @property
    def split(self) -> str:
        """The split of ``result``: val, else the first that was evaluated."""
        return next((name for name in ("val", *self.evaluation) if name in self.evaluation), "val")

    @property
    def of_scenes(self) -> bool:
        """Whether the model takes scenes of several cameras, and not images."""
        return any("mAP" in each for each in (*self.evaluation.values(), *self.epochs)) or "scenes" in self.check

    @property
    def unit(self) -> str:
        """What the data are made of."""
        return "scene" if self.of_scenes else "image"

    @property
    def result(self) -> dict[str, Any]:
        """The evaluation that the report is about; empty if there is none."""
        return self.evaluation.get(self.split, {})


def read_run(folder: Path) -> RunFiles:
    """Read the files that are there.

    Raises:
        UserError: no such folder, or a file cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder; give the folder that `boxquery train --out` wrote")
    mappings = {
        name: read_mapping(folder / f"{name}.json")
        for name in ("evaluation", "analysis", "data", "pictures", "transfer", "check", "diagnosis")
    }
    mappings["check"] = _rename(mappings["check"])
    return RunFiles(folder, read_mapping(folder / "config.yaml"), _read_table(folder / "metrics.csv"), **mappings)


def _rename(value: Any) -> Any:
    return {_OLD_NAMES.get(name, name): _rename(own) for name, own in value.items()} if isinstance(value, dict) else value


def _read_table(path: Path) -> list[dict[str, float]]:
    rows = []
    for cells in csv.DictReader(read_text(path).splitlines()):
        row = {_OLD_NAMES.get(name, name): _number(cell) for name, cell in cells.items() if name is not None and isinstance(cell, str)}
        rows.append({name: value for name, value in row.items() if math.isfinite(value)})
    return rows


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan


def write_evaluation(run: Path, split: str, result: dict[str, Any]) -> Path:
    """Put the result of ``evaluate`` for one split into ``evaluation.json``, which keeps those of other splits."""
    return _put(run / "evaluation.json", split, result)


def write_analysis(run: Path, split: str, result: dict[str, Any]) -> Path:
    """The same of ``analyse``, in ``analysis.json``."""
    return _put(run / "analysis.json", split, result)


def _put(path: Path, key: str, value: dict[str, Any]) -> Path:
    return write_json(path, read_mapping(path) | {key: value})


def data_facts(data: Data) -> dict[str, Any]:
    """Counts of a data set by split and class.

    ``{"source", "format", "names": [..], "ids": [..], "splits": {name: {"images", "empty_images", "objects", "ignored", "per_class": [C]}},
    "notes": [..], "skipped": [..]}``; ``objects`` and ``per_class`` do not count ignored ones. Of "train" also ``median_boxes``: those of
    ``boxquery.evaluation.median_box``, ``{"boxes": [K, 4], "scores": [K], "labels": [K]}``.
    """
    facts = count_objects(data)
    if "train" in data.splits:
        medians = median_boxes(data.splits["train"], len(data.names))
        facts["splits"]["train"]["median_boxes"] = {key: values.tolist() for key, values in zip(_DETECTIONS, medians, strict=True)}
    return facts


def scene_facts(data: SceneData, fixed: SceneDetections) -> dict[str, Any]:
    """The same of scenes, which "images" counts there; of "train" ``fixed_boxes``: those of ``boxquery.evaluation.fixed_boxes``."""
    facts = count_objects(data)
    facts["splits"]["train"]["fixed_boxes"] = {key: getattr(fixed, key).round(4).tolist() for key in _DETECTIONS}
    return facts


def count_objects(data: AnyData) -> dict[str, Any]:
    """``data_facts`` without what is predicted without looking."""
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
    facts = {"source": printable(str(data.source)), "format": data.format, "names": data.names, "ids": data.ids, "splits": splits}
    return facts | {"notes": data.notes, "skipped": data.skipped}


def read_median_boxes(run: Path) -> ImageDetections | None:
    """The median boxes of the images that a run was trained on, from ``data.json``; None where it does not have them.

    Raises:
        UserError: the file cannot be read.
    """
    found = read_mapping(run / DATA).get("splits", {}).get("train", {}).get("median_boxes")
    if found is None:
        return None
    boxes, scores, labels = (np.array(found[key]) for key in _DETECTIONS)
    return boxes.reshape(-1, 4), scores, labels


def read_fixed_boxes(run: Path) -> SceneDetections | None:
    """The fixed boxes of the scenes that a run was trained on, from ``data.json``; None where it does not have them.

    Raises:
        UserError: the file cannot be read.
    """
    found = read_mapping(run / DATA).get("splits", {}).get("train", {}).get("fixed_boxes")
    if found is None:
        return None
    boxes, scores, labels = (np.array(found[key]) for key in _DETECTIONS)
    return SceneDetections(boxes.reshape(-1, 9), scores, labels.astype(np.int64))
