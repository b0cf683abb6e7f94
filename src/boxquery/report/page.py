"""The pages of a run folder: its report, and what a check of the data found."""

from __future__ import annotations

from pathlib import Path

from boxquery.files import atomic_write
from boxquery.pages.format import class_name
from boxquery.pages.html import render
from boxquery.report import sections
from boxquery.report.run_files import RunFiles, read_run


def write_report(folder: Path) -> Path:
    """Write ``report.html`` from the files of a run folder; what is missing there is left out.

    Returns:
        The path of the report, written atomically.

    Raises:
        UserError: no such folder, or a file cannot be read.
    """
    run = read_run(folder)
    split = next((name for name in ("val", *run.evaluation) if name in run.evaluation), "val")
    result = run.evaluation.get(split)
    page = render(
        "report.html",
        title=_title(run),
        by=sections.origin(run),
        run=run,
        split=split,
        result=result,
        settings=sections.settings(run),
        facts=sections.facts(run, result),
        names=[class_name(item["name"]) for item in result["per_class"]] if result else run.data.get("names", []),
        curves=sections.curves(run),
        log=sections.log(run),
        alignment=sections.alignment(run),
        scores=sections.scores(run),
        classes=sections.classes(run, result),
        pictures=sections.pictures(run),
        transfer=sections.transfer(run),
        dataset=sections.dataset(run.data),
        check=sections.check(run),
    )
    return atomic_write(folder / "report.html", page)


def write_check(folder: Path) -> Path:
    """Write ``check.html`` from ``check.json`` and ``check.png`` of a folder."""
    run = read_run(folder)
    dataset = sections.dataset(run.check["data"])
    page = render("check.html", title=f"Check of {_last_part(dataset['source'])}", check=sections.check(run), dataset=dataset)
    return atomic_write(folder / "check.html", page)


def _title(run: RunFiles) -> str:
    model = str(run.config.get("model") or run.folder.resolve().name)
    source = run.config.get("data") or run.data.get("source")
    return f"{model} on {_last_part(source)}" if source else model


def _last_part(source: object) -> str:
    return str(source).rstrip("/").rsplit("/", 1)[-1]
