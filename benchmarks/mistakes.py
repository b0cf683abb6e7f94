"""The twelve classic mistakes, planted one by one in labelled data: which of them are named, by what, and what is said of clean data.

    python benchmarks/mistakes.py shared/datasets/bccd --results docs/mistakes.json     # a data set, five seeds: some 100 checks, minutes
    python benchmarks/mistakes.py shapes --results docs/mistakes.json                   # the built-in scenes
    python benchmarks/mistakes.py --table --results docs/mistakes.json                  # the tables of docs/check.md from these rows
    python benchmarks/mistakes.py shared/datasets/bccd --draws 20   # small samples of it: what pixels show, rightly and wrongly

A seed draws nine of ten images of each split (for ``shapes``: the scenes) and whatever else is by chance. Every copy is written to a
temporary folder, in COCO or YOLO layout, and looked at by ``boxquery check``. A mistake is named if a finding above a note states that
cause; any other finding is a miss. Rows that the results already have are not measured again. Processes for several data sets may run at
the same time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

import boxquery as bq
from boxquery.augment import Augment
from boxquery.check.annotation_format import open_checked
from boxquery.check.colours import check_colours, compare_colours
from boxquery.check.command import plan_for
from boxquery.check.feasibility import FeasibilityPlan, check_steps
from boxquery.check.labels import check_labels, compare_labels
from boxquery.check.run_checks import check_pixels, run_checks
from boxquery.check.samples import RED_BLUE, SampledImage, sample_images
from boxquery.data.dataset import Data, Record
from boxquery.data.open import open_data
from boxquery.data.shapes import shapes_data
from coco import Numbers, coco_content, xywh

Said = list[tuple[str, str, str]]
"""Level, name and text of everything that a check says."""

SEEDS = 5
DRAWN = (32, 64)  # images of a split in ``--draws``
KEPT = 0.9  # share of the images that a seed keeps
EVERY, TRAIN = ("train", "val", "test"), ("train",)


def centre_and_size(record: Record) -> np.ndarray:
    return np.concatenate(((record.boxes[:, :2] + record.boxes[:, 2:]) / 2, record.boxes[:, 2:] - record.boxes[:, :2]), 1)


def shares(record: Record) -> np.ndarray:
    """YOLO's four numbers [N, 4]."""
    return centre_and_size(record) / [record.width, record.height, record.width, record.height]


def file_name(record: Record) -> str:
    return f"{str(record.id).replace('/', '-')}.jpg"


def write_coco(data: Data, root: Path, numbers: Numbers = xywh, first_id: int = 1) -> Path:
    """``annotations/instances_SPLIT.json`` and ``SPLIT/``; the list of categories counts from 1, annotations from ``first_id``."""
    (root / "annotations").mkdir(parents=True)
    for name, split in data.splits.items():
        (root / name).mkdir()
        for record in split:
            assert record.path is not None
            shutil.copy(record.path, root / name / file_name(record))
        content = coco_content(data.names, split, file_name, numbers, first_id)
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return root


def write_yolo(data: Data, root: Path, numbers: Numbers = shares, first_id: int = 0) -> Path:
    """``data.yaml``, ``SPLIT/images/`` and ``SPLIT/labels/``; the list of names counts from 0."""
    for name, split in data.splits.items():
        for kind in ("images", "labels"):
            (root / name / kind).mkdir(parents=True)
        for record in split:
            assert record.path is not None
            shutil.copy(record.path, root / name / "images" / file_name(record))
            lines = [
                f"{label + first_id} " + " ".join(f"{v:.8f}" for v in row)
                for row, label in zip(numbers(record), record.labels, strict=True)
            ]
            (root / name / "labels" / Path(file_name(record)).with_suffix(".txt")).write_text("".join(f"{line}\n" for line in lines))
    splits = [f"{name}: {name}/images" for name in data.splits]
    (root / "data.yaml").write_text("\n".join([f"names: {json.dumps(data.names)}", *splits]))
    return root


def image_files(root: Path, split: str) -> list[Path]:
    return sorted((root / split).rglob("*.jpg"))


def changed(data: Data, change: Callable[[Record], Record], splits: tuple[str, ...] = EVERY) -> Data:
    """The data with the records of some splits changed."""
    return replace(
        data,
        splits={
            name: replace(split, records=[change(record) for record in split]) if name in splits else split
            for name, split in data.splits.items()
        },
    )


