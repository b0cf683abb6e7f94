"""The ladder of recipes: what each change of model and training gains from random weights, on images held out of train.

    python benchmarks/recipe.py raccoon=path/to/raccoon cards=path/to/cards              # screening: one seed, two sets; resumable
    python benchmarks/recipe.py raccoon=... cards=... bccd=... --finalists               # what passed it: three seeds, seven sets
    python benchmarks/recipe.py raccoon=... cards=... --variants mal dense --seconds 500 1000 --seeds 0 1
    python benchmarks/recipe.py --show                                                   # only the tables, from the results file

A variant is a parent and what it changes of the parent's options and recipe (benchmarks/recipe_variants.py); the first root is
deformable-detr "small" as it was when the ladder began. A cell is a set, a variant, CPU seconds and a seed: one training run in a process
of its own on one thread, which spends so many CPU seconds, reading and evaluations included. Cells are added to the results file one by
one, those that are there are not repeated, a run that was interrupted starts anew, and several of these processes may work at once. A
cell whose variant has changed since counts as not measured.

Nothing is chosen on a split that is reported: of the sets' training images a fifth (of raccoon's a quarter) is held out and evaluated
on, copies of one file on one side; the sets' own val and test splits are dropped before anything is trained. ``scenes1``, ``scenes2``,
``scenes12`` and ``scenes30`` are built-in scenes with so many objects per image.

The rule: with one seed on two sets, a variant passes that gains more than .02 AP on one and loses less than .01 on the other, both
against its parent; what passed goes to three seeds on all seven sets. AP is that of the best epoch, "last" that of the last.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import cells
from boxquery.data.dataset import Data, Record, Split
from boxquery.data.open import open_data
from boxquery.data.shapes import shapes_data
from boxquery.data.splits import equal_files
from boxquery.training.run_length import PLANNED
from cells import DOCS, NOT_MEASURED, read_results, read_run, set_facts, three
from finetune import scenes_model
from recipe_variants import VARIANTS, changes, paper, settings

PAGE, RESULTS = DOCS / "experiments" / "recipe.md", DOCS / "experiments" / "results" / "recipe.json"
#: the sets that variants are screened on, and those that finalists are measured on
SCREENED, SETS = ("raccoon", "cards"), ("raccoon", "cards", "bccd", "scenes1", "scenes2", "scenes12", "scenes30")
SEEDS = (0, 1, 2)
#: of the rule: a variant gains more than the one on a set, and loses less than the other on the second
GAIN, LOSS = 0.02, 0.01
#: share of the training images that is held out, 1 in so many
HELD_OUT, HELD_OUT_OF = 5, {"raccoon": 4}
#: of the built-in scenes: trained on, evaluated on, and their side in pixels
SCENES, SCENES_HELD_OUT, SIDE = 130, 150, 320


class Cell(NamedTuple):
    """One training run."""

    set: str
    variant: str
    seconds: int
    seed: int

    def __str__(self) -> str:
        return f"{self.set}-{self.variant}-{self.seconds}-{self.seed}"


def held_out(name: str, path: str) -> Data:
    """A set whose "val" is a part of its training images; its own val and test splits are not in it."""
    if scenes := re.fullmatch(r"scenes(\d+)", name):
        data = shapes_data(train=SCENES + SCENES_HELD_OUT, size=SIDE, objects=int(scenes[1]))
        train = data.splits["train"]
        return replace(data, splits=_splits(train, train[:SCENES], train[SCENES:]))
    data = open_data(path)
    train = data.training_split()
    twins = {file: group[0] for group in equal_files(record.path for record in train if record.path) for file in group}
    groups: dict[Any, list[Record]] = {}
    for place, record in enumerate(train):
        groups.setdefault(twins.get(record.path, place), []).append(record)
    order = random.Random(1234).sample(list(groups.values()), len(groups))
    kept, out = list[Record](), list[Record]()
    for group in order:
        (out if len(out) < len(train) // HELD_OUT_OF.get(name, HELD_OUT) else kept).extend(group)
    return replace(data, splits=_splits(train, kept, out))


def _splits(train: Split, kept: Sequence[Record], out: Sequence[Record]) -> dict[str, Split]:
    return {name: replace(train, name=name, records=records) for name, records in (("train", kept), ("val", out))}


def train(paths: Mapping[str, str], cell: Cell, out: Path) -> None:
    """Train a cell into its run folder, in this process."""
    import boxquery as bq
    from boxquery.models import register

    register("rung", rung := paper(cell.variant))
    start = {"start_from": _renamed(scenes_model(out.parent), out.parent / f"{out.name}-start")} if VARIANTS[cell.variant].start else {}
    bq.train(held_out(cell.set, paths.get(cell.set, "")), model="rung", preset="small", minutes=cell.seconds / 60 / PLANNED, clock="cpu",
             lr=rung.PRESETS["small"].recipe.lr, seed=cell.seed, device="cpu", workers=0, pretrained=False, force=True, out=out,
             **start)  # fmt: skip


def _renamed(source: Path, copy: Path) -> Path:
    """The model of a run as one of the variants', which have a name of their own."""
    shutil.copytree(source / "model", copy, dirs_exist_ok=True)
    config = json.loads((copy / "config.json").read_text())
    config["model"] |= {"name": "rung", "preset": "small"}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def measure(todo: Iterable[Cell], paths: Mapping[str, str], runs: Path, results: Path) -> None:
    """Train those of the cells that are not measured."""

    def describe(cell: Cell, out: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
        return cell.set, set_facts(held_out(cell.set, paths.get(cell.set, ""))), {**read_run(out), "settings": settings(cell.variant)}

    cells.measure(
        todo, runs, results, is_measured=lambda cell, known: cell in counted(known), train=partial(train, paths), describe=describe
    )


def counted(results: Mapping[str, Any]) -> dict[Cell, Mapping[str, Any]]:
    """The measured cells of variants that are still what they were."""
    known = {name: settings(name) for name in VARIANTS}
    rows = cells.rows(Cell, results)
    return {cell: row for cell, row in rows.items() if known.get(cell.variant) == row["settings"]}


def differences(cells: Mapping[Cell, Mapping[str, Any]], name: str, seconds: int, seeds: Sequence[int] | None = None) -> dict[str, float]:
    """Set -> AP less the parent's, mean over the seeds that both have; sets where they have none in common are missing."""
    found = dict[str, list[float]]()
    for cell, row in cells.items():
        parent = cells.get(cell._replace(variant=VARIANTS[name].parent or ""))
        if (cell.variant, cell.seconds) == (name, seconds) and parent and (seeds is None or cell.seed in seeds):
            found.setdefault(cell.set, []).append(row["AP"] - parent["AP"])
    return {set_: mean(values) for set_, values in found.items()}


def passes(gains: Mapping[str, float]) -> bool | None:
    """The rule, on the gains of the screening; None while one of its sets is missing."""
    known = [gains[name] for name in SCREENED if name in gains]
    if len(known) < len(SCREENED):
        return None
    return max(known) > GAIN and min(known) > -LOSS


def verdict(cells: Mapping[Cell, Mapping[str, Any]], name: str, seconds: int) -> str:
    if VARIANTS[name].parent is None:
        return "root"
    screened = passes(differences(cells, name, seconds, SEEDS[:1]))
    if not screened:
        return "does not pass" if screened is False else NOT_MEASURED
    own = [Cell(set_, each, seconds, seed) for set_, each, seed in product(SETS, (name, VARIANTS[name].parent), SEEDS)]
    if missing := sum(cell not in cells for cell in own if cell.variant == name):
        return f"passes; {len(SETS) * len(SEEDS) - missing} of {len(SETS) * len(SEEDS)} cells measured"
    if any(cell not in cells for cell in own):
        return "passes; its parent's cells are not all measured"
    gains = differences(cells, name, seconds, SEEDS)
    better = sum(gain > 0 for gain in gains.values())
    return f"passes; better on {better} of {len(SETS)} sets, {mean(gains.values()):+.3f} in the mean"


def finalists(cells: Mapping[Cell, Mapping[str, Any]], seconds: int) -> list[str]:
    """What passed the screening, and the parents that it is compared with."""
    passed = [name for name in VARIANTS if passes(differences(cells, name, seconds, SEEDS[:1]))]
    return [name for name in VARIANTS if name in passed or name in {VARIANTS[each].parent for each in passed}]


def table(results: Mapping[str, Any]) -> str:
    """Markdown: for each number of seconds a row per variant, with AP per set and the difference from its parent."""
    cells = counted(results)
    parts = []
    for seconds in sorted({cell.seconds for cell in cells}) or [500]:
        heads = ["variant", "changes", *SETS, "verdict"]
        lines = [f"**{seconds} CPU s**: AP (lowest to highest of several seeds), and what it gains on its parent with the same seeds", ""]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for name, variant in VARIANTS.items():
            gains = differences(cells, name, seconds)
            shown = [_cell([row for cell, row in cells.items() if cell[:3] == (each, name, seconds)], gains.get(each)) for each in SETS]
            change = f"{changes(name)}: {variant.why}" if variant.why else changes(name)
            lines.append(f"| {name} | {change} | {' | '.join(shown)} | {verdict(cells, name, seconds)} |")
        fixed = [three(results["sets"].get(each, {}).get("median_box", {}).get("AP")) for each in SETS]
        lines.append(f"| median box per class | of the training images, in every image | {' | '.join(fixed)} | |")
        parts.append("\n".join(lines))
    if facts := [f"{name} {each['training_images']} and {each['images']} ({each['objects']} objects)"
                 for name in SETS if (each := results["sets"].get(name))]:  # fmt: skip
        parts.append(f"Images trained and evaluated on: {'; '.join(facts)}.")
    return "\n\n".join(parts)


def _cell(rows: Sequence[Mapping[str, Any]], gain: float | None) -> str:
    if not rows:
        return NOT_MEASURED
    values = [row["AP"] for row in rows]
    spread = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{mean(values):.3f}{spread}" + (f", {gain:+.3f}" if gain is not None else "")


def main() -> None:
    photographs = [name for name in SETS if not name.startswith("scenes")]
    parser = cells.command_line(__doc__, photographs, "runs/recipe", RESULTS, seeds=None)
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME", help="(default: all)")
    parser.add_argument("--sets", nargs="+", choices=SETS, metavar="SET", help=f"of {', '.join(SETS)} (default: the screening's)")
    parser.add_argument("--seconds", nargs="+", type=int, default=[500], help="CPU seconds (default: %(default)s)")
    parser.add_argument("--finalists", action="store_true", help="what passed the screening and its parents: three seeds, all sets")
    args = cells.parse(parser, photographs)
    sets = args.sets or (SETS if args.finalists else SCREENED)
    if not args.show:
        if missing := [name for name in sets if name in photographs and name not in args.paths]:
            parser.error(f"{missing[0]}: where is it? {missing[0]}=PATH")
        for seconds in args.seconds:
            seeds = args.seeds or (SEEDS if args.finalists else SEEDS[:1])
            chosen = finalists(counted(read_results(args.results)), seconds) if args.finalists else args.variants
            todo = [Cell(set_, name, seconds, seed) for seed, name, set_ in product(seeds, chosen, sets)]
            measure(todo, args.paths, args.runs, args.results)
    cells.show(args.results, table, PAGE if args.results == RESULTS else None)


if __name__ == "__main__":
    main()
