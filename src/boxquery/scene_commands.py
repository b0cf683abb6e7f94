"""What the commands evaluate and predict do with scenes of several cameras. Imports no torch before it is needed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from boxquery.command_result import CommandResult
from boxquery.data.scenes.open import open_scenes
from boxquery.errors import UserError, count
from boxquery.files import atomic_write
from boxquery.flags import check_model, is_exported
from boxquery.limits import check_above_zero
from boxquery.pages.format import three
from boxquery.progress import Progress, stderr_console

if TYPE_CHECKING:
    from boxquery.api import ExportedSceneDetector, SceneDetector
    from boxquery.data.scenes.records import SceneData

KINDS = ("pictures", "json")
"""What ``predict`` can write of scenes."""


def evaluate_scenes(
    run: str, data: str, *, split: str, out: Path | None, batch_size: int, workers: int, without_camera: str | None,
    shuffle_calibration: bool, device: str, download: bool, strict: bool,
) -> CommandResult:  # fmt: skip
    """``boxquery evaluate`` of scenes."""
    check_above_zero(batch_size=batch_size)
    opened = _open(run, data, split, strict)
    metrics = _load(run, device, download).evaluate(
        opened, split=split, out=out, without_camera=without_camera, shuffle_calibration=shuffle_calibration, batch_size=batch_size,
        workers=workers, strict=strict, progress=True,
    )  # fmt: skip
    _say(f"note: {note}" for note in metrics["notes"])
    columns = ["AP", "AP@0.5", "AP@1", "AP@2", "AP@4", *opened.protocol.errors]
    changed = [f", without {without_camera}"] * (without_camera is not None) + [", calibration shuffled"] * shuffle_calibration
    # without padding it fits into 80 columns
    table = Table(title=escape(f"{run} on {split} of {data}{''.join(changed)}"), title_justify="left", padding=0)
    for column in ("", *columns, "objects"):
        table.add_column(column.removeprefix("AP@") + " m" * ("@" in column), justify="right" if column else "left", no_wrap=True)
    means = {"name": "all", "AP": metrics["mAP"], **{error: metrics[f"m{error}"] for error in opened.protocol.errors}}
    for row in [metrics | means, *metrics["classes"]]:
        table.add_row(escape(row["name"]), *(three(row[column]) for column in columns), str(row["objects"]))
    lines = [f"NDS: {three(metrics['NDS'])}"]
    if fixed := metrics["fixed_boxes"]:
        lines.append(f"best fixed boxes in every scene: mAP {three(fixed['mAP'])}, NDS {three(fixed['NDS'])}")
    lines += [f"{name.replace('_', ' ')}: {three(metrics[name])}" for name in ("best_threshold", "precision", "recall", "f1")]
    if metrics["truncated"]:
        lines.append(f"{metrics['truncated']:,} detections beyond 500 per scene do not count")
    if out is not None:
        lines.append(f"page: {out / 'evaluation.html'}")
    return CommandResult(metrics, table, "\n".join(lines))


def predict_scenes(
    run: str, sources: Sequence[str], *, split: str, out: Path | None, threshold: float | None, max_detections: int | None,
    batch_size: int, save: list[str] | None, device: str, download: bool,
) -> CommandResult:  # fmt: skip
    """``boxquery predict`` of scenes: ``predictions.json`` in the layout of nuScenes' results, and a picture of each scene."""
    check_above_zero(max_detections=max_detections, batch_size=batch_size)
    kinds = [kind.strip() for word in save or KINDS for kind in word.split(",")]
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--save {wrong[0]}: of scenes there are {' and '.join(KINDS)}")
    if len(sources) > 1:
        raise UserError(f"predict: one data set of scenes at a time, not {len(sources)}")
    from boxquery.predict.outputs import new_folder

    folder = new_folder(out)
    opened = _open(run, sources[0], split, strict=False)
    detector, scenes = _load(run, device, download), opened.split(split)
    from boxquery.data.nuscenes.results import to_results
    from boxquery.evaluation.predictions import drop_unreadable
    from boxquery.evaluation.scene_predictions import predict_scenes as predict

    started = time.monotonic()
    with Progress("predict", len(scenes)) as bar:
        found = predict(detector, scenes, batch_size=batch_size, one_label=True, done=bar.advance)
    rate = len(found) / max(time.monotonic() - started, 1e-9)
    scenes, found = drop_unreadable(scenes, found)
    shown = {
        i: detector.result(own, [], scenes[i].lidar2img, threshold=threshold, max_detections=max_detections) for i, own in found.items()
    }
    written = []
    if "json" in kinds:
        kept = found if threshold is None and max_detections is None else {i: own.detections() for i, own in shown.items()}
        written.append(atomic_write(folder / "predictions.json", json.dumps(to_results(scenes, kept, detector.classes))).name)
    if "pictures" in kinds:
        from boxquery.pages.images import encode

        for i, own in shown.items():
            record = scenes[i]
            picture = own.with_images(scenes.read(i), record.cameras).draw()
            atomic_write(folder / "pictures" / f"{record.id.replace('/', '-')}.jpg", encode(picture))
        written.append("pictures/")
    objects, least = sum(map(len, shown.values())), detector.threshold if threshold is None else threshold
    values = {"scenes": len(found), "objects": objects, "threshold": least, "scenes_per_second": round(rate, 2), "out": str(folder)}
    line = f"{count(objects, 'object')} in {count(len(found), 'scene')} at a score of {least:.2f} or more"
    return CommandResult(values, text=f"{line}\n{rate:.1f} scenes per second; see {folder}: {', '.join(written)}")


def _open(run: str, data: str, split: str, strict: bool) -> SceneData:
    check_model(run, exported=True)
    opened = open_scenes(data, strict=strict)
    _say(opened.messages())
    opened.split(split)
    return opened


def _load(run: str, device: str, download: bool) -> SceneDetector | ExportedSceneDetector:
    from boxquery.api import ExportedSceneDetector, load_scenes
    from boxquery.device import choose_device

    if is_exported(run):
        return ExportedSceneDetector.open(run, device=device)
    return load_scenes(run, download=download).to(choose_device(device))


def _say(lines: Iterable[str]) -> None:
    console = stderr_console()
    for line in lines:
        console.print(line, markup=False)