def only(record: Record, keep: np.ndarray) -> Record:
    return replace(record, boxes=record.boxes[keep], labels=record.labels[keep], ignore=record.ignore[keep], areas=record.areas[keep])


def turn_files(root: Path, splits: tuple[str, ...], step: int) -> None:
    """Each image of a copy gets the pixels of another of its split."""
    for name in splits:
        files = image_files(root, name)
        content = [file.read_bytes() for file in files]
        step = step % (len(files) - 1) + 1
        for file, pixels in zip(files, content[step:] + content[:step], strict=True):
            file.write_bytes(pixels)


def swap_colours(root: Path, splits: tuple[str, ...]) -> None:
    for name in splits:
        for file in image_files(root, name):
            with Image.open(file) as image:
                Image.fromarray(np.asarray(image.convert("RGB"))[..., ::-1].copy()).save(file, quality=95)


def mix_files(root: Path) -> None:
    """The images of val under the names of train."""
    others = image_files(root, "val")
    for i, file in enumerate(image_files(root, "train")):
        shutil.copy(others[i % len(others)], file)


@dataclass(frozen=True)
class Mistake:
    """One way to make one of the twelve.

    Attributes:
        number: among the twelve.
        title: what is planted.
        names: what names it: the name of a finding, and words that its text has to have.
        plant: writes the copy.
        options: model options of the check.
        shown: whether data with these names (and source) can show it at all; "" or why not.
    """

    number: int
    title: str
    names: tuple[tuple[str, str], ...]
    plant: Callable[[Data, Path], Any]
    options: dict[str, Any] | None = None
    shown: Callable[[Data], str] = lambda _: ""


def _classes(data: Data) -> str:
    return "one class" if len(data.names) == 1 else ""


def _colours(data: Data) -> str:
    return "red and blue are drawn alike" if data.source.startswith("shapes") else ""


