"""Whether exported files give what their models give, on real images: every model, both runtimes, any size and one size.

    python benchmarks/agreement.py                            # outputs of every model, resumable, one by one
    python benchmarks/agreement.py --only detr                # those of one
    python benchmarks/agreement.py --only runs/a              # those of a trained model of images
    python benchmarks/agreement.py --ap runs/a runs/b DATA    # AP of trained models in every precision, on a split of data

Outputs: preset `tiny` with random weights that are moved a little, so that boxes and scores differ; 20 images of different shapes, evenly
spaced over those of three data sets, and for models of several cameras 20 scenes of `surround`. Normalised boxes and scores of every query
are compared with the eager model's on the same pixels, by the index of the query, those of a box that leaves the image as shares of its
farthest coordinate; one that differs by more than 1e-4 but agrees with
another within that has changed places, as proposals that tie do, and those that agree with none are counted as differing. AP: each run is
exported in fp32 for both runtimes, in bf16 for OpenVINO and in int8 for both (ranges of 100 training images), and evaluated as `boxquery
evaluate` does. Results and conditions are in docs/experiments/results/agreement.json; the tables of docs/export.md are written from it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib import metadata as packages
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image

import boxquery as bq
from boxquery.api import ExportedDetector
from boxquery.benchmark.machine import processor
from boxquery.data.images import read_image
from boxquery.data.preprocessing import Preprocessing, Resize
from boxquery.data.scenes.open import open_scenes
from boxquery.detector import Detector
from boxquery.export import int8
from boxquery.export.graph import ExportGraph, SceneGraph, trace
from boxquery.export.metadata import metadata
from boxquery.export.onnx import to_onnx, write_onnx
from boxquery.export.openvino import read_graph, write_openvino
from boxquery.export.verify import compare, image_rows, run_file, run_graph
from boxquery.export.verify_scenes import scene_rows
from boxquery.files import write_json
from boxquery.models import list_scene_models, preset
from boxquery.predict.sources import find_images
from boxquery.runtime.engines import open_file
from boxquery.scene_detector import SceneDetector
from cells import DATASETS, DOCS, put_into_page

RESULTS = DOCS / "experiments" / "results" / "agreement.json"
CLASSES = ["a", "b", "c"]
#: short side of inputs, and the one size of files that have one
SIDE, FIXED = 160, (160, 224)
IMAGES = 20
#: (height, width) of the images of scenes, and the one size of their files
SCENE = (96, 160)
#: target and precision
PRECISIONS = (("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "bf16"), ("onnx", "int8"), ("openvino", "int8"))


def detector_of(name: str) -> Detector | SceneDetector:
    torch.manual_seed(0)
    model = bq.create_model(name, classes=len(CLASSES), preset="tiny").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    recipe = preset(name, "tiny").recipe
    if name in list_scene_models():
        return SceneDetector(model, CLASSES, range(len(CLASSES)), Preprocessing(recipe.image_size), SCENE)
    return Detector(model, CLASSES, range(len(CLASSES)), Preprocessing.of(SIDE, square=recipe.square, normalize=recipe.normalize))


def photos() -> list[Image.Image]:
    """Images of different shapes: of every data set as many, its shapes in turn."""
    chosen: list[Image.Image] = []
    for folder in sorted(each for each in DATASETS.iterdir() if each.is_dir()):
        by_shape: dict[tuple[int, int], Path] = {}
        for source in find_images([str(folder)])[0]:
            with Image.open(source.path) as image:
                by_shape.setdefault(image.size, Path(source.path))
        chosen += [read_image(path) for path in list(by_shape.values())[: IMAGES // 2]]
    return [chosen[i * len(chosen) // IMAGES] for i in range(IMAGES)]


def inputs(detector: Detector | SceneDetector, images: list[Image.Image], size: tuple[int, int] | None) -> Iterator[tuple[Any, Any]]:
    """Of a graph of any size or of one, with what makes rows of its outputs that are compared."""
    if isinstance(detector, SceneDetector):
        resize, split = replace(detector.resize, fixed=size), open_scenes(f"surround:val={IMAGES},width={SCENE[1]}").split("val")
        for i, scene in enumerate(split):
            matrices = resize.lidar2img(scene.lidar2img, scene.sizes)[None].astype(np.float32)
            yield (resize.pixels(split.read(i))[None], matrices), partial(scene_rows, area=detector.area)
    else:
        resize = Resize(detector.preprocessing, size)
        for image in images:
            shape = (image.height, image.width)
            yield (resize(image)[None], np.array([shape])), partial(image_rows, size=shape)


def outputs(detector: Detector | SceneDetector, images: list[Image.Image], folder: Path) -> dict[str, Any]:
    """By kind of size and runtime: largest difference, and the queries that differ."""
    scenes = isinstance(detector, SceneDetector)
    graph, found = SceneGraph(detector) if scenes else ExportGraph(detector), {}
    for kind, size in (("any", None), ("fixed", SCENE if scenes else FIXED)):
        model = to_onnx(trace(graph, size))
        write_onnx(model, folder / "model.onnx", metadata(detector, "onnx", "fp32", size))
        write_openvino(read_graph(folder / "model.onnx"), folder / "model.xml", metadata(detector, "openvino", "fp32", size), half=False)
        given = list(inputs(detector, images, size))
        wanted = [run_graph(graph, *pixels) for pixels, _ in given]
        for runtime, ending in (("onnxruntime", ".onnx"), ("openvino", ".xml")):
            engine = open_file(folder / f"model{ending}", "cpu", 1)
            each = [
                compare(rows(ours), rows(run_file(engine, *pixels))) for ours, (pixels, rows) in zip(wanted, given, strict=True)
            ]  # fmt: skip
            found[f"{runtime}, {kind}"] = {
                "difference": float(f"{max(largest for largest, _ in each):.2g}"),
                "differing": sum(apart for _, apart in each),
                "queries": sum(ours["class_scores"].shape[1] for ours in wanted),
            }
    return found


def accuracies(run: str, data: str, split: str, folder: Path) -> Iterator[tuple[str, float]]:
    """AP of a run, and of its files."""
    detector = bq.load(run)
    yield "eager", detector.evaluate(data, split=split)["AP"]
    graph = ExportGraph(detector)
    models: dict[str, tuple[Any, int | None]] = {"fp32": (to_onnx(trace(graph, None)), None)}
    images = int8.calibration_images(data, None)
    models["int8"] = int8.quantize(models["fp32"][0], int8.inputs_of(images, detector.resize))
    for target, precision in PRECISIONS:
        model, used = models[precision if precision == "int8" else "fp32"]
        path = folder / ("model.onnx" if target == "onnx" else "model.xml")
        values = metadata(detector, target, precision, None, used)
        write_onnx(model, folder / "model.onnx", values)
        if target == "openvino":
            write_openvino(read_graph(folder / "model.onnx"), path, values, half=False)
        yield f"{target}, {precision}", ExportedDetector.open(path, device="cpu", threads=1).evaluate(data, split=split)["AP"]


def outputs_table(models: Mapping[str, Any]) -> str:
    kinds = list(next(iter(models.values())))
    lines = [f"| largest difference | {' | '.join(kinds)} | differing |", "|---" * (len(kinds) + 2) + "|"]
    for name, found in models.items():
        apart, total = (sum(found[kind][key] for kind in kinds) for key in ("differing", "queries"))
        lines.append(f"| {name} | {' | '.join(format(found[kind]['difference'], '.1e') for kind in kinds)} | {apart} of {total:,} |")
    return "\n".join(lines)


def accuracy_table(runs: Mapping[str, Any]) -> str:
    kinds = list(next(iter(runs.values())))
    rows = [f"| {name} | {' | '.join(format(found[kind], '.4f') for kind in kinds)} |" for name, found in runs.items()]
    return "\n".join([f"| AP | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="outputs of this model, or of the model of this run")
    parser.add_argument("--ap", nargs="+", metavar="RUN", help="AP of these runs; the last word is the data set")
    parser.add_argument("--split", default="val", help="split that AP is measured on (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    *runs, data = args.ap or [""]
    if trained := bool(args.only) and Path(args.only).is_dir():
        names = {f"{bq.load(args.only).name}, trained": args.only}
    elif runs:
        names = {f"{bq.load(run).name}, {Path(data).name}": run for run in runs}
    else:
        names = {name: name for name in [*bq.list_models(), *list_scene_models()] if args.only in (None, name)}
    images = [] if runs or args.only in list_scene_models() else photos()
    part = "runs" if runs else "models"
    for label, source in names.items():
        if label in measured()[part] and not args.again:
            continue
        started = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            if runs:
                found = dict(accuracies(source, data, args.split, Path(folder)))
            else:
                found = outputs(bq.load(source) if trained else detector_of(source), images, Path(folder))
        print(f"{label} ({time.process_time() - started:.0f} CPU s): {found}", flush=True)
        known = measured()  # another shell may have added to it
        known[part][label] = found
        write_json(RESULTS, {**known, "conditions": conditions()})
    known = measured()
    if known["models"]:
        put_into_page(DOCS / "export.md", outputs_table(known["models"]), "agreement")
    if known["runs"]:
        put_into_page(DOCS / "export.md", accuracy_table(known["runs"]), "AP")


def measured() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"models": {}, "runs": {}}


def conditions() -> dict[str, Any]:
    return {
        "processor": processor()["name"], "threads": 1, "images": IMAGES, "short side": SIDE, "fixed": list(FIXED), "scenes": list(SCENE),
        "preset": "tiny",
        "versions": {package: packages.version(package) for package in ("torch", "onnxruntime", "openvino")},
    }  # fmt: skip


if __name__ == "__main__":
    main()
