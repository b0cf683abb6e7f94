"""The twelve classic mistakes, planted one by one in a real data set: which of them are named, and by what.

    python benchmarks/mistakes.py shared/datasets/bccd           # the table (about 20 checks and a training of a minute)
    python benchmarks/mistakes.py --clean shared/datasets/bccd   # nothing planted: built-in scenes of several kinds, and the data itself
    python benchmarks/mistakes.py --thresholds                   # what the thresholds in boxquery/check were set on

Every copy is written to a temporary folder, in COCO or YOLO layout, and looked at by ``boxquery check`` (or trained, where the mistake is
one of training). A mistake counts as named if a finding above a note has the expected name; where it can be made in one split or in all,
both are planted and both are shown.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import boxquery as bq
from boxquery.check.box_contrast import measure_fit, sample_images
from boxquery.check.command import check
from boxquery.check.run_checks import run_checks
from boxquery.data.dataset import Data, Record
from boxquery.data.open import open_data
from boxquery.data.shapes import shapes_data
from boxquery.report.run_files import read_run

Numbers = Callable[[Record], np.ndarray]


def xywh(record: Record) -> np.ndarray:
    """COCO's four numbers [N, 4]."""
    return np.concatenate((record.boxes[:, :2], record.boxes[:, 2:] - record.boxes[:, :2]), 1)


def shares(record: Record) -> np.ndarray:
    """YOLO's four numbers [N, 4]."""
    corners = record.boxes / [record.width, record.height, record.width, record.height]
    return np.concatenate(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)