def mistakes(rng: np.random.Generator) -> list[Mistake]:
    def halved(record: Record) -> Record:
        return only(record, rng.random(len(record.boxes)) < 0.5)

    def emptied(record: Record) -> Record:
        return only(record, np.full(len(record.boxes), rng.random() < 0.5))

    def shifted(data: Data, splits: tuple[str, ...]) -> Data:
        return changed(data, lambda record: replace(record, labels=(record.labels + 1) % len(data.names)), splits)

    def without_a_class(data: Data) -> Data:
        missing = rng.integers(len(data.names))
        return changed(data, lambda record: only(record, record.labels != missing), TRAIN)

    def crowded(record: Record) -> Record:
        """Every box again and again, a little apart, until there are 100."""
        many = np.arange(100) % max(len(record.boxes), 1)
        boxes = record.boxes[many] * np.float32(0.98) + rng.uniform(0, 3, (100, 4)) if len(record.boxes) else record.boxes
        return replace(
            only(record, many[: 100 * bool(len(record.boxes))]), boxes=boxes.astype(np.float32).clip(0, [record.width, record.height] * 2)
        )

    def images_of_others(data: Data, root: Path, splits: tuple[str, ...]) -> None:
        """COCO states sizes, which betrays photographs of many sizes; YOLO does not: half of the seeds each."""
        (write_coco if rng.random() < 0.5 else write_yolo)(data, root)
        turn_files(root, splits, int(rng.integers(1000)))

    def mixed(data: Data, root: Path) -> None:
        (write_coco if rng.random() < 0.5 else write_yolo)(data, root)
        mix_files(root)

    def val_is_train(data: Data, root: Path) -> None:
        write_coco(replace(data, splits={"train": data.splits["train"], "val": data.splits["train"]}), root)

    def every_box(what: str) -> Callable[[Data], str]:
        return lambda _: f"{what} everywhere: nothing to compare with"

    return [
        Mistake(1, "ids counted from 0, listed from 1 (COCO)", (("ids-off-by-one", ""),), lambda d, r: write_coco(d, r, first_id=0)),
        Mistake(1, "ids counted from 1, listed from 0 (YOLO)", (("ids-off-by-one", ""),), lambda d, r: write_yolo(d, r, first_id=1)),
        Mistake(
            2, "labels shifted by one class, in train alone", (("labels-shifted", ""),),
            lambda d, r: write_coco(shifted(d, TRAIN), r), shown=_classes,
        ),
        Mistake(
            2, "labels shifted by one class, everywhere", (("labels-shifted", ""),),
            lambda d, r: write_coco(shifted(d, EVERY), r), shown=lambda d: _classes(d) or every_box("labels")(d),
        ),
        Mistake(
            3, "x1, y1, x2, y2 written as COCO's bbox", (("boxes-of-another-format", "look like x1, y1, x2, y2"),),
            lambda d, r: write_coco(d, r, lambda record: record.boxes),
        ),
        Mistake(
            3, "centre and size written as COCO's bbox",
            (("boxes-of-another-format", "look like centre x, centre y"), ("boxes-moved", "with their centre as their corner")),
            lambda d, r: write_coco(d, r, centre_and_size),
        ),
        Mistake(
            4, "boxes normalised twice (YOLO)", (("boxes-normalised-twice", ""),),
            lambda d, r: write_yolo(d, r, lambda t: shares(t) / [t.width, t.height, t.width, t.height]),
        ),
        Mistake(
            4, "fractions written as pixels (COCO)", (("boxes-normalised", ""),),
            lambda d, r: write_coco(d, r, lambda t: xywh(t) / [t.width, t.height, t.width, t.height]),
        ),
        Mistake(5, "images of another folder, same names, in train", (("images-do-not-belong", ""),),
                lambda d, r: images_of_others(d, r, TRAIN)),
        Mistake(5, "images of another folder, same names, everywhere", (("images-do-not-belong", ""),),
                lambda d, r: images_of_others(d, r, EVERY)),
        Mistake(6, "BGR images in train alone", (("colours-swapped", ""),),
                lambda d, r: swap_colours(write_coco(d, r), TRAIN), shown=_colours),
        Mistake(6, "BGR images everywhere", (("colours-swapped", ""),),
                lambda d, r: swap_colours(write_coco(d, r), EVERY), shown=every_box("BGR")),
        Mistake(7, "val equal to train", (("val-is-train", ""),), val_is_train),
        Mistake(8, "a class of val missing in train", (("class-missing-in-train", ""),),
                lambda d, r: write_coco(without_a_class(d), r), shown=_classes),
        Mistake(9, "rate 100 times too high", (("rate-too-high", ""),), write_coco),
        Mistake(10, "100 objects, 20 queries", (("more-objects-than-queries", ""),),
                lambda d, r: write_coco(changed(d, crowded), r), {"num_queries": 20}),
        Mistake(11, "half of the boxes missing, in train alone", (("labels-missing", ""),),
                lambda d, r: write_coco(changed(d, halved, TRAIN), r)),
        Mistake(11, "half of the boxes missing, everywhere", (("labels-missing", ""),),
                lambda d, r: write_coco(changed(d, halved), r), shown=every_box("boxes missing")),
        Mistake(11, "the labels of half of the images missing", (("many-empty-images", ""),),
                lambda d, r: write_coco(changed(d, emptied), r)),
        Mistake(12, "images of val under train's names", (("images-of-another-split", ""),), mixed),
    ]  # fmt: skip


#: what the message of a refused data set has to say to count as the finding of that name
REFUSED = {
    "ids-off-by-one": "ids are off by one", "boxes-normalised-twice": "normalised twice", "boxes-normalised": "were normalised (0 to 1)",
    "boxes-of-another-format": "Boxes look like", "images-do-not-belong": "do not belong to",
    "images-of-another-split": "were mixed up",
}  # fmt: skip


@cache
def plan_of(classes: int, options: tuple[tuple[str, Any], ...]) -> FeasibilityPlan:
    """What ``boxquery check`` assumes without flags, for 200 training images."""
    return plan_for("deformable-detr", "small", dict(options), classes=classes, images=200)


def said_by_check(folder: Path, options: dict[str, Any] | None) -> Said:
    """Everything that the check says; of a data set that is refused, the message as an error."""
    try:
        data, findings = open_checked(folder)
    except bq.UserError as error:
        return [("refused", name, str(error)) for name, words in REFUSED.items() if words in str(error)] or [
            ("refused", "refused", str(error))
        ]
    plan = plan_of(len(data.names), tuple((options or {}).items()))
    result = run_checks(data, findings, plan, Augment(), picture="never")
    return [(finding.level, finding.name, finding.text) for finding in result.findings]


