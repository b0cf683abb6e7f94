"""Fine-tuning against random weights: what a model that was trained on the built-in scenes is worth on few photographs.

    python benchmarks/finetune.py raccoon=path/to/raccoon bccd=path/to/bccd cards=path/to/cards    # resumable
    python benchmarks/finetune.py raccoon=path/to/raccoon --images 20 --seeds 0                    # a part of it
    python benchmarks/finetune.py --show                                                           # only page and figure

First ``deformable-detr`` "tiny" is trained on built-in scenes for twenty minutes of CPU time on one thread, from random weights. Then a
cell is a set, a number of its training images, a start and a seed: "random" weights, the scenes' model ("scenes"), or the same with its
backbone frozen ("frozen"). All train equally long in CPU time, with the same images, squares of 160 pixels and learning rate, and differ in
nothing else. A cell's AP is that of its last epoch on the set's own val split: none is chosen. Results are kept as those of
benchmarks/curves.py.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import cells
from boxquery.files import atomic_write
from boxquery.training.run_length import PLANNED
from cells import DOCS, NOT_MEASURED, read_run, set_facts, svg, three
from curves import subset

PAGE, FIGURE = DOCS / "experiments" / "finetuning.md", DOCS / "experiments" / "finetuning.svg"
RESULTS = DOCS / "experiments" / "results" / "finetuning.json"
#: training images by set; raccoon has 160
SETS = {"raccoon": (20, 50, 160), "bccd": (20, 50, 200), "cards": (20, 50, 200)}
STARTS = {"random": "random weights", "scenes": "from scenes", "frozen": "from scenes, backbone frozen"}
#: CPU seconds of a cell, and of the model that is trained on scenes
SECONDS, SCENES_SECONDS = 60, 1200
SETTINGS: dict[str, Any] = {"model": "deformable-detr", "preset": "tiny", "image_size": 160, "square": True, "lr": 5e-4, "clock": "cpu",
                            "device": "cpu", "workers": 0, "pretrained": False, "force": True}  # fmt: skip


class Cell(NamedTuple):
    """One training run."""

    set: str
    images: int
    start: str
    seed: int

    def __str__(self) -> str:
        return "-".join(map(str, self))


def train(paths: Mapping[str, str], source: Path, cell: Cell, out: Path) -> None:
    """Train a cell into its run folder, in this process."""
    import boxquery as bq

    begin: dict[str, Any] = {} if cell.start == "random" else {"start_from": source, "freeze_backbone": cell.start == "frozen"}
    bq.train(subset(paths[cell.set], cell.images), **SETTINGS, **begin, minutes=SECONDS / 60 / PLANNED, seed=cell.seed, out=out)


class Scenes(NamedTuple):
    """The run that the others start from."""

    name: str = "scenes"

    def __str__(self) -> str:
        return self.name


def train_on_scenes(seconds: int, cell: Scenes, out: Path) -> None:
    import boxquery as bq

    bq.train("shapes:train=8000", **SETTINGS, minutes=seconds / 60 / PLANNED, seed=0, out=out)


def scenes_model(runs: Path, seconds: int = SCENES_SECONDS) -> Path:
    """The run that others start from, trained where it is not there yet."""
    source = runs / str(Scenes())
    if not (source / "report.html").is_file():
        print(f"scenes: training for {seconds} CPU s", flush=True)
        cells.run_apart(partial(train_on_scenes, seconds), Scenes(), source)
    return source


def curve(out: Path) -> list[list[float]]:
    """CPU seconds and AP of every evaluation."""
    with (out / "metrics.csv").open() as file:
        return [[round(float(row["cpu_seconds"]), 1), round(float(row["AP"]), 4)] for row in csv.DictReader(file) if row.get("AP")]


def measure(todo: Iterable[Cell], paths: Mapping[str, str], runs: Path, results: Path, seconds: int) -> None:
    """Train those of the cells that are not measured, after the model that they start from."""
    source = scenes_model(runs, seconds)

    def describe(cell: Cell, out: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
        found = read_run(out) | {"curve": curve(out), "scenes_seconds": seconds}
        return f"{cell.set}, {cell.images}", set_facts(subset(paths[cell.set], cell.images)), found

    cells.measure(todo, runs, results, lambda cell, known: cell in measured(known), partial(train, paths, source), describe)


def measured(results: Mapping[str, Any]) -> dict[Cell, Mapping[str, Any]]:
    return cells.rows(Cell, results)


def _of(rows: Mapping[Cell, Mapping[str, Any]], name: str, images: int, start: str) -> list[Mapping[str, Any]]:
    return [row for cell, row in rows.items() if cell[:3] == (name, images, start)]


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row for each number of images of each set, a column for each start."""
    rows = measured(results)
    heads = ["set", "training images", *STARTS.values(), "median box per class"]
    lines = [f"AP of the last epoch on val after {SECONDS} CPU s (lowest to highest of several seeds)", ""]
    lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, sizes in SETS.items():
        for images in sizes:
            facts = results["sets"].get(f"{name}, {images}")
            fixed = NOT_MEASURED if facts is None else three(facts["median_box"]["AP"])
            found = [spread(_of(rows, name, images, start)) for start in STARTS]
            lines.append(f"| {name} | {images} | {' | '.join(found)} | {fixed} |")
    if lengths := sorted({row["scenes_seconds"] for row in rows.values()}):
        lines += ["", f"The model that they start from was trained on scenes for {' and '.join(map(str, lengths))} CPU s."]
    return "\n".join(lines)


