"""The pages of a run folder: its report, and what a check of the data found; and the page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxquery.data.dataset import Split
from boxquery.data.scenes.records import SceneData, SceneDetections, SceneSplit
from boxquery.errors import UserError
from boxquery.evaluation.analysis import analyse
from boxquery.evaluation.coco_matching import ImageDetections
from boxquery.files import atomic_write, write_table
from boxquery.pages.html import render
from boxquery.report import sections
from boxquery.report.pictures import write_pictures
from boxquery.report.run_files import read_run, write_analysis, write_evaluation
from boxquery.report.scenes import write_scene_pictures
from boxquery.report.tables import tables


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from the files of a run folder; what is missing there is left out.

    Returns:
        The path of the report, written atomically.

    Raises:
        UserError: no such folder, or a file cannot be read.
    """
    run = read_run(folder)
    model, source = run.config.get("model") or folder.resolve().name, run.config.get("data") or run.data.get("source")
    how = "pre-trained on" if run.config.get("patches") else "on"
    title = f"{model} {how} {_last_part(source)}" if source else str(model)
    return atomic_write(folder / "report.html", render("report.html", title=title, run=run, **sections.values(run)))


def new_evaluation(folder: Path) -> Path:
    """A folder for ``write_evaluation_page``. Raises ``UserError`` for one that holds another evaluation, as a run does."""
    if (folder / "evaluation.json").exists() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder}: holds another evaluation, or is a file; choose another --out")
    return folder


def write_evaluation_page(
    folder: Path,
    title: str,
    split: Split,
    predictions: Mapping[int, ImageDetections],
    names: Sequence[str],
    metrics: dict[str, Any],
) -> Path:
    """Write ``evaluation.html`` of a split, the numbers in it as JSON and CSV, and its pictures.

    Args:
        split, predictions, names, metrics: what ``boxquery.evaluation.metrics.evaluate`` was given, and its result.
    """
    analysis = analyse(split, predictions, names, metrics)
    write_evaluation(folder, split.name, metrics)
    write_analysis(folder, split.name, analysis)
    for name, rows in tables(metrics, analysis).items():
        write_table(folder / f"{name}.csv", rows)
    write_pictures(folder, split, predictions, names, threshold=metrics["threshold"])
    run = read_run(folder)
    return atomic_write(folder / "evaluation.html", render("evaluation.html", title=title, run=run, **sections.values(run)))


def write_scene_evaluation_page(
    folder: Path, title: str, split: SceneSplit, predictions: Mapping[int, SceneDetections], data: SceneData, metrics: dict[str, Any]
) -> Path:
    """The same of scenes; ``metrics`` are those of ``boxquery.evaluation.nuscenes.evaluate_scenes``."""
    write_evaluation(folder, split.name, metrics)
    columns = list(metrics["classes"][0])
    write_table(folder / "per_class.csv", [columns, *([row[column] for column in columns] for row in metrics["classes"])])
    write_scene_pictures(folder, split, predictions, data, threshold=metrics["best_threshold"])
    run = read_run(folder)
    return atomic_write(folder / "evaluation.html", render("evaluation.html", title=title, run=run, **sections.values(run)))


def write_check(folder: Path) -> Path:
    """Write ``check.html`` from ``check.json`` and ``check.png`` of a folder."""
    run = read_run(folder)
    run = replace(run, data=run.check["data"])
    title = f"Check of {_last_part(run.data['source'])}"
    return atomic_write(folder / "check.html", render("check.html", title=title, run=run, **sections.values(run)))


def _last_part(source: object) -> str:
    return str(source).rstrip("/").rsplit("/", 1)[-1]
