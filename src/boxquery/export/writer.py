"""From a detector to the file that runs it elsewhere."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from boxquery.data.classes import map_labels
from boxquery.data.dataset import Data
from boxquery.data.preprocessing import Resize
from boxquery.data.scenes.records import SceneData
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.evaluation.scene_predictions import with_labels_of
from boxquery.export import int8
from boxquery.export.graph import ExportGraph, SceneGraph, trace
from boxquery.export.metadata import metadata
from boxquery.export.onnx import to_onnx, write_onnx
from boxquery.export.openvino import read_graph, write_openvino
from boxquery.export.packages import ENDINGS, ONNX, check_calibration, check_combination
from boxquery.export.verify import verify
from boxquery.export.verify_scenes import verify_scenes
from boxquery.runtime.record import KEY
from boxquery.scene_detector import SceneDetector


def export(
    detector: Detector | SceneDetector,
    path: str | Path,
    *,
    precision: str = "fp32",
    size: tuple[int, int] | None = None,
    data: Data | SceneData | None = None,
    split: str = "val",
    calibrate: str | Path | Data | SceneData | None = None,
    calibration_images: int | None = None,
) -> dict[str, Any]:
    """Write ``path``, or leave it as it was; see ``boxquery.api.Detector.export``.

    Args:
        data: what the file is verified on before it takes its place, images or scenes as the detector takes them; None: it is not.
        calibrate, calibration_images: on what int8 measures ranges, and on how many of these images or scenes.

    Returns what the file says of itself, its ``bytes``, and as ``verified`` what ``verify`` found.
    """
    path = Path(path)
    target = target_of(path)
    check_combination(target, precision)
    check_calibration(precision, calibrate, calibration_images)
    check_size(size)
    check_free(path)
    graph, check = _images(detector, data, split) if isinstance(detector, Detector) else _scenes(detector, data, split)
    started = time.monotonic()
    images = None if calibrate is None else _calibration(detector, calibrate, calibration_images, size)
    with beside(path) as folder:
        model, used = to_onnx(trace(graph, size)), None
        if images is not None:
            model, used = int8.quantize(model, images)
        values = metadata(detector, target, precision, size, used)
        if target == ONNX:
            write_onnx(model, folder / path.name, values)
        else:
            with tempfile.TemporaryDirectory() as other:
                write_onnx(model, Path(other) / "model.onnx", values)
                write_openvino(read_graph(Path(other) / "model.onnx"), folder / path.name, values, half=precision == "fp16")
        verified = None if check is None else check(folder / path.name)
        files = sorted(folder.iterdir(), key=lambda file: file.suffix == path.suffix)
        total = sum(file.stat().st_size for file in files)
        put_in_place(files, path.parent)
    return {**values, "out": str(path), "bytes": total, "seconds": round(time.monotonic() - started, 1), "verified": verified}


Check = Callable[[Path], dict[str, Any]]


def _images(detector: Detector, data: Data | SceneData | None, split: str) -> tuple[ExportGraph, Check | None]:
    """The graph, and what verifies a file of it. Raises ``UserError`` for data that it cannot be verified on, before the long part."""
    if isinstance(data, SceneData):
        raise UserError(f"--verify {data.source}: holds scenes of several cameras, and {detector.name} takes images")
    graph = ExportGraph(detector)
    if data is None:
        return graph, None
    map_labels(data, split, detector.classes)
    return graph, lambda path: verify(graph, path, data, split)


def _scenes(detector: SceneDetector, data: Data | SceneData | None, split: str) -> tuple[SceneGraph, Check | None]:
    """As ``_images``."""
    if isinstance(data, Data):
        raise UserError(f"--verify {data.source}: holds images, and {detector.name} takes scenes of several cameras")
    graph = SceneGraph(detector)
    if data is None:
        return graph, None
    with_labels_of({}, detector.classes, data)
    data.split(split)
    return graph, lambda path: verify_scenes(graph, path, data, split)


def _calibration(
    detector: Detector | SceneDetector, source: str | Path | Data | SceneData, wanted: int | None, size: tuple[int, int] | None
) -> list[int8.ReadInputs]:
    """What ranges are measured on, as the file will be given it. Raises ``UserError`` for data of the other kind."""
    if isinstance(detector, SceneDetector):
        if isinstance(source, Data):
            raise UserError(f"--calibrate {source.source}: holds images, and {detector.name} takes scenes of several cameras")
        return int8.scene_inputs(source, wanted, replace(detector.resize, fixed=size))
    if isinstance(source, SceneData):
        raise UserError(f"--calibrate {source.source}: holds scenes of several cameras, and {detector.name} takes images")
    return int8.inputs_of(int8.calibration_images(source, wanted), Resize(detector.preprocessing, size))


def target_of(path: Path) -> str:
    """What a file is by its ending. Raises ``UserError`` for another one."""
    for target, ending in ENDINGS.items():
        if path.suffix == ending:
            return target
    raise UserError(f"{path}: must end in {' or '.join(f'{ending} ({target})' for target, ending in ENDINGS.items())}")


def check_size(size: tuple[int, int] | None) -> None:
    if size is not None and not all(16 <= side <= 8192 for side in size):
        raise UserError(f"size={size[0]}x{size[1]}: each side must have 16 to 8192 pixels")


def check_free(path: Path) -> None:
    """Raise ``UserError`` where a file to be written, or its weights in a ``.bin``, would take the place of something else."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    weights = path.with_suffix(".bin")
    if target_of(path) == ONNX or not (weights.exists() or weights.is_symlink()):
        return
    if not path.is_file() or f"<{KEY} ".encode() not in path.read_bytes():
        raise UserError(f"{weights}: belongs to no model that was exported as {path.name}; move it, or choose another --out")


def put_in_place(files: list[Path], folder: Path) -> None:
    """Move files into another folder, all or none: on an error what was there before is there again."""
    *first, last = files
    before: dict[Path, Path | None] = {}
    try:
        for file in first:
            there, kept = folder / file.name, file.with_name(f"{file.name}.before")
            before[there] = kept if there.exists() else None
            if there.exists():
                os.replace(there, kept)
            os.replace(file, there)
        os.replace(last, folder / last.name)
    except BaseException:
        for there, kept in before.items():
            if kept is None:
                there.unlink(missing_ok=True)
            elif kept.exists():
                os.replace(kept, there)
        raise


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A new folder beside a file, in which it and what belongs to it are made; gone at the end. Raises ``UserError`` where the operating
    system refuses."""
    folder = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.")
        yield Path(folder)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); make room, or write elsewhere") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