def spread(rows: Sequence[Mapping[str, Any]]) -> str:
    """The mean AP of the last epochs of several seeds, and the lowest and highest."""
    if not rows:
        return NOT_MEASURED
    values = [row["AP_last"] for row in rows]
    return f"{mean(values):.3f}" + (f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else "")


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """A row per set, a panel per number of images: AP against CPU seconds, a thin line per seed."""
    from matplotlib.figure import Figure

    rows = measured(results)
    figure = Figure(figsize=(10, 2.6 * len(SETS)), layout="constrained")
    panels = figure.subplots(len(SETS), max(map(len, SETS.values())), squeeze=False)
    for axes, (name, sizes) in zip(panels, SETS.items(), strict=True):
        for axis, images in zip(axes, sizes, strict=True):
            for place, (start, words) in enumerate(STARTS.items()):
                for i, row in enumerate(_of(rows, name, images, start)):
                    seconds, values = zip(*row["curve"], strict=True)
                    axis.plot(seconds, values, color=f"C{place}", lw=1.2, label=None if i else words)
            axis.set(title=f"{name}, {images} images", xlabel="CPU seconds", ylabel="AP", ylim=0, xlim=(0, SECONDS))
            axis.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False, fontsize=8)
    atomic_write(path, svg(figure))


def show(results: Path, keep: bool) -> None:
    """Print the table; with ``keep`` also draw the figure and write the page."""
    drawing = cells.Drawing(FIGURE, draw, "AP against CPU seconds by start, for each set and number of images")
    cells.show(results, table, PAGE if keep else None, drawing)


def main() -> None:
    parser = cells.command_line(__doc__, SETS, "runs/finetune", RESULTS, seeds=[0, 1, 2])
    cells.add_images(parser)
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS), help="(default: all)")
    parser.add_argument("--scenes-seconds", type=int, default=SCENES_SECONDS, help="of the training on scenes (default: %(default)s)")
    args = cells.parse(parser, SETS)
    if not args.show:
        todo = [Cell(*size, start, seed) for seed, size, start in product(args.seeds, cells.sizes(args, SETS), args.starts)]
        measure(todo, args.paths, args.runs, args.results, args.scenes_seconds)
    show(args.results, keep=args.results == RESULTS)


if __name__ == "__main__":
    main()
