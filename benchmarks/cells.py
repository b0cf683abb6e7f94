"""Training runs whose results are kept one by one: flags, measuring and page of benchmarks/recipe.py, curves.py, finetune.py and
pretraining.py; and of other pages the figures and tables.

A cell says what one run is; a results file has ``sets`` (name -> facts of the data) and ``cells``, a row per finished run. Cells that are
there are not repeated, a run that was interrupted starts anew, and several processes may work on the same file at once.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from boxquery.benchmark.machine import processor
from boxquery.data.dataset import Data
from boxquery.evaluation.median_box import evaluate_median_boxes, median_boxes
from boxquery.files import atomic_write, write_json
from boxquery.locks import Lock
from peer import NOT_MEASURED, ONE_THREAD, commit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
#: real data sets, beside the repository
DATASETS = Path(os.environ.get("BOXQUERY_SHARED", ROOT.parent / "shared")) / "datasets"


class Cell(Protocol):
    """One training run, a named tuple; its text names its run folder."""

    @property
    def _fields(self) -> tuple[str, ...]: ...

    def _asdict(self) -> dict[str, Any]: ...


C = TypeVar("C", bound=Cell)


def read_results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"sets": {}, "cells": []}


def rows(kind: type[C], results: Mapping[str, Any]) -> dict[C, Mapping[str, Any]]:
    """The measured cells, of the class ``kind``, and their rows."""
    return {kind(*(row[key] for key in kind._fields)): row for row in results["cells"]}


def add(path: Path, name: str, facts: Mapping[str, Any], cell: Cell, row: Mapping[str, Any]) -> None:
    """Put a cell's row and the facts of its set into the results file. Raises ``RuntimeError`` if others hold it for a minute."""
    lock = Lock.take(path.with_name(f".{path.name}.lock"), wait=60)
    if lock is None:
        raise RuntimeError(f"{path}: locked by another process for a minute; its run is kept, but not its row")
    try:
        results, key = read_results(path), cell._asdict()
        results["sets"][name] = dict(facts)
        others = [old for old in results["cells"] if any(old[part] != value for part, value in key.items())]
        write_json(path, {"sets": results["sets"], "cells": [*others, {**key, **row}]})
    finally:
        lock.release()


def measure(
    cells: Iterable[C],
    runs: Path,
    results: Path,
    is_measured: Callable[[C, Mapping[str, Any]], bool],
    train: Callable[[C, Path], None],
    describe: Callable[[C, Path], tuple[str, dict[str, Any], dict[str, Any]]],
) -> None:
    """Train the cells that are not in the results and that no other process is working on; a failed one is named and left out.

    Args:
        is_measured: whether the results have a cell.
        train: makes the run folder of a cell, in a process of its own, so what it is must be importable.
        describe: of a finished run the name of its set, facts of that, and the cell's row.
    """
    for cell in cells:
        lock = Lock.take(runs / f"{cell}.lock")
        if lock is None:
            print(f"{cell}: another process is working on it", flush=True)
            continue
        try:
            if is_measured(cell, read_results(results)):
                continue
            print(f"{cell}: training", flush=True)
            out, begun = runs / str(cell), commit()
            run_apart(train, cell, out)
            name, facts, row = describe(cell, out)
            row |= {"commit": begun}
            add(results, name, facts, cell, row)
            print(f"  AP {row['AP']:.3f}, AP50 {row['AP50']:.3f}, {row['steps']} steps, {row['cpu_seconds']} CPU s", flush=True)
        except RuntimeError as error:
            print(error, flush=True)
        finally:
            lock.release()


def run_apart(train: Callable[[C, Path], None], cell: C, out: Path) -> None:
    """``train`` in a process of its own on one thread. Raises ``RuntimeError`` with the log's last lines if it fails."""
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    os.environ.update(ONE_THREAD)
    process = multiprocessing.get_context("spawn").Process(target=_logged, args=(train, cell, out))
    process.start()
    process.join()
    if process.exitcode:
        log = out.with_suffix(".log")
        raise RuntimeError(f"{cell}: failed; the last lines of {log}:\n{''.join(log.read_text().splitlines(True)[-8:])}")


