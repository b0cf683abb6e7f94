"""The commands that are not a room of their own. Imports nothing heavy: ``--help`` must be instant."""

from __future__ import annotations

import glob
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from boxquery.errors import UserError
from boxquery.flags import Options

if TYPE_CHECKING:
    from boxquery.api import Detector
    from boxquery.result import Result


@dataclass(frozen=True)
class Shown:
    """A result that a person reads as a table and a program as JSON."""

    values: dict[str, Any]
    table: Table | None = None
    text: str = ""

    def summary(self) -> dict[str, Any]:
        return self.values

    def show(self) -> None:
        console = Console(soft_wrap=True, highlight=False)
        if self.table is not None:
            console.print(self.table)
        if self.text:
            console.print(self.text, markup=False)


def demo(*, minutes: float = 6.2, out: Path | None = None, seed: int = 0) -> None:
    """Train Deformable DETR on built-in scenes and show what it finds; needs no download.

    Args:
        minutes: about how long.
        out: the run folder; None: a new one under ``runs/``.
        seed: of the run.
    """
    from boxquery.training.run import train

    started = time.monotonic()
    detector = train("shapes", model="deformable-detr", preset="tiny", minutes=minutes, out=out, seed=seed)
    run = detector.run
    assert run is not None
    metrics = json.loads((run / "evaluation.json").read_text())["test"]
    seconds = round(time.monotonic() - started, 1)
    print(
        f"Deformable DETR (preset tiny) learned the built-in scenes in {seconds:.0f} seconds; "
        f"on {metrics['images']} scenes it had never seen "
        f"AP is {metrics['AP']:.2f} and AP50 {metrics['AP50']:.2f}. Open {run / 'report.html'} to see what it finds.",
        file=sys.stderr,
    )
    print(json.dumps({"AP": metrics["AP"], "AP50": metrics["AP50"], "run": str(run), "seconds": seconds}))


def evaluate(
    run: str,
    data: str,
    /,
    *,
    split: str = "val",
    batch_size: int = 8,
    workers: int = 0,
    device: str = "auto",
    strict: bool = False,
    nms: float | None = None,
) -> Shown:
    """AP as pycocotools defines it, per class, duplicates, false positives on empty images, and the threshold of the best F1.

    Args:
        run: a run folder, a model folder or a hub id.
        data: a data set in COCO, Pascal VOC or YOLO layout, or ``shapes``.
        split: which of its splits.
        batch_size: images at once.
        workers: processes that read images.
        device: "auto", "cpu" or "cuda".
        strict: boxes and images at fault are fatal instead of skipped.
        nms: of two answers of a class that overlap by more than this IoU, 0 to 1, only the better counts; 1 counts both, also of a
            reference; not given: as the model has it.
    """
    from boxquery.data.open import open_data

    detector = _load(run, device)
    opened = open_data(data, strict=strict)
    _warn(opened.notes + [f"skipped: {line}" for line in opened.skipped])
    metrics = detector.evaluate(opened, split=split, batch_size=batch_size, workers=workers, nms=nms, strict=strict)
    table = Table(title=f"{run} on {split} of {data}", title_justify="left")
    for column in ("", "AP", "AP50", "objects"):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("all", _number(metrics["AP"]), _number(metrics["AP50"]), str(metrics["objects"]))
    for row in metrics["per_class"]:
        table.add_row(row["name"], _number(row["AP"]), _number(row["AP50"]), str(row["objects"]))
    others = (
        "AP75",
        "APs",
        "APm",
        "APl",
        "best_threshold",
        "precision",
        "recall",
        "f1",
        "duplicate_rate",
        "false_positives_per_empty_image",
    )
    return Shown(metrics, table, "\n".join(f"{name.replace('_', ' ')}: {_number(metrics[name])}" for name in others))


def predict(
    run: str,
    /,
    *sources: str,
    out: Path = Path("predictions"),
    threshold: float | None = None,
    device: str = "auto",
    pictures: bool = True,
) -> Shown:
    """Find objects in images; writes pictures with boxes and ``predictions.json`` in COCO's result format.

    Args:
        run: a run folder, a model folder or a hub id.
        sources: image files, folders (read through), or globs.
        out: the folder to write to.
        threshold: least score, 0 to 1; the one of the best F1 in training if not given.
        device: "auto", "cpu" or "cuda".
        pictures: draw the boxes.

    ``image_id`` is the file's name without its ending (as a number where it is one), ``file_name`` tells it apart. An image that
    cannot be read is named and left out.
    """
    from boxquery.data.images import IMAGE_SUFFIXES, read_image
    from boxquery.files import atomic_open, atomic_write
    from boxquery.pages.drawing import draw
    from boxquery.pages.images import encode

    if not sources:
        raise UserError("predict: name images, folders or globs to look at")
    detector = _load(run, device)
    names = [str(name) for name in detector.classes]
    files = _files(sources)
    first = next(files, None)
    if first is None:
        raise UserError(f"{', '.join(sources)}: no image there ({', '.join(sorted(IMAGE_SUFFIXES))} are looked for)")
    found = unreadable = objects = 0
    with atomic_open(out / "predictions.json") as file:
        file.write(b"[")
        for path, base in _chain(first, files):
            try:
                image = read_image(path)
            except UserError as error:
                if len(sources) == 1 and path == Path(sources[0]):
                    raise
                unreadable += 1
                _warn([f"skipped: {error.line()}"])
                continue
            found += 1
            result = detector.predict(image, threshold=threshold)
            for row in _coco(result, path, base):
                file.write(("," if objects else "").encode() + b"\n" + json.dumps(row).encode())
                objects += 1
            if pictures:
                picture = draw(image, result.boxes, result.labels, names, scores=result.scores)
                atomic_write(out / "pictures" / path.relative_to(base).with_suffix(".jpg"), encode(picture, quality=90))
        if not found:
            raise UserError(f"none of {unreadable} images could be read")
        file.write(b"\n]\n")
    values = {"images": found, "objects": objects, "unreadable": unreadable, "out": str(out), "predictions": str(out / "predictions.json")}
    return Shown(values, text=f"{objects} objects in {found} images; {unreadable} could not be read; see {out}")


