"""Pre-training without labels against none: what random patches, or a teacher's detections, are worth where few photographs are labelled.

    python benchmarks/pretraining.py raccoon=path/to/raccoon bccd=path/to/bccd      # resumable
    python benchmarks/pretraining.py bccd=path/to/bccd --images 50 --starts none patches --seeds 0      # a part of it
    python benchmarks/pretraining.py --show                                         # only the page

A cell is a set, a number of its training images that are labelled, a start and a seed. All cells train equally long in CPU time with the
settings of benchmarks/finetune.py and differ in their start alone; before them their start learns from all training images of the set,
without labels. "longer" spends that time on labels instead. "scenes" is the model that benchmarks/finetune.py trains on drawn scenes;
from it patches are learned with the backbone frozen, as published, and trained. A "teacher" is the cell that starts from random weights,
with the same labels and seed. A cell's AP is that of its last epoch on the set's own val split: none is chosen. Results are kept as those
of benchmarks/curves.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import groupby, product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import cells
from boxquery.data.dataset import Data
from boxquery.training.run_length import PLANNED
from cells import DOCS, NOT_MEASURED, read_results, read_run, set_facts, three
from curves import subset
from finetune import SCENES_SECONDS, SETTINGS, Scenes, curve, spread, train_on_scenes

PAGE, RESULTS = DOCS / "experiments" / "pretraining.md", DOCS / "experiments" / "results" / "pretraining.json"
#: labelled training images by set; raccoon has 160
SETS = {"raccoon": (50, 160), "bccd": (50, 200)}
#: what a cell starts from, in words
STARTS = {
    "none": "random weights",
    "longer": "random weights, longer",
    "patches": "patches, backbone trained",
    "scenes": "from scenes",
    "scenes-frozen": "from scenes, then patches, backbone frozen",
    "scenes-trained": "from scenes, then patches, backbone trained",
    "teacher": "a teacher's detections",
}
#: CPU seconds of a cell, and of what comes before it
SECONDS, BEFORE = 60, 120
#: how patches are learned, by start
PATCHES: dict[str, dict[str, Any]] = {"patches": {}, "scenes-frozen": {}, "scenes-trained": {"train_backbone": True}}
#: more images than any set has
ALL = 1_000_000


class Cell(NamedTuple):
    """One training run."""

    set: str
    images: int
    start: str
    seed: int

    def __str__(self) -> str:
        return "-".join(map(str, self))


class Before(NamedTuple):
    """The run that a cell starts from; of patches it is the same for all numbers of labels and all seeds."""

    set: str
    start: str
    images: int = 0
    seed: int = 0

    def __str__(self) -> str:
        return f"before-{self.set}-{self.start}" + f"-{self.images}-{self.seed}" * (self.start == "teacher")


def before(cell: Cell) -> Before | Scenes | None:
    """None: random weights."""
    if cell.start in ("none", "longer"):
        return None
    if cell.start == "scenes":
        return Scenes()
    return Before(cell.set, cell.start, cell.images, cell.seed) if cell.start == "teacher" else Before(cell.set, cell.start)


def learn_patches(paths: Mapping[str, str], runs: Path, seconds: int, run: Before, out: Path) -> None:
    import boxquery as bq

    flags = SETTINGS | PATCHES[run.start] | ({"start_from": runs / str(Scenes())} if run.start != "patches" else {})
    bq.pretrain(subset(paths[run.set], ALL), **flags, minutes=seconds / 60 / PLANNED, seed=0, out=out)


def learn_from_teacher(paths: Mapping[str, str], runs: Path, seconds: int, run: Before, out: Path) -> None:
    import boxquery as bq

    teacher = runs / str(Cell(run.set, run.images, "none", run.seed))
    pictures = copied(subset(paths[run.set], ALL), runs / f"{run.set}-pictures")
    bq.pretrain(pictures, teacher=teacher, **SETTINGS, minutes=seconds / 60 / PLANNED, seed=run.seed, out=out)


def copied(data: Data, folder: Path) -> Path:
    """A folder with the training images alone; a link would lead out of it, which no data set may."""
    folder.mkdir(parents=True, exist_ok=True)
    for record in data.splits["train"]:
        assert record.path is not None
        shutil.copyfile(record.path, folder / record.path.name)
    return folder


def train(paths: Mapping[str, str], runs: Path, seconds: int, cell: Cell, out: Path) -> None:
    """Train a cell into its run folder, in this process."""
    import boxquery as bq

    source, own = before(cell), SECONDS + (seconds if cell.start == "longer" else 0)
    start: dict[str, Any] = {} if source is None else {"start_from": runs / str(source)}
    bq.train(subset(paths[cell.set], cell.images), **SETTINGS, **start, minutes=own / 60 / PLANNED, seed=cell.seed, out=out)


def prepare(cell: Cell, paths: Mapping[str, str], runs: Path, seconds: int, scenes: int) -> None:
    """What a cell starts from, unless it is there. Raises ``RuntimeError`` where it fails."""
    run = before(cell)
    if run is None or is_finished(runs / str(run)):
        return
    if not isinstance(run, Scenes) and run.start.startswith("scenes"):
        prepare(cell._replace(start="scenes"), paths, runs, seconds, scenes)
    if isinstance(run, Scenes):
        print(f"{run}: training for {scenes} CPU s", flush=True)
        cells.run_apart(partial(train_on_scenes, scenes), run, runs / str(run))
        return
    if run.start == "teacher" and not is_finished(runs / str(cell._replace(start="none"))):
        teacher = cell._replace(start="none")
        print(f"{teacher}: training again, as its run is gone", flush=True)
        cells.run_apart(partial(train, paths, runs, seconds), teacher, runs / str(teacher))
    print(f"{run}: learning for {seconds} CPU s", flush=True)
    cells.run_apart(partial(learn_from_teacher if run.start == "teacher" else learn_patches, paths, runs, seconds), run, runs / str(run))


def is_finished(out: Path) -> bool:
    return (out / "evaluation.json").is_file()


def measure(todo: Iterable[Cell], paths: Mapping[str, str], runs: Path, results: Path, seconds: int, scenes: int) -> None:
    """Train those of the cells that are not measured, each after what it starts from."""

    def describe(cell: Cell, out: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
        found = read_run(out) | {"curve": curve(out), "before_seconds": seconds}
        source = before(cell)
        if source is not None and not isinstance(source, Scenes):
            reached = json.loads((runs / str(source) / "evaluation.json").read_text())["val"]
            found["before"] = {name: round(reached[name], 4) for name in ("AP", "iou") if reached.get(name) is not None}
        return f"{cell.set}, {cell.images}", set_facts(subset(paths[cell.set], cell.images)), found

    for cell in todo:
        if cell in measured(read_results(results)):
            continue
        try:
            prepare(cell, paths, runs, seconds, scenes)
        except RuntimeError as error:
            print(error, flush=True)
            continue
        cells.measure([cell], runs, results, lambda c, known: c in measured(known), partial(train, paths, runs, seconds), describe)


def measured(results: Mapping[str, Any]) -> dict[Cell, Mapping[str, Any]]:
    return cells.rows(Cell, results)


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row for each start, a column for each number of labelled images of each set; and how well patches were found."""
    rows = measured(results)
    columns = [(name, images) for name, sizes in SETS.items() for images in sizes]
    seconds = sorted({row["before_seconds"] for row in rows.values()}) or [BEFORE]
    lines = [
        f"AP of the last epoch on val after {SECONDS} CPU s with labels (lowest to highest of several seeds), and before them "
        f'{" or ".join(map(str, seconds))} CPU s without ({SECONDS + seconds[0]} CPU s with labels for "longer")',
        "",
        f"| start | {' | '.join(f'{name}, {images} images' for name, images in columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for start, words in STARTS.items():
        found = [spread([row for cell, row in rows.items() if cell[:3] == (*column, start)]) for column in columns]
        lines.append(f"| {words} | {' | '.join(found)} |")
    facts = [results["sets"].get(f"{name}, {images}") for name, images in columns]
    lines.append(f"| median box per class | {' | '.join(NOT_MEASURED if f is None else three(f['median_box']['AP']) for f in facts)} |")
    lines += [
        "",
        "What a start gains on random weights with the same images and seed (lowest to highest of several seeds)",
        "",
        *lines[2:4],
    ]
    for start, words in list(STARTS.items())[1:]:
        lines.append(f"| {words} | {' | '.join(gain(rows, column, start) for column in columns)} |")
    # a run is the same for all of its cells, but another one where it was learned again
    reached = {(cell.set, cell.start, row["before"]["iou"]) for cell, row in rows.items() if "iou" in row.get("before", {})}
    for (name, start), runs in groupby(sorted(reached), key=lambda each: each[:2]):
        ious = " and ".join(f"{iou:.3f}" for *_, iou in runs)
        lines += ["", f"Patches of {name}'s val images are found with a mean IoU of {ious} ({STARTS[start]})."]
    return "\n".join(lines)


def gain(rows: Mapping[Cell, Mapping[str, Any]], column: tuple[str, int], start: str) -> str:
    """The mean difference from random weights, of the seeds that both have, and the lowest and highest."""
    pairs = [(row, rows.get(cell._replace(start="none"))) for cell, row in rows.items() if cell[:3] == (*column, start)]
    gains = [row["AP_last"] - none["AP_last"] for row, none in pairs if none]
    if not gains:
        return NOT_MEASURED
    return f"{mean(gains):+.3f}" + (f" ({min(gains):+.3f} to {max(gains):+.3f})" if len(gains) > 1 else "")


def main() -> None:
    parser = cells.command_line(__doc__, SETS, "runs/pretraining", RESULTS, seeds=[0, 1, 2])
    cells.add_images(parser)
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS), help="(default: all)")
    parser.add_argument("--before-seconds", type=int, default=BEFORE, help="CPU seconds without labels (default: %(default)s)")
    parser.add_argument("--scenes-seconds", type=int, default=SCENES_SECONDS, help="of the training on scenes (default: %(default)s)")
    args = cells.parse(parser, SETS)
    if not args.show:
        starts = [start for start in STARTS if start in args.starts]  # a teacher is a cell of an earlier start
        todo = [Cell(*size, start, seed) for seed, size, start in product(args.seeds, cells.sizes(args, SETS), starts)]
        measure(todo, args.paths, args.runs, args.results, args.before_seconds, args.scenes_seconds)
    cells.show(args.results, table, PAGE if args.results == RESULTS else None)


if __name__ == "__main__":
    main()