def said_of_rate(folder: Path) -> Said:
    """What ``train`` says before it starts at 100 times the preset's rate."""
    plan = plan_of(len(open_data(folder).names), ())
    return [(finding.level, finding.name, finding.text) for finding in check_steps(replace(plan, lr=100 * plan.usual_lr))]


def sampled(source: str, seed: int, place: Path) -> Data:
    """Nine of ten images of each split of a data set, or 200 + 60 scenes, as files."""
    rng = np.random.default_rng(seed)
    if source != "shapes":
        data = open_data(source)
        splits = {}
        for name, split in data.splits.items():
            chosen = np.sort(rng.permutation(len(split))[: round(KEPT * len(split))])
            splits[name] = replace(split, records=[split[i] for i in chosen])
        return replace(data, splits=splits)
    data = shapes_data(train=200, val=60, test=1, seed=seed)
    splits = {}
    for name in ("train", "val"):
        split, records = data.splits[name], []
        for i, record in enumerate(split):
            path = place / file_name(record)
            split.read(i).save(path, quality=95)
            records.append(replace(record, path=path))
        splits[name] = replace(split, records=records)
    return replace(data, splits=splits)


def measure(source: str, results: Path, seeds: int) -> None:
    """Add the rows that are missing."""
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as place:
            data = sampled(source, seed, Path(place))
            clean = Mistake(0, "nothing", (), write_coco)
            for number, mistake in enumerate([clean, *mistakes(np.random.default_rng(seed))]):
                key = {"set": Path(source).name, "seed": seed, "number": mistake.number, "title": mistake.title}
                if any(key.items() <= row.items() for row in read(results)):
                    continue
                # each mistake has chance of its own, so that rows do not depend on which of them were measured before
                mistake = [clean, *mistakes(np.random.default_rng([seed, number]))][number]
                folder, started = Path(place) / "copy", time.process_time()
                mistake.plant(data, folder)
                said = said_of_rate(folder) if mistake.number == 9 else said_by_check(folder, mistake.options)
                shutil.rmtree(folder)
                named = any(
                    level != "note" and name == found and words in text for level, found, text in said for name, words in mistake.names
                )
                row = key | {"named": named, "cannot_show": mistake.shown(data), "said": [f"{level} {name}" for level, name, _ in said]}
                add(results, row)
                print(
                    row["set"],
                    seed,
                    mistake.title,
                    "named" if named else "-",
                    row["said"],
                    f"{time.process_time() - started:.1f} s",
                    flush=True,
                )


