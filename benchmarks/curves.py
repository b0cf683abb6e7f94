"""Learning curves of the default: the AP that so many images of a set give after so many minutes on one CPU thread.

    python benchmarks/curves.py raccoon=path/to/raccoon bccd=path/to/bccd cards=path/to/cards      # resumable
    python benchmarks/curves.py raccoon=path/to/raccoon --images 50 --seconds 300 --seeds 0        # a part of it
    python benchmarks/curves.py --show                                                             # only page and figure

A cell is a set, a number of its training images, CPU seconds and a seed: one ``boxquery train`` without any choice but the length, and
without a download, in a process of its own on one thread, which spends so many CPU seconds. It starts from what comes along: weights of
drawn scenes. The images are the first of one shuffled order, so that 50 are among the 100. It evaluates once, at the end, on the set's
own val split: what is reported is the last model. Beside it is what the median box of each class of the same training images gives in
every image. Results are kept as those of benchmarks/recipe.py are.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"

import cells
from boxquery.data.dataset import Data
from boxquery.data.open import open_data
from boxquery.files import atomic_write
from boxquery.training.config import RunConfig
from boxquery.training.run_length import PLANNED
from cells import DOCS, NOT_MEASURED, read_run, set_facts, svg, three

PAGE, FIGURE = DOCS / "learning-curves.md", DOCS / "learning-curves.svg"
RESULTS = DOCS / "experiments" / "results" / "curves.json"
#: training images by set; raccoon has 160
SETS = {"raccoon": (50, 100, 160), "bccd": (50, 100, 200), "cards": (50, 100, 200)}
SECONDS = (300, 600, 1200)


class Cell(NamedTuple):
    """One training run."""

    set: str
    images: int
    seconds: int
    seed: int

    def __str__(self) -> str:
        return "-".join(map(str, self))


def subset(path: str, images: int) -> Data:
    """A set with so many of its training images, and its val split."""
    data = open_data(path)
    train = data.training_split()
    order = random.Random(0).sample(range(len(train)), len(train))[:images]
    return replace(data, splits={"train": replace(train, records=[train[i] for i in order]), "val": data.split("val")})


def train(paths: Mapping[str, str], cell: Cell, out: Path) -> None:
    """Train a cell into its run folder, in this process."""
    import boxquery as bq

    bq.train(subset(paths[cell.set], cell.images), minutes=cell.seconds / 60 / PLANNED, clock="cpu", val_every=1_000_000, seed=cell.seed,
             device="cpu", workers=0, out=out)  # fmt: skip


def measure(todo: Iterable[Cell], paths: Mapping[str, str], runs: Path, results: Path) -> None:
    """Train those of the cells that are not measured."""

    def describe(cell: Cell, out: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
        config, found = RunConfig.read(out), read_run(out)
        own = {"model": config.model, "preset": config.preset, "image_size": config.image_size, "batch_size": config.batch_size,
               "options": config.options}  # fmt: skip
        return f"{cell.set}, {cell.images}", set_facts(subset(paths[cell.set], cell.images)), {**found, **own}

    cells.measure(todo, runs, results, lambda cell, known: cell in measured(known), partial(train, paths), describe)


def measured(results: Mapping[str, Any]) -> dict[Cell, Mapping[str, Any]]:
    return cells.rows(Cell, results)


def table(results: Mapping[str, Any]) -> str:
    """Markdown: per set a row for each number of images, with AP and AP50 after each number of minutes."""
    rows = measured(results)
    parts = []
    for name, sizes in SETS.items():
        facts = [results["sets"].get(f"{name}, {images}") for images in sizes]
        known = next((each for each in facts if each), None)
        on = f"AP / AP50 on the {known['images']} images of val ({known['objects']} objects)" if known else "AP / AP50 on val"
        heads = ["training images", *(f"{seconds / 60:g} min" for seconds in SECONDS), "median box per class"]
        lines = [f"**{name}**: {on}", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for images, each in zip(sizes, facts, strict=True):
            median = NOT_MEASURED if each is None else " / ".join(three(each["median_box"][key]) for key in ("AP", "AP50"))
            found = [_cell(_of(rows, name, images, seconds)) for seconds in SECONDS]
            lines.append(f"| {images} | {' | '.join(found)} | {median} |")
        parts.append("\n".join(lines))
    if rows:
        made = sorted({_choice(row) for row in rows.values()})
        seeds = sorted({len(_of(rows, *cell[:3])) for cell in rows})
        few = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'s' * (seeds[0] > 1)}"
        parts.append(f"Trained: {'; '.join(made)}. {few} per cell; of several the mean, and the lowest and highest AP.")
    return "\n\n".join(parts)


def _choice(row: Mapping[str, Any]) -> str:
    own = "".join(f", {name}={value}" for name, value in row["options"].items())
    return f"{row['model']}, preset {row['preset']}, at {row['image_size']} pixels in batches of {row['batch_size']}{own}"


def _of(rows: Mapping[Cell, Mapping[str, Any]], name: str, images: int, seconds: int) -> list[Mapping[str, Any]]:
    return [row for cell, row in rows.items() if cell[:3] == (name, images, seconds)]


def _cell(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return NOT_MEASURED
    values = [row["AP"] for row in rows]
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f} / {mean(row['AP50'] for row in rows):.3f}{spread}"


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """A panel per set: AP against minutes, a line per number of images, dashed what the median box of all of them gives."""
    from matplotlib.figure import Figure

    rows = measured(results)
    figure = Figure(figsize=(4.4 * len(SETS), 3.4), layout="constrained")
    for axis, (name, sizes) in zip(figure.subplots(1, len(SETS), squeeze=False).flat, SETS.items(), strict=True):
        for place, images in enumerate(sizes):
            points = [(seconds / 60, [row["AP"] for row in _of(rows, name, images, seconds)]) for seconds in SECONDS]
            points = [(minutes, values) for minutes, values in points if values]
            axis.plot([m for m, _ in points], [mean(v) for _, v in points], "o-", color=f"C{place}", lw=1.8, label=f"{images} images")
            for minutes, values in points:
                axis.plot([minutes, minutes], [min(values), max(values)], color=f"C{place}", lw=0.8)
        fixed = results["sets"].get(f"{name}, {sizes[-1]}")
        if fixed and fixed["median_box"]["AP"] is not None:
            axis.axhline(fixed["median_box"]["AP"], color="0.5", ls="--", lw=1, label="median box")
        axis.set(title=name, xlabel="CPU minutes", ylabel="AP", ylim=0, xlim=(0, max(SECONDS) / 57), xticks=[s / 60 for s in SECONDS])
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    atomic_write(path, svg(figure))


def show(results: Path, keep: bool) -> None:
    """Print the tables; with ``keep`` also draw the figure and write the page."""
    drawing = cells.Drawing(FIGURE, draw, "AP against minutes, for each number of training images")
    cells.show(results, table, PAGE if keep else None, drawing)


def main() -> None:
    parser = cells.command_line(__doc__, SETS, "runs/curves", RESULTS, seeds=[0])
    cells.add_images(parser)
    parser.add_argument("--seconds", nargs="+", type=int, choices=SECONDS, default=list(SECONDS), help="CPU seconds (default: %(default)s)")
    args = cells.parse(parser, SETS)
    if not args.show:
        todo = [Cell(*size, seconds, seed) for seed, seconds, size in product(args.seeds, args.seconds, cells.sizes(args, SETS))]
        measure(todo, args.paths, args.runs, args.results)
    show(args.results, keep=args.results == RESULTS)


if __name__ == "__main__":
    main()
