"""The commands demo, evaluate, predict, models and import-official. Imports no torch: ``--help`` must be instant."""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from boxquery.errors import UserError
from boxquery.flags import Device, Options, Switch

if TYPE_CHECKING:
    from boxquery.api import Detector
    from boxquery.result import Result


@dataclass(frozen=True)
class CommandResult:
    """What a command prints: plain values with ``--json``, else a table and text."""

    values: dict[str, Any]
    table: Table | None = None
    text: str = ""

    def summary(self) -> dict[str, Any]:
        return self.values

    def show(self) -> None:
        console = Console(highlight=False)
        if self.table is not None:
            console.print(self.table)
        if self.text:
            console.print(self.text, markup=False, soft_wrap=not console.is_terminal)


def demo(*, minutes: float = 6.2, out: Path | None = None, seed: int = 0) -> None:
    """Train Deformable DETR on built-in scenes and show what it detects; needs no download.

    Args:
        minutes: Approximate duration.
        out: Run folder to write. Default: a new one under ``runs/``.
        seed: Seeds initialisation, data order, augmentation and dropout.
    """
    from boxquery.training.run import train

    started = time.monotonic()
    run = train("shapes", model="deformable-detr", preset="tiny", minutes=minutes, out=out, seed=seed).run
    assert run is not None
    metrics = json.loads((run / "evaluation.json").read_text())["test"]
    seconds = round(time.monotonic() - started, 1)
    print(
        f"Deformable DETR (preset tiny) trained on the built-in scenes for {seconds:.0f} seconds; "
        f"on {metrics['images']} scenes held out for testing AP is {metrics['AP']:.2f} and AP50 {metrics['AP50']:.2f}. "
        f"Open {run / 'report.html'} to see what it detects.",
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
    device: Device = "auto",
    strict: Switch = False,
    nms: float | None = None,
) -> CommandResult:
    """Print AP as pycocotools defines it, per class, with duplicates, false positives on empty images and the best threshold.

    Args:
        run: A run folder, a model folder or a hub id.
        data: A data set in COCO, Pascal VOC or YOLO layout, or the word ``shapes``.
        split: Split to evaluate on.
        batch_size: Images per batch.
        workers: Processes that read images; 0 reads them in the main one.
        device: Where the model runs; auto takes CUDA if there is any.
        strict: Treat invalid boxes and images as errors instead of skipping them.
        nms: IoU threshold of class-wise NMS (1 disables it). Default: the model's own (none for DETRs).
    """
    from boxquery.data.open import open_data

    detector = _load(run, device)
    opened = open_data(data, strict=strict)
    _warn(opened.notes + [f"skipped: {line}" for line in opened.skipped])
    metrics = detector.evaluate(opened, split=split, batch_size=batch_size, workers=workers, nms=nms, strict=strict)
    table = Table(title=escape(f"{run} on {split} of {data}"), title_justify="left")
    for column in ("", "AP", "AP50", "objects"):
        table.add_column(column, justify="left" if not column else "right")
    for row in [{**metrics, "name": "all"}, *metrics["per_class"]]:
        table.add_row(escape(row["name"]), _number(row["AP"]), _number(row["AP50"]), str(row["objects"]))
    others = (
        "AP75", "APs", "APm", "APl", "best_threshold", "precision", "recall", "f1", "duplicate_rate", "false_positives_per_empty_image",
    )  # fmt: skip
    return CommandResult(metrics, table, "\n".join(f"{name.replace('_', ' ')}: {_number(metrics[name])}" for name in others))


def predict(
    run: str,
    /,
    *sources: str,
    out: Path = Path("predictions"),
    threshold: float | None = None,
    device: Device = "auto",
    pictures: Annotated[bool, Parameter(show_default="--pictures")] = True,
) -> CommandResult:
    """Detect objects in images; write pictures with boxes, and ``predictions.json`` in COCO's result format.

    In ``predictions.json``, ``image_id`` is the file's name without its ending (a number if it is one), and ``file_name`` its path. An
    image that cannot be read is named and skipped.

    Args:
        run: A run folder, a model folder or a hub id.
        sources: Image files, folders (searched recursively) or globs.
        out: Folder to write to.
        threshold: Minimum score, from 0 to 1. Default: the one with the best F1 in the evaluation during training.
        device: Where the model runs; auto takes CUDA if there is any.
        pictures: Write pictures with boxes, or not.
    """
    from boxquery.data.images import IMAGE_SUFFIXES, read_image
    from boxquery.files import atomic_open, atomic_write
    from boxquery.pages.drawing import draw
    from boxquery.pages.images import encode

    if not sources:
        raise UserError("predict: name images, folders or globs to look at")
    detector = _load(run, device)
    names = [str(name) for name in detector.classes]
    files = _image_files(sources, IMAGE_SUFFIXES)
    first = next(files, None)
    if first is None:
        raise UserError(f"{', '.join(sources)}: no image there ({', '.join(sorted(IMAGE_SUFFIXES))} are looked for)")
    images = unreadable = objects = 0
    with atomic_open(out / "predictions.json") as file:
        file.write(b"[")
        for path, base in chain([first], files):
            try:
                image = read_image(path)
            except UserError as error:
                if len(sources) == 1 and path == Path(sources[0]):
                    raise
                unreadable += 1
                _warn([f"skipped: {error.line()}"])
                continue
            images += 1
            result = detector.predict(image, threshold=threshold)
            for row in _coco_rows(result, path, base):
                file.write(("," if objects else "").encode() + b"\n" + json.dumps(row).encode())
                objects += 1
            if pictures:
                picture = draw(image, result.boxes, result.labels, names, scores=result.scores)
                atomic_write(out / "pictures" / path.relative_to(base).with_suffix(".jpg"), encode(picture, quality=90))
        if not images:
            raise UserError(f"none of {unreadable} images could be read")
        file.write(b"\n]\n")
    values = {"images": images, "objects": objects, "unreadable": unreadable, "out": str(out), "predictions": str(out / "predictions.json")}
    return CommandResult(values, text=f"{objects} objects in {images} images; {unreadable} could not be read; see {out}")