def _logged(train: Callable[[C, Path], None], cell: C, out: Path) -> None:
    """What is printed, and why it failed, is in OUT.log."""
    sys.stdout = sys.stderr = out.with_suffix(".log").open("w", buffering=1)
    import torch

    torch.set_num_threads(1)
    train(cell, out)


def read_run(out: Path) -> dict[str, Any]:
    """What a finished run came to; ``AP`` and ``AP50`` are those of its best epoch."""
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    scored = [row for row in rows if row.get("AP")]
    best, last = max(scored, key=lambda row: float(row["AP"])), rows[-1]
    return {
        **{key: round(float(best[key]), 4) for key in ("AP", "AP50")}, "AP_last": round(float(scored[-1]["AP"]), 4),
        "best_epoch": int(best["epoch"]), "last_epoch": int(last["epoch"]), "steps": int(last["step"]),
        "images_seen": int(float(last["images"])), "cpu_seconds": round(float(last["cpu_seconds"]), 1),
        "processor": processor()["name"],
    }  # fmt: skip


def set_facts(data: Data) -> dict[str, Any]:
    """Sizes of train and val, and what the training images' median box of each class gives on val."""
    train, val = data.splits["train"], data.splits["val"]
    median = evaluate_median_boxes(median_boxes(train, len(data.names)), val, data.names, data.ids)
    return {"training_images": len(train), "images": len(val), "objects": sum(int((~record.ignore).sum()) for record in val),
            "median_box": {key: value if value is None else round(value, 4) for key, value in median.items()}}  # fmt: skip


def command_line(doc: str, sets: Collection[str], runs: str, results: Path, seeds: Sequence[int] | None) -> argparse.ArgumentParser:
    """The flags of every script that measures cells; `parse` reads them.

    Args:
        doc: of the script; its first line is what ``--help`` begins with.
        sets: the data sets that it knows.
        runs, results, seeds: the defaults; None where the seeds depend on other flags.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("data", nargs="*", metavar="NAME=PATH", help=f"data sets: {', '.join(sets)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=seeds, help=seeds and f"(default: {' '.join(map(str, seeds))})")
    parser.add_argument("--runs", type=Path, default=Path(runs), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=results, help="(default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="only write the page, from the results file")
    return parser


def parse(parser: argparse.ArgumentParser, sets: Collection[str]) -> argparse.Namespace:
    """The command line, with ``paths``: the path of every set that it names; ends the process where it is wrong."""
    args = parser.parse_args()
    args.paths = dict(word.partition("=")[::2] for word in args.data)
    if wrong := [name for name, path in args.paths.items() if name not in sets or not path]:
        parser.error(f"{wrong[0]}: write NAME=PATH, for {', '.join(sets)}")
    return args


def add_images(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", nargs="+", type=int, help="only these numbers of training images")


def sizes(args: argparse.Namespace, sets: Mapping[str, Sequence[int]]) -> list[tuple[str, int]]:
    """Every set that the command line names with each number of its training images, or with those of ``--images`` alone."""
    return [(name, images) for name in args.paths for images in sets[name] if args.images is None or images in args.images]


class Drawing(NamedTuple):
    """The figure above a page's table: its file, what draws it of the results, and what it shows."""

    path: Path
    draw: Callable[[Path, Mapping[str, Any]], None]
    shows: str


def show(results: Path, table: Callable[[Mapping[str, Any]], str], page: Path | None, drawing: Drawing | None = None) -> None:
    """Print the table of the results; put it into the page, if there is one, below its figure."""
    known = read_results(results)
    text = table(known)
    print(text)
    if page is None:
        return
    if drawing is not None and known["cells"]:
        drawing.draw(drawing.path, known)
        text = f"![{drawing.shows}]({drawing.path.name})\n\n{text}"
    put_into_page(page, text)


def three(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{value:.3f}"


def put_into_page(page: Path, text: str, part: str = "") -> None:
    """Between the page's two marks; those of one part of it, where it has several."""
    begin, end = f"<!-- measured{part and f' {part}'} -->", f"<!-- end of what was measured{part and f' {part}'} -->"
    marked = f"{begin}\n\n{text}\n\n{end}"
    atomic_write(page, re.sub(f"{begin}.*{end}", lambda _: marked, page.read_text(), flags=re.S))


def svg(figure: Figure) -> str:
    """The same figure is the same text."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "boxquery"}):
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()
