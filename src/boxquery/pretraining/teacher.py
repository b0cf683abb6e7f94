"""Self-training: what a trained model detects in images becomes their labels, from which another model learns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from boxquery.detector import Detector
from boxquery.device import choose_device
from boxquery.errors import UserError, count
from boxquery.files import read_mapping, write_json
from boxquery.model_folder import load
from boxquery.predict.reading import Reader
from boxquery.predict.sources import Source
from boxquery.predict.summary import Summary
from boxquery.pretraining.find import find_unlabelled
from boxquery.progress import Progress, stderr_console
from boxquery.training import fit
from boxquery.training.config import FILE, PretrainFlags, RunConfig, TrainFlags
from boxquery.training.settings import check_folder, like
from boxquery.training.state import run_lock
from boxquery.transfer import fingerprint

#: in the run folder: a COCO file of what the teacher found
PSEUDO_LABELS = "pseudo-labels.json"
#: detections of an image that become labels at most (simple self-training, arXiv:2308.01300, has 30)
MOST = 30


def learn_from(teacher: str, images: str, out: Path | None, requested: PretrainFlags, threshold: float | None) -> Detector:
    """Label images by a teacher, then train on them as on any data set. Raises ``UserError``."""
    console = stderr_console()
    check_folder(out, resume=False)
    sources, notes = find_unlabelled(images)
    for note in notes:
        console.print(f"note: {note}", markup=False)
    detector = load(teacher, download=requested.download)
    flags = train_flags(requested)
    if flags.named_model in (None, detector.name) and flags.start_from is None:
        flags = like(detector, flags)
    folder = out or _new_folder(detector, images)
    origin = {"teacher": fingerprint(detector), "threshold": detector.min_score(threshold), "images": os.path.abspath(images)}
    with run_lock(folder):
        file = folder / PSEUDO_LABELS
        if known := read_mapping(file):
            if known.get("info", {}) | origin != known.get("info"):
                raise UserError(f"{file}: of another teacher, threshold or folder of images; choose another --out, or delete it")
            console.print(f"note: {file} holds what the teacher found; it is used again", markup=False)
        else:
            detector.to(choose_device(requested.device))
            write_json(file, {"info": origin | {"description": f"found by {teacher}"}, **label(detector, sources, threshold)})
        labels = read_mapping(file)
        boxes, filled = len(labels["annotations"]), len({row["image_id"] for row in labels["annotations"]})
        console.print(
            f"{teacher} found {count(boxes, 'object')} in {filled:,} of {count(len(labels['images']), 'image')}: {file}", markup=False
        )
        root = _root(sources)
    trained = fit.start(str(file), folder, replace(flags, images=str(root)), False)
    _say_next(console, detector, folder)
    return trained


def resume_learning(folder: Path, requested: PretrainFlags) -> Detector:
    """Go on with the training on what a teacher found. Raises ``UserError``."""
    if not (folder / FILE).is_file():
        raise UserError(f"{folder}: the teacher's labels are there, but no training had begun; leave out --resume to go on")
    return fit.start(None, folder, train_flags(requested), True)


def train_flags(requested: PretrainFlags) -> TrainFlags:
    """The same flags of an ordinary training. Raises ``UserError`` for those of patches."""
    plain = PretrainFlags()
    for name in requested.recorded():
        if getattr(requested, name) != getattr(plain, name):
            raise UserError(f"--{name.replace('_', '-')} is for random patches, of which a teacher makes no use; leave it out")
    return TrainFlags(**{flag.name: getattr(requested, flag.name) for flag in fields(TrainFlags)})


def label(teacher: Detector, sources: list[Source], threshold: float | None) -> dict[str, Any]:
    """Images, annotations and categories of a COCO file. Raises ``UserError`` where nothing is found, or no image can be read."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    known = [(name, number) for name, number in zip(teacher.classes, teacher.ids, strict=True) if name is not None]
    if not known:
        raise UserError(f"{teacher.name}: the teacher's classes have no names: it was pre-trained, but detects nothing yet; train it first")
    summary = Summary(teacher.min_score(threshold), given=threshold is not None, named=True)
    with Progress("label", len(sources)) as progress:
        reader = Reader(sources, summary, progress, number=len(sources))
        for number, result in enumerate(teacher.predict(reader.images(), threshold=threshold, max_detections=MOST), 1):
            item = reader.take()
            height, width = result.size
            images.append({"id": number, "file_name": item.name, "width": width, "height": height})
            annotations += _rows(result, number, len(annotations) + 1)
            progress.advance()
    if not annotations:
        raise UserError(
            f"the teacher finds nothing in {count(len(images), 'image')} with a score of {teacher.min_score(threshold):.2f} or more; "
            "give a lower --threshold"
        )
    categories = [{"id": number, "name": name} for name, number in known]
    return {"images": images, "annotations": annotations, "categories": categories}


def _rows(result: Any, image: int, first: int) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(result.to_coco(image), first):
        x, y, w, h = row["bbox"]
        yield {
            "id": number, "image_id": image, "category_id": row["category_id"], "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
            "score": row["score"],
        }  # fmt: skip


def _root(sources: list[Source]) -> Path:
    """The folder that the names of images are relative to."""
    first = os.path.abspath(sources[0].path)
    return Path(first[: len(first) - len(sources[0].name)])


def _new_folder(teacher: Detector, images: str) -> Path:
    stem, number = f"{teacher.name}-by-teacher-{Path(images).name}", 1
    while (Path("runs") / f"{stem}-{number}").exists():
        number += 1
    return Path("runs") / f"{stem}-{number}"


def _say_next(console: Any, teacher: Detector, folder: Path) -> None:
    """How to go on, on the data that the teacher had learned from."""
    data = RunConfig.read(teacher.run).data if teacher.run is not None and (teacher.run / FILE).is_file() else "DATA"
    console.print(f"to go on with labels: boxquery train {data} --from {folder}", markup=False, soft_wrap=True)
