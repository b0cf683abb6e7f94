"""The pages of a run folder: its report, and what a check of the data found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from boxquery.files import atomic_write
from boxquery.pages.html import render
from boxquery.report import sections
from boxquery.report.run_files import read_run


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from the files of a run folder; what is missing there is left out.

    Returns:
        The path of the report, written atomically.

    Raises:
        UserError: no such folder, or a file cannot be read.
    """
    run = read_run(folder)
    model, source = run.config.get("model") or folder.resolve().name, run.config.get("data") or run.data.get("source")
    title = f"{model} on {_last_part(source)}" if source else str(model)
    return atomic_write(folder / "report.html", render("report.html", title=title, run=run, **sections.values(run)))


def write_check(folder: Path) -> Path:
    """Write ``check.html`` from ``check.json`` and ``check.png`` of a folder."""
    run = read_run(folder)
    run = replace(run, data=run.check["data"])
    title = f"Check of {_last_part(run.data['source'])}"
    return atomic_write(folder / "check.html", render("check.html", title=title, run=run, **sections.values(run)))


def _last_part(source: object) -> str:
    return str(source).rstrip("/").rsplit("/", 1)[-1]