def models(name: str | None = None, /) -> CommandResult:
    """List the models, or describe one: its paper, how it differs from DETR, and its presets.

    Args:
        name: A model or baseline to describe. Default: list all.
    """
    from boxquery.models import describe, list_baselines, papers

    family, baselines = papers(), list_baselines()
    if name is not None:
        if name not in [*family, *baselines]:
            raise UserError(f"no model {name!r}; choose one of {', '.join(family)}, or a baseline: {', '.join(baselines)}")
        values = _model(name)
        presets = [f"- {preset}: {_size(count)} at {count['image']}" for preset, count in values.get("sizes", {}).items()]
        return CommandResult(values, text="\n".join([describe(name), *(["", "Presets:", *presets] if presets else [])]))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, leading=1)
    table.add_column("model", no_wrap=True)
    table.add_column("in one line")
    for column in ("size", "AP", "epochs"):
        table.add_column(column, justify="right", no_wrap=True)
    rows = [_model(each) for each in family]
    for row in rows:
        ap, epochs = re.findall(r"([\d.]+) AP in (\d+) epochs", row["published"])[0]
        table.add_row(f"[bold]{row['name']}[/bold]", row["summary"], f"{row['sizes']['paper']['parameters'] / 1e6:.0f} M", ap, epochs)
    text = (
        "\nsize: parameters of preset paper; AP: published, ResNet-50 on COCO val2017, after that many epochs.\n"
        f"boxquery models NAME describes one, also those of other families to compare with: {', '.join(baselines)}."
    )
    return CommandResult({"models": rows, "baselines": baselines}, table, text)


def _model(name: str) -> dict[str, Any]:
    """What is known of a model: plain values."""
    from boxquery.models import describe, differences, facts, papers, sizes

    lines = {key.lower().replace("-", "_"): value for key, value in facts(name).items()}
    values = {"name": name, "summary": describe(name).splitlines()[0].partition(": ")[2], **lines}
    return {**values, "sizes": sizes(name), "differs_from_detr_in": differences(name)} if name in papers() else values


def _size(count: dict[str, Any]) -> str:
    gflops = count["gflops"]
    return f"{count['parameters'] / 1e6:.1f} M parameters, {gflops:.{0 if gflops >= 10 else 1}f} G multiply-adds"


def import_official(checkpoint: Path, /, *, model: str, out: Path, image_size: int = 800, options: Options = None) -> CommandResult:
    """Convert a paper's released COCO checkpoint to a model folder.

    Args:
        checkpoint: The authors' file; only tensors are read from it, nothing in it is executed.
        model: Model that the checkpoint is of (detr, dab-detr, ...); its options are read from the tensors.
        out: Model folder to write.
        image_size: Shortest side of the input in pixels.
        options: An option that the tensors do not show, as name=value; may be repeated. ``dilation=true`` for a DC5 checkpoint.
    """
    from boxquery.model_folder import open_official, save
    from boxquery.official.checkpoint import assumptions

    if out.exists():
        raise UserError(f"{out} exists; choose another --out")
    detector, report = open_official(checkpoint, model, image_size, options or {})
    save(detector, out)
    _warn(assumptions(report))
    text = f"{report['used']} tensors used, {report['constants']} known constants left out; the model is in {out}"
    return CommandResult({**report, "out": str(out)}, text=text)


def _load(run: str, device: str) -> Detector:
    from boxquery.api import load
    from boxquery.device import choose_device

    return load(run).to(choose_device(device))


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _image_files(sources: Iterable[str], endings: frozenset[str]) -> Iterator[tuple[Path, Path]]:
    """Images, each with the folder that its picture's path is relative to; holds one folder's names at a time."""
    for source in sources:
        path = Path(source)
        if path.is_dir():
            for folder, folders, names in os.walk(path):
                folders.sort()
                yield from ((Path(folder) / name, path) for name in sorted(names) if Path(name).suffix.lower() in endings)
        elif path.is_file():
            yield path, path.parent
        else:
            matches = map(Path, glob.iglob(source, recursive=True))
            first = next(matches, None)
            if first is None:
                raise UserError(f"{source}: no such image or folder, and no match as a glob")
            yield from ((match, match.parent) for match in chain([first], matches) if match.suffix.lower() in endings)


def _coco_rows(result: Result, path: Path, base: Path) -> Iterator[dict[str, Any]]:
    image = int(path.stem) if path.stem.isdecimal() else path.stem
    for (x1, y1, x2, y2), score, category in zip(result.boxes.tolist(), result.scores.tolist(), result.ids, strict=True):
        yield {
            "image_id": image,
            "file_name": str(path.relative_to(base)),
            "category_id": category,
            "bbox": [round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
            "score": round(score, 5),
        }