def write_coco(data: Data, root: Path, numbers: Numbers = xywh, first_id: int = 1, listed_from: int = 1) -> Path:
    """``annotations/instances_SPLIT.json`` and ``SPLIT/``; category ids of annotations and of the list count from two numbers."""
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": i + listed_from, "name": name} for i, name in enumerate(data.names)]
    for name, split in data.splits.items():
        (root / name).mkdir()
        content: dict[str, Any] = {"categories": categories, "images": [], "annotations": []}
        for number, record in enumerate(split, 1):
            assert record.path is not None
            shutil.copy(record.path, root / name / f"{record.id}.jpg")
            content["images"].append({"id": number, "file_name": f"{record.id}.jpg", "width": record.width, "height": record.height})
            content["annotations"] += [
                {"id": len(content["annotations"]) + i, "image_id": number, "category_id": int(label) + first_id, "bbox": box, "iscrowd": 0}
                for i, (box, label) in enumerate(zip(numbers(record).tolist(), record.labels, strict=True))
            ]
        (root / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return root


def write_yolo(data: Data, root: Path, numbers: Numbers = shares, first_id: int = 0) -> Path:
    for name, split in data.splits.items():
        for kind in ("images", "labels"):
            (root / kind / name).mkdir(parents=True)
        for record in split:
            assert record.path is not None
            shutil.copy(record.path, root / "images" / name / f"{record.id}.jpg")
            lines = [
                f"{label + first_id} " + " ".join(f"{v:.8f}" for v in row)
                for row, label in zip(numbers(record), record.labels, strict=True)
            ]
            (root / "labels" / name / f"{record.id}.txt").write_text("\n".join(lines) + "\n")
    splits = [f"{name}: images/{name}" for name in data.splits]
    (root / "data.yaml").write_text("\n".join([f"names: {json.dumps(data.names)}", *splits]))
    return root


def changed(data: Data, change: Callable[[Record], Record | None], splits: tuple[str, ...] = ("train", "val", "test")) -> Data:
    """The data with records of some splits changed, or left out where the change gives None."""
    return replace(
        data,
        splits={
            name: replace(split, records=[new for r in split if (new := change(r)) is not None]) if name in splits else split
            for name, split in data.splits.items()
        },
    )


def only(record: Record, keep: np.ndarray) -> Record:
    return replace(record, boxes=record.boxes[keep], labels=record.labels[keep], ignore=record.ignore[keep], areas=record.areas[keep])


def files_turned(root: Path, splits: tuple[str, ...]) -> None:
    """Each image of a COCO copy gets the pixels of the next one of its split."""
    for name in splits:
        files = sorted((root / name).glob("*.jpg"))
        content = [file.read_bytes() for file in files]
        for file, pixels_of_next in zip(files, content[1:] + content[:1], strict=True):
            file.write_bytes(pixels_of_next)


def files_bgr(root: Path, splits: tuple[str, ...]) -> None:
    for name in splits:
        for file in (root / name).glob("*.jpg"):
            with Image.open(file) as image:
                Image.fromarray(np.asarray(image.convert("RGB"))[..., ::-1].copy()).save(file, quality=95)


@dataclass(frozen=True)
class Mistake:
    """One way to make one of the twelve: its number there, what is planted, the names of findings that name it, and how to plant it."""

    number: int
    title: str
    expected: tuple[str, ...]
    plant: Callable[[Data, Path], Any]
    options: dict[str, Any] | None = None


def mistakes(rng: np.random.Generator) -> list[Mistake]:
    every, train = ("train", "val", "test"), ("train",)

    def in_train(data: Data, root: Path, change: Callable[[Record], Record]) -> None:
        write_coco(changed(data, change, train), root)

    def halved(record: Record) -> Record:
        return only(record, rng.random(len(record.boxes)) < 0.5)

    def emptied(record: Record) -> Record:
        return only(record, np.full(len(record.boxes), rng.random() < 0.5))

    def without_wbc(record: Record) -> Record:
        return only(record, record.labels != 2)

    def shifted(record: Record) -> Record:
        return replace(record, labels=(record.labels + 1) % 3)

    def mixed(data: Data, root: Path) -> None:
        """The images of val under the names of train."""
        write_coco(data, root)
        files, others = sorted((root / "train").glob("*.jpg")), sorted((root / "val").glob("*.jpg"))
        for i, file in enumerate(files):
            shutil.copy(others[i % len(others)], file)

    def val_is_train(data: Data, root: Path) -> None:
        write_coco(replace(data, splits={"train": data.splits["train"], "val": data.splits["train"]}), root)

    def crowded(data: Data, root: Path) -> None:
        """Each box ten times, a little apart, at most 100 per image."""

        def tenfold(record: Record) -> Record:
            boxes = np.repeat(record.boxes, 10, 0)[:100] * np.float32(0.98) + rng.uniform(0, 3, (min(10 * len(record.boxes), 100), 4))
            many = np.repeat(np.arange(len(record.boxes)), 10)[:100]
            return replace(only(record, many), boxes=boxes.astype(np.float32).clip(0, [record.width, record.height] * 2))

        write_coco(changed(data, tenfold), root)

    def bgr(splits: tuple[str, ...]) -> Callable[[Data, Path], None]:
        return lambda data, root: files_bgr(write_coco(data, root), splits)

    def other_images(splits: tuple[str, ...]) -> Callable[[Data, Path], None]:
        return lambda data, root: files_turned(write_coco(data, root), splits)

    ids, formats, fits = ("ids-off-by-one",), ("boxes-of-another-format",), ("images-do-not-belong", "images-of-another-split")
    return [
        Mistake(1, "ids counted from 0, listed from 1 (COCO)", ids, lambda d, r: write_coco(d, r, first_id=0)),
        Mistake(1, "ids counted from 1, listed from 0 (YOLO)", ids, lambda d, r: write_yolo(d, r, first_id=1)),
        Mistake(2, "labels shifted by one class, in train alone", ("labels-shifted",), lambda d, r: in_train(d, r, shifted)),
        Mistake(2, "labels shifted by one class, everywhere", ("labels-shifted",), lambda d, r: write_coco(changed(d, shifted), r)),
        Mistake(3, "x1, y1, x2, y2 written as COCO's bbox", formats, lambda d, r: write_coco(d, r, lambda record: record.boxes)),
        Mistake(
            3, "centre and size written as COCO's bbox", (*formats, "boxes-moved"),
            lambda d, r: write_coco(d, r, lambda t: np.concatenate((t.boxes[:, :2] / 2 + t.boxes[:, 2:] / 2, xywh(t)[:, 2:]), 1)),
        ),
        Mistake(
            4, "boxes normalised twice (YOLO)", ("boxes-normalised-twice",),
            lambda d, r: write_yolo(d, r, lambda t: shares(t) / [t.width, t.height, t.width, t.height]),
        ),
        Mistake(4, "fractions written as pixels (COCO)", ("boxes-normalised",), lambda d, r: write_coco(d, r, shares_xywh)),
        Mistake(5, "images of another folder, same names, in train", fits, other_images(train)),
        Mistake(5, "images of another folder, same names, everywhere", fits, other_images(every)),
        Mistake(6, "BGR images in train alone", ("colours-swapped",), bgr(train)),
        Mistake(6, "BGR images everywhere", ("colours-swapped",), bgr(every)),
        Mistake(7, "val equal to train", ("val-is-train",), val_is_train),
        Mistake(8, "a class of val missing in train", ("class-missing-in-train",), lambda d, r: in_train(d, r, without_wbc)),
        Mistake(10, "100 objects, 20 queries", ("more-objects-than-queries",), crowded, {"num_queries": 20}),
        Mistake(11, "half of the boxes missing, in train alone", ("labels-missing",), lambda d, r: in_train(d, r, halved)),
        Mistake(11, "half of the boxes missing, everywhere", ("labels-missing",), lambda d, r: write_coco(changed(d, halved), r)),
        Mistake(11, "the labels of half of the images missing", ("many-empty-images",), lambda d, r: write_coco(changed(d, emptied), r)),
        Mistake(12, "images of val under train's names", ("images-of-another-split", "images-do-not-belong"), mixed),
    ]  # fmt: skip


def shares_xywh(record: Record) -> np.ndarray:
    return xywh(record) / [record.width, record.height, record.width, record.height]


def found_by_check(folder: Path, options: dict[str, Any] | None) -> list[str]:
    """Names of what is found above a note; of a data set that is refused, the message's own."""
    try:
        result = check(str(folder), options=options).summary()
    except bq.UserError as error:
        return [name for name, words in REFUSED.items() if words in str(error)] or [f"refused: {error}"[:80]]
    return [finding["name"] for finding in result["findings"] if finding["level"] != "note"]


REFUSED = {
    "ids-off-by-one": "ids are off by one", "boxes-normalised-twice": "normalised twice", "boxes-normalised": "were normalised (0 to 1)",
    "boxes-of-another-format": "Boxes look like",
}  # fmt: skip


def rate_too_high(data: Data, folder: Path) -> list[str]:
    """A training of 51 steps at 100 times the preset's rate: what was found before and while it ran."""
    settings: dict[str, Any] = {"model": "deformable-detr", "preset": "tiny", "device": "cpu", "precision": "float32", "workers": 0}
    try:
        bq.train(data, epochs=4, image_size=96, lr=0.1, out=folder, force=True, **settings)
    except bq.UserError as error:
        print(f"   stopped: {error}")
    run = read_run(folder)
    found = [*run.check["findings"], *run.diagnosis.get("findings", [])]
    return [finding["name"] for finding in found if finding["level"] != "note"]


def table(source: Path) -> None:
    data = open_data(source)
    rows: list[tuple[int, str, bool, str]] = []
    with tempfile.TemporaryDirectory() as place:
        for mistake in mistakes(np.random.default_rng(0)):
            folder = Path(place) / "copy"
            mistake.plant(data, folder)
            found = found_by_check(folder, mistake.options)
            shutil.rmtree(folder)
            rows.append((mistake.number, mistake.title, bool({*found} & {*mistake.expected}), ", ".join(dict.fromkeys(found)) or "nothing"))
            print("  ", rows[-1], flush=True)
        found = rate_too_high(data, Path(place) / "run")
        expected = {"rate-too-high", "loss-not-finite", "gradients-exploding", "loss-rising"}
        rows.append((9, "rate 100 times too high", bool({*found} & expected), ", ".join(found) or "nothing"))
    print("| # | planted | found | findings |\n|---|---|---|---|")
    for number, title, named, found in sorted(rows):
        print(f"| {number} | {title} | {'yes' if named else 'no'} | {found} |")
    print(f"\n{len({row[0] for row in rows if row[2]})} of {len({row[0] for row in rows})} found in at least one of their forms;")
    print(f"{len({row[0] for row in rows} - {row[0] for row in rows if not row[2]})} in every form.")


def kinds() -> dict[str, Data]:
    """Built-in scenes of several kinds: the usual ones, crowded, sparse, and few."""
    plain = {f"shapes, seed {seed}": shapes_data(train=400, seed=seed) for seed in range(3)}
    crowded = shapes_data(train=300, val=100, test=100, size=240, crowding=0.8, max_objects=30, seed=3)
    return plain | {
        "shapes, crowded": crowded,
        "shapes, one object": shapes_data(train=300, val=100, test=100, size=320, max_objects=1, crowding=0, seed=4),
        "shapes, 40 images": shapes_data(train=40, val=20, test=20, seed=5),
    }


def clean(source: Path | None) -> None:
    """Nothing above a note may be found here."""
    from boxquery.check.command import _plan
    from boxquery.data.transforms import Augment

    every = kinds() | ({source.name: open_data(source)} if source else {})
    for name, data in every.items():
        plan = _plan(data, "deformable-detr", "small", {}, None, None)
        found = run_checks(data, [], plan, Augment(), preview=False).findings
        print(f"{name}: {', '.join(f'{f.level} {f.name}' for f in found) or 'nothing'}", flush=True)


def thresholds() -> None:
    """How well boxes of the built-in scenes fit: as they are, on other images, shifted, scaled; with 64 images and with 12."""
    print("| scenes | images | z as they are | on other images | undoing a shift of 5 % | a scale of 0.8 |\n|---|---|---|---|---|---|")
    for name, data in kinds().items():
        for count in (64, 12):
            images = sample_images(data.splits["train"], count)
            other = [replace(a, boxes=b.boxes, labels=b.labels) for a, b in zip(images, images[1:] + images[:1], strict=True)]
            moved = [replace(image, boxes=image.boxes + np.array([0.05, 0, 0.05, 0])) for image in images]
            scaled = [replace(image, boxes=image.boxes * 0.8) for image in images]
            own, wrong, shift, scale = (measure_fit(group) for group in (images, other, moved, scaled))
            assert own is not None
            assert wrong is not None
            assert shift is not None
            assert scale is not None
            print(f"| {name} | {own.images} | {own.z:.1f} | {wrong.z:.1f} | {shift.moved_z:.1f} | {scale.moved_z:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--thresholds", action="store_true")
    given = parser.parse_args()
    if given.thresholds:
        thresholds()
    elif given.clean:
        clean(given.data)
    elif given.data is None:
        parser.error("name the data set to plant mistakes in")
    else:
        table(given.data)


if __name__ == "__main__":
    main()