def models(name: str | None = None, /) -> Shown:
    """The family on one page; with a name, how that model differs from DETR.

    Args:
        name: one of the family, or a reference.
    """
    from boxquery.models import describe, differences, facts, list_baselines, papers, sizes

    known = papers()
    if name in list_baselines():
        return Shown({"name": name, **{key.lower(): value for key, value in facts(name).items()}}, text=describe(name))
    if name is not None and name not in known:
        raise UserError(f"no model {name!r}; choose one of {', '.join(known)}, or to compare with {', '.join(list_baselines())}")
    rows = []
    for each in known if name is None else [name]:
        lines = {key.lower().replace("-", "_"): value for key, value in facts(each).items()}
        summary = describe(each).splitlines()[0].partition(": ")[2]
        rows.append({"name": each, "summary": summary, **lines, "sizes": sizes(each), "differs_from_detr_in": differences(each)})
    if name is not None:
        row = rows[0]
        bullets = "\n".join(f"- {line}" for line in row["differs_from_detr_in"])
        counts = "\n".join(f"- {preset}: {_size(count)}, {count['image']}" for preset, count in row["sizes"].items())
        text = f"{name}: {row['summary']}\n\nPaper: {row['paper']}\nPublished: {row['published']}"
        return Shown(row, text=f"{text}\n\nDiffers from DETR in:\n{bullets}\n\nPresets:\n{counts}")
    table = Table(show_lines=True, caption="size: parameters and multiply-adds of preset paper at 800 x 1333, in millions and billions")
    table.add_column("model", no_wrap=True)
    for column in ("queries", "encoder", "cross-attention", "refinement", "matching", "size", "published, R50 on COCO"):
        table.add_column(column, overflow="fold")
    for row in rows:
        axes = (row[axis] for axis in ("queries", "encoder", "cross_attention", "refinement", "matching"))
        venue = f"{row['paper'].partition(' et al.')[0].split(',')[0]} {row['year']}\n{row['paper'].rpartition(' ')[2]}"
        table.add_row(f"[bold]{row['name']}[/bold]\n{venue}", *axes, _size(row["sizes"]["paper"]), row["published"])
    others = ", ".join(list_baselines())
    return Shown(
        {"models": rows, "baselines": list_baselines()}, table, f"Not of the family, to compare with: {others} (docs/baselines.md)"
    )


def _size(count: dict[str, Any]) -> str:
    return f"{count['parameters'] / 1e6:.1f} M, {count['gflops']:.{0 if count['gflops'] >= 10 else 1}f} G"


def import_official(checkpoint: Path, /, *, model: str, out: Path, image_size: int = 800, options: Options = None) -> Shown:
    """Turn a paper's released COCO checkpoint into a model folder.

    Args:
        checkpoint: the authors' file; only tensors are read from it.
        model: which of the family it is; its options are read off the tensors.
        out: the model folder to write.
        image_size: short side of the input in pixels.
        options: what the tensors do not show, as ``--option name=value``, repeated: ``dilation=true`` for a DC5 checkpoint.
    """
    from boxquery.model_folder import open_official, save

    if out.exists():
        raise UserError(f"{out} exists; choose another --out")
    detector, report = open_official(checkpoint, model, image_size, options or {})
    save(detector, out)
    _warn([f"the tensors do not show {name}; taken as {value} (--option {name}=...)" for name, value in report["assumed"].items()])
    text = f"{report['used']} tensors used, {report['constants']} known constants left out; the model is in {out}"
    return Shown({**report, "out": str(out)}, text=text)


def _load(run: str, device: str) -> Detector:
    from boxquery.api import load
    from boxquery.device import choose_device

    return load(run).to(choose_device(device))


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _files(sources: Iterable[str]) -> Iterator[tuple[Path, Path]]:
    """(image, the folder that its picture's path is relative to), one folder's names in memory at a time."""
    from boxquery.data.images import IMAGE_SUFFIXES

    for source in sources:
        path = Path(source)
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders.sort()
                for name in sorted(names):
                    if Path(name).suffix.lower() in IMAGE_SUFFIXES:
                        yield Path(folder) / name, path
        elif path.is_file():
            yield path, path.parent
        else:
            matches = glob.iglob(source, recursive=True)
            first = next(matches, None)
            if first is None:
                raise UserError(f"{source}: no such image or folder, and no match as a glob")
            for match in _chain(first, matches):
                if Path(match).suffix.lower() in IMAGE_SUFFIXES:
                    yield Path(match), Path(match).parent


def _chain(first: Any, rest: Iterable[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _coco(result: Result, path: Path, base: Path) -> Iterator[dict[str, Any]]:
    image = int(path.stem) if path.stem.isdecimal() else path.stem
    for box, score, category in zip(result.boxes.tolist(), result.scores.tolist(), result.ids, strict=True):
        x1, y1, x2, y2 = box
        corner = [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)]
        yield {
            "image_id": image,
            "file_name": str(path.relative_to(base)),
            "category_id": category,
            "bbox": corner,
            "score": round(score, 5),
        }
