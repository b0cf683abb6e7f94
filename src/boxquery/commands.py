"""The commands demo, evaluate and predict. Imports no torch: ``--help`` must be instant."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.markup import escape
from rich.table import Table

from boxquery.cluster import Engine
from boxquery.command_result import CommandResult
from boxquery.errors import UserError
from boxquery.flags import Device, Pretrained, Switch, check_model, is_exported
from boxquery.limits import DEFAULT_OVERLAP, MAX_DETECTIONS, check_above_zero, check_nms, check_threshold, check_tiles

if TYPE_CHECKING:
    from boxquery.api import Detector
    from boxquery.predict.outputs import Kind
    from boxquery.predict.summary import Summary


def demo(*, minutes: float = 5.6, out: Path | None = None, seed: int = 0, pretrained: Pretrained = "none") -> None:
    """Train Deformable DETR on built-in scenes and show what it detects; needs no download.

    Args:
        minutes: Approximate duration.
        out: Run folder to write. Default: a new one under ``runs/``.
        seed: Seeds initialisation, data order, augmentation and dropout.
        pretrained: Start from the smallest model trained on COCO, as `train` does, not from random weights; the hub or its cache must
            have it.
    """
    from boxquery.training.processes import rank
    from boxquery.training.run import train

    if pretrained not in (True, False, "none"):
        raise UserError(f"demo: --pretrained takes no value, not {pretrained}")
    started = time.monotonic()
    what, settings = (
        "Deformable DETR (preset tiny) trained",
        {"model": "deformable-detr", "preset": "tiny", "lr": 1e-3, "pretrained": False},
    )
    if pretrained is True:
        from boxquery.fine_tuning import DEMO_SIZE, RECIPE, STARTS

        start = next(iter(STARTS.values()))
        what, settings = f"{start.name} fine-tuned", {"start_from": start.name, "recipe": RECIPE, "image_size": DEMO_SIZE}
    run = train("shapes", minutes=minutes, out=out, seed=seed, **settings).run
    if rank() > 0:  # of several processes the first writes the run and speaks
        return
    assert run is not None
    metrics = json.loads((run / "evaluation.json").read_text())["test"]
    seconds = round(time.monotonic() - started, 1)
    print(
        f"{what} on the built-in scenes for {seconds:.0f} seconds; "
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
    out: Path | None = None,
    threshold: float | None = None,
    nms: float | None = None,
    classes: list[str] | None = None,
    max_detections: int = MAX_DETECTIONS,
    image_size: int | None = None,
    tiles: int | None = None,
    overlap: float = DEFAULT_OVERLAP,
    batch_size: int = 8,
    workers: int = 0,
    without_camera: str | None = None,
    shuffle_calibration: Switch = False,
    device: Device = "auto",
    download: Switch = False,
    strict: Switch = False,
    images: str | None = None,
    annotations: str | None = None,
) -> CommandResult:
    """Print AP as pycocotools defines it, per class, with duplicates, false positives on empty images and the best threshold.

    AP counts several classes per query, as COCO defines it; what is measured at one threshold counts the best one, as predict gives it.
    Of scenes of several cameras it prints nuScenes' mAP, NDS and errors.

    Args:
        run: A run folder, a model folder (ours or one of transformers), an exported model (.onnx or .xml) or a hub id.
        data: A data set in COCO, Pascal VOC or YOLO layout, or the word ``shapes``; nuScenes' folder, or the word ``surround``.
        split: Split to evaluate on.
        out: Folder for a page with confusion matrix, precision by recall, errors by type and pictures, and its numbers as CSV and JSON.
        threshold: Score from which detections count for precision, recall and duplicates. Default: the one with the best F1 on this split.
        nms: IoU threshold of class-wise NMS (1 disables it). Default: the model's own (none for DETRs).
        classes: Only these classes, separated by commas. Default: all that the data lists.
        max_detections: Detections per class and image that count, the best ones; COCO's AP is defined with 100.
        image_size: Short side of the model's input in pixels. Default: that of its training.
        tiles: Look also at tiles of this side in pixels of the image, for small objects. Default: only at the whole image.
        overlap: Share of a tile that neighbours have in common.
        batch_size: Images per batch.
        workers: Processes that read images; 0 reads them in the main one.
        without_camera: Of scenes: name of a camera whose images the model is not given.
        shuffle_calibration: Of scenes: give each image the calibration of another camera.
        device: Where the model runs; auto takes CUDA, else MPS, else the CPU.
        download: Fetch a model from the hub also if it has more than 200 MB.
        strict: Treat invalid boxes and images as errors instead of skipping them.
        images: Folder of the images, where it is not found by itself. Relative to the data or the working directory.
        annotations: Folder or file of the annotations, where it is not found by itself. Relative to the data or the working directory.
    """
    from boxquery.data.open import open_data
    from boxquery.data.scenes.open import holds_scenes, only_images

    check_threshold(threshold)
    if holds_scenes(data):
        flags = {"threshold": threshold, "nms": nms, "classes": classes, "image_size": image_size, "tiles": tiles, "images": images}
        only_images(flags | {"annotations": annotations}, data)
        from boxquery.scene_commands import evaluate_scenes

        return evaluate_scenes(
            run, data, split=split, out=out, batch_size=batch_size, workers=workers, without_camera=without_camera,
            shuffle_calibration=shuffle_calibration, device=device, download=download, strict=strict,
        )  # fmt: skip
    if without_camera is not None or shuffle_calibration:
        raise UserError(f"--without-camera and --shuffle-calibration are of scenes of several cameras, and {data} holds images")
    check_nms(nms)
    check_above_zero(max_detections=max_detections, image_size=image_size, batch_size=batch_size)
    check_tiles(tiles, overlap)
    check_model(run, exported=True)
    opened = open_data(data, strict=strict, images=images, annotations=annotations)
    _warn(opened.messages())
    opened.split(split)
    from boxquery.api import ExportedDetector

    detector = ExportedDetector.open(run, device=device) if is_exported(run) else _load(run, device, download)
    if image_size is not None:
        detector.image_size = image_size
    metrics = detector.evaluate(
        opened, split=split, out=out, threshold=threshold, nms=nms, classes=classes and _split_names(classes, detector.classes),
        max_detections=max_detections, tiles=tiles, overlap=overlap, batch_size=batch_size, workers=workers, strict=strict, progress=True,
    )  # fmt: skip
    _warn(f"note: {note}" for note in metrics["notes"])
    if nms is None and (metrics["duplicate_rate"] or 0) >= 0.1:
        _warn([f"note: {metrics['duplicate_rate']:.0%} of the detections at the threshold are duplicates; --nms 0.7 measures without them"])
    table = Table(title=escape(f"{run} on {split} of {data}"), title_justify="left")
    for column in ("", "AP", "AP50", "precision", "recall", "objects"):
        table.add_column(column, justify="left" if not column else "right")
    classes_seen = [row for row in metrics["per_class"] if row["objects"] or row["precision"] is not None]
    for row in [{**metrics, "name": "all"}, *classes_seen]:
        table.add_row(escape(row["name"]), *(_number(row[name]) for name in ("AP", "AP50", "precision", "recall")), str(row["objects"]))
    others = (
        "AP75", "APs", "APm", "APl", "best_threshold", "precision", "recall", "f1", "duplicate_rate", "false_positives_per_empty_image",
    )  # fmt: skip
    lines = [f"{name.replace('_', ' ')}: {_number(metrics[name])}" for name in others]
    if fixed := metrics["median_box"]:
        lines.insert(0, f"median box of each class in every image: AP {_number(fixed['AP'])}, AP50 {_number(fixed['AP50'])}")
    if threshold is not None:
        lines.append(f"precision, recall, f1, duplicates and false positives are at a score of {threshold:g} or more, as given")
    if metrics["truncated"]:
        lines.append(f"{metrics['truncated']:,} detections beyond {max_detections:,} per class and image do not count")
    if out is not None:
        lines.append(f"page: {out / 'evaluation.html'}")
    return CommandResult(metrics, table, "\n".join(lines))


def predict(
    run: str,
    /,
    *sources: str,
    out: Path | None = None,
    threshold: float | None = None,
    nms: float | None = None,
    classes: list[str] | None = None,
    max_detections: int | None = None,
    image_size: int | None = None,
    tiles: int | None = None,
    overlap: float = DEFAULT_OVERLAP,
    batch_size: int = 1,
    every: int = 1,
    track: Switch = False,
    watch: Switch = False,
    engine: Engine = "local",
    workers: int | None = None,
    split: str = "val",
    device: Device = "auto",
    download: Switch = False,
    save: Annotated[list[str] | None, Parameter(show_default=False)] = None,
) -> CommandResult:
    """Detect objects in images and videos; write them with boxes, and ``predictions.json`` in COCO's result format (of scenes nuScenes').

    In ``predictions.json``, ``file_name`` is the path below the common folder of all images, and ``image_id`` the file's name without its
    ending (a number if it is one), or the path where names are not unique. An image that cannot be read is named and skipped.

    Args:
        run: A run folder, a model folder (ours or one of transformers), an exported model (.onnx or .xml) or a hub id.
        sources: Image and video files, folders (searched recursively), globs, cameras (camera:0) or addresses (rtsp://, http://). For
            a model of several cameras, nuScenes' folder, or the word ``surround``.
        out: Folder to write to. Default: predictions, or the first of predictions-2, predictions-3, ... that is free.
        threshold: Minimum score, from 0 to 1. Default: the one with the best F1 in the evaluation during training.
        nms: IoU threshold of class-wise NMS (1 disables it). Default: the model's own (none for DETRs).
        classes: Only these classes, separated by commas. Default: all.
        max_detections: Most detections per image, the best ones. Default: as many as the model has queries.
        image_size: Short side of the model's input in pixels. Default: that of its training.
        tiles: Look also at tiles of this side in pixels of the image, for small objects. Default: only at the whole image.
        overlap: Share of a tile that neighbours have in common.
        batch_size: Images (or tiles) per batch; only those of one shape run together, so the result is the same.
        every: Look only at each n-th frame of a video, camera or stream.
        track: Follow objects from frame to frame by ByteTrack; each has a number, which is drawn, and `track_id` in json and csv.
        watch: Look at new images in the folders as they come, until Ctrl-C.
        engine: Where it runs: in this process, or in workers of the Ray cluster at RAY_ADDRESS (or of this machine), which also read
            addresses (s3://, gs://), write json and csv, and continue what was stopped (docs/scale.md).
        workers: With --engine ray, how many. Default: as many as there are GPUs, or else cores.
        split: Of a data set of scenes, which split to look at.
        device: Where the model runs; auto takes CUDA, else MPS, else the CPU.
        download: Fetch a model from the hub also if it has more than 200 MB.
        save: What to write, separated by commas: pictures (with boxes), video (with boxes), json (COCO's result format, or nuScenes'), txt
            (YOLO's lines, with the score), xml (Pascal VOC), csv (a row per box), crops (an image per box). Default: json, pictures of
            images, and videos of videos.
    """
    from boxquery import runtime
    from boxquery.data.scenes.open import holds_scenes, only_images
    from boxquery.predict.outputs import ResultWriter, check_kinds, chosen_kinds, new_folder
    from boxquery.predict.run import run as look_at
    from boxquery.predict.sources import find_sources
    from boxquery.predict.summary import Summary
    from boxquery.predict.tracking import Tracker, require_trackers
    from boxquery.predict.watch import WatchedFolders
    from boxquery.runtime.tiles import Tiles

    if not sources:
        raise UserError("predict: name images, videos, folders or globs to look at")
    check_threshold(threshold)
    if holds_scenes(sources[0]):
        flags = {"nms": nms, "classes": classes, "image_size": image_size, "tiles": tiles, "track": track, "watch": watch}
        only_images(flags | {"workers": workers, "engine": engine != "local", "every": every > 1}, sources[0])
        from boxquery.scene_commands import predict_scenes

        return predict_scenes(
            run, sources, split=split, out=out, threshold=threshold, max_detections=max_detections, batch_size=batch_size, save=save,
            device=device, download=download,
        )  # fmt: skip
    check_nms(nms)
    check_above_zero(max_detections=max_detections, image_size=image_size, batch_size=batch_size, every=every)
    check_tiles(tiles, overlap)
    check_model(run, exported=True)
    if save is not None:
        check_kinds(save)
    options: dict[str, Any] = {"threshold": threshold, "nms": nms, "max_detections": max_detections, "batch_size": batch_size}
    options |= {"tiles": tiles, "overlap": overlap}
    if engine == "ray":
        if track or watch or every > 1:
            raise UserError("--engine ray looks at images: leave out --track, --watch and --every")
        return _predict_by_ray(run, sources, out, save, options, classes, image_size, device, workers, download)
    if workers is not None:
        raise UserError("--workers goes with --engine ray")
    if track:
        require_trackers()
    folder = new_folder(out)
    try:
        found, notes = (WatchedFolders(sources, folder), []) if watch else find_sources(sources)
    except UserError as error:
        text = str(error) if Path(run).exists() else f"{run}: no such folder here, unless it is a hub id; and {error}"
        raise UserError(text + "; several --classes are separated by commas: a,b" * (classes is not None)) from error
    kinds = chosen_kinds(save, None if isinstance(found, WatchedFolders) else found)
    _warn(f"note: {note}" for note in notes)
    detector = runtime.load(run, device=device) if is_exported(run) else _load(run, device, download)
    if image_size is not None:
        detector.image_size = image_size
    tracker = Tracker(detector.min_score(threshold)) if track else None
    options["classes"] = None if classes is None else _split_names(classes, detector.classes)
    predict = partial(detector.predict, **options | ({} if tracker is None else {"threshold": tracker.least}))
    cut = None if tiles is None else Tiles(tiles, overlap).count_cut
    summary = Summary(detector.min_score(threshold), given=threshold is not None, named=any(detector.classes), count_cut=cut)
    writer = ResultWriter(folder, kinds, detector.classes, frame_pictures=save is not None)
    finished = look_at(predict, found, writer, summary, every=every, tracker=tracker)
    if finished.interrupted:
        raise KeyboardInterrupt(f"{finished.interrupted} were looked at; what was found in them is in {folder}")
    return _found(summary, folder, kinds, finished.rate, nms)


def _predict_by_ray(
    run: str, sources: Sequence[str], out: Path | None, save: list[str] | None, options: dict[str, Any], classes: list[str] | None,
    image_size: int | None, device: str, workers: int | None, download: bool,
) -> CommandResult:  # fmt: skip
    """As ``predict``, by the workers of a cluster."""
    from boxquery import runtime
    from boxquery.predict.outputs import check_kinds
    from boxquery.scale.command import predict_by_ray
    from boxquery.scale.sources import find_anywhere

    check_above_zero(workers=workers)
    kinds = check_kinds(save or ["json", "csv"])
    images, system, notes = find_anywhere(sources)
    _warn(f"note: {note}" for note in notes)
    if is_exported(run):
        model, detector = Path(run), runtime.load(run, device="cpu")
    else:
        from boxquery.model_folder import find_folder

        model = find_folder(run, download=download)
        detector = _load(str(model), "cpu", download)
    options["classes"] = None if classes is None else _split_names(classes, detector.classes)
    summary, folder, rate = predict_by_ray(
        model, detector, images, system, out=out, kinds=kinds, options=options, image_size=image_size, device=device, workers=workers
    )
    return _found(summary, folder, kinds, rate, options["nms"])


def _found(summary: Summary, folder: Path, kinds: Sequence[Kind], rate: float, nms: float | None) -> CommandResult:
    """What a prediction found, and where it is."""
    from boxquery.predict.outputs import PLACES

    values = {
        **summary.values(),
        "images_per_second": round(rate, 2),
        "out": str(folder),
        "saved": {kind: str(folder / PLACES[kind]) for kind in kinds},
    }
    _warn(f"note: {note}" for note in [*summary.remarks_notes(), *(summary.duplicates_note() if nms is None else []), *summary.cut_note()])
    places = ", ".join(PLACES[kind] + "/" * (folder / PLACES[kind]).is_dir() for kind in kinds)
    lines = [*summary.lines(), f"{rate:.1f} images per second; see {folder}: {places}"]
    return CommandResult(values, text="\n".join(lines))


def _load(run: str, device: str, download: bool) -> Detector:
    from boxquery.api import load_images
    from boxquery.device import choose_device

    return load_images(run, download=download).to(choose_device(device))


def _split_names(words: Sequence[str], classes: Sequence[str | None]) -> list[str]:
    """Class names of a flag that takes several, separated by commas; a class whose name has a comma is taken whole."""
    from boxquery.data.classes import match_names

    whole = match_names(words, classes)
    return [name.strip() for word, label in zip(words, whole, strict=True) for name in ([word] if label >= 0 else word.split(","))]


def _warn(lines: Iterable[str]) -> None:
    from boxquery.progress import stderr_console

    console = stderr_console()
    for line in lines:
        console.print(line, markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