def measure_draws(source: str, draws: int) -> None:
    """What pixels show of small samples: of each split at random, as they are, and with images, boxes, labels or colours changed."""
    rng = np.random.default_rng(0)
    data = shapes_data(train=300, val=100, test=1) if source == "shapes" else open_data(source)
    pools = {name: sample_images(split, 300) for name, split in data.splits.items() if len(split) > 1}
    classes = len(data.names)

    def others(images: list[SampledImage]) -> list[SampledImage]:
        return [replace(a, boxes=b.boxes) for a, b in zip(images, images[1:] + images[:1], strict=True)]

    def swapped(images: list[SampledImage]) -> list[SampledImage]:
        return [replace(image, sums=image.sums * np.where(np.arange(image.sums.shape[-1]) == RED_BLUE, -1, 1)) for image in images]

    for count in DRAWN:
        hits: dict[str, list[bool]] = defaultdict(list)
        said: list[str] = []
        own: list[dict[str, Any]] = []
        strange: list[dict[str, Any]] = []
        for _ in range(draws):
            name = str(rng.choice([name for name in pools if name != "train"]))
            train, other = ([pools[split][i] for i in np.sort(rng.permutation(len(pools[split]))[:count])] for split in ("train", name))
            facts, findings = check_pixels({"train": train, name: other}, data.names)
            said += [f"{finding.evidence} {finding.name}" for finding in findings]
            own += [split["boxes"] for split in facts.values() if "boxes" in split]
            x, y = rng.choice([-0.1, -0.05, 0.05, 0.1], 2)
            title, change = list({
                f"shifted by {100 * x:+.0f} % of the width and {100 * y:+.0f} %": lambda b, x=x, y=y: b + np.array([x, y, x, y]),
                "scaled by 0.8": lambda b: b * 0.8, "written with x and y swapped": lambda b: b[:, [1, 0, 3, 2]],
                "mirrored left to right": lambda b: np.stack((1 - b[:, 2], b[:, 1], 1 - b[:, 0], b[:, 3]), 1),
            }.items())[int(rng.integers(4))]  # fmt: skip
            facts, findings = check_pixels({"train": others(train)}, data.names)
            strange += [facts["train"]["boxes"]] if "boxes" in facts["train"] else []
            hits["images-do-not-belong"].append("images-do-not-belong" in {finding.name for finding in findings})
            _, findings = check_pixels({"train": [replace(i, boxes=np.clip(change(i.boxes), 0, 1)) for i in train]}, data.names)
            hits["boxes-moved"].append("boxes-moved" in {finding.name for finding in findings})
            hits["boxes-moved, by the right move"].append(any(title in finding.text for finding in findings))
            if (labels := compare_labels([replace(i, labels=(i.labels + 1) % classes) for i in train], other)) is not None:
                hits["labels-shifted"].append(check_labels(train, other, name, data.names, labels) is not None)
            if (colours := compare_colours(swapped(train), other)) is not None:
                hits["colours-swapped"].append(check_colours(train, other, name, colours) is not None)
        named = ", ".join(f"{kind} {sum(hit)} of {len(hit)}" for kind, hit in hits.items())
        print(f"{Path(source).name}, {count} images, {draws} draws: said of clean data: {', '.join(said) or 'nothing'}; named: {named}")
        mine = f"z from {min(fit['z'] for fit in own):.1f}, spreads from {min(fit['fit'] for fit in own):.2f}"
        theirs = f"z to {max(fit['z'] for fit in strange):.1f}, spreads to {max(fit['fit'] for fit in strange):.2f}"
        move = max(fit["move_z"] for fit in own)
        print(f"  own boxes: {mine}; other images' boxes: {theirs}; best move of clean data: z to {move:.1f}", flush=True)


def read(results: Path) -> list[dict[str, Any]]:
    return json.loads(results.read_text()) if results.exists() else []


def add(results: Path, row: dict[str, Any]) -> None:
    with FileLock(f"{results}.lock"):
        rows = [json.dumps(old) for old in [*read(results), row]]
        results.write_text("[\n" + ",\n".join(rows) + "\n]\n")


def print_tables(results: Path) -> None:
    """Hits by mistake and set, and everything that was said of clean data."""
    rows = read(results)
    sets = list(dict.fromkeys(row["set"] for row in rows))
    planted = sorted({(row["number"], row["title"]) for row in rows if row["number"]})
    print(f"| # | planted | {' | '.join(sets)} |\n|---|---|{'---|' * len(sets)}")
    hits = {name: [0, 0] for name in sets}
    for number, title in planted:
        cells = []
        for name in sets:
            own = [row for row in rows if (row["set"], row["title"]) == (name, title)]
            named = sum(row["named"] for row in own)
            cells.append("-" if own and own[0]["cannot_show"] and not named else f"{named} of {len(own)}")
            if own and not own[0]["cannot_show"]:
                hits[name][0] += named
                hits[name][1] += len(own)
        print(f"| {number} | {title} | {' | '.join(cells)} |")
    print(f"| | all that the set can show | {' | '.join(f'{a} of {b}' for a, b in hits.values())} |\n")
    for row in sorted((row for row in rows if row["number"] == 0), key=lambda row: (row["set"], row["seed"])):
        print(f"{row['set']}, seed {row['seed']}: {', '.join(row['said']) or 'nothing'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="?", help="a data set, or shapes")
    parser.add_argument("--results", type=Path, default=Path("docs/mistakes.json"))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--draws", type=int, default=0)
    given = parser.parse_args()
    if given.table:
        print_tables(given.results)
    elif given.data is None:
        parser.error("name the data set to plant mistakes in")
    elif given.draws:
        measure_draws(given.data, given.draws)
    else:
        measure(given.data, given.results, given.seeds)


if __name__ == "__main__":
    main()
