"""Inference of our exported models beside `transformers`: its eager model, and its own model as `torch.onnx.export` makes it.

    python benchmarks/exported.py                      # each model that transformers has; resumable, and part of `make bench`
    python benchmarks/exported.py --quick --only detr  # images of 160 x 192 pixels, three rounds; nothing is kept
    python benchmarks/exported.py --show               # only the table

Published architecture (ResNet-50; D-FINE L), the same random weights on both sides, one image of 480 x 640 pixels, one thread, every file
for this size alone. All of a model's variants are loaded in one process and run in turn, in another order every round; milliseconds are the
median CPU time, and `faster` is by how much transformers' eager model is slower, the median over rounds, with quartiles. Ours take uint8
pixels and end with boxes in pixels, so normalisation and post-processing are in their time; those of transformers take normalised floats
and end with logits. int8 is quantised on real images. With random weights there is no AP to lose: `scores` and `boxes` are how far those
of our files are from the eager model's on real images, the 95th percentile over queries by index (of models that choose proposals,
those that tie change places). What a precision costs in AP is measured where there are trained weights: benchmarks/agreement.py.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnx_ir
import onnxruntime
import openvino
import torch
import transformers
from torch import Tensor, nn

from boxquery.benchmark.machine import processor
from boxquery.data.preprocessing import Preprocessing, Resize
from boxquery.detector import Detector
from boxquery.export import int8
from boxquery.export.onnx import write_onnx
from boxquery.export.writer import export
from boxquery.files import write_json
from boxquery.models import preset
from boxquery.models.interface import Model
from boxquery.official.transformers import build
from boxquery.official.transformers.config import Config
from boxquery.runtime.engines import openvino_core
from boxquery.runtime.exported import ExportedDetector
from boxquery.runtime.record import KEY
from cells import DATASETS, DOCS, put_into_page

RESULTS = DOCS / "experiments" / "results" / "exported.json"
#: our model -> the beginning of the names in transformers
PEERS = {
    "detr": "Detr",
    "conditional-detr": "ConditionalDetr",
    "deformable-detr": "DeformableDetr",
    "dab-detr": "DabDetr",
    "rt-detr": "RTDetr",
    "rt-detr-v2": "RTDetrV2",
    "d-fine": "DFine",
}  # fmt: skip
#: those of transformers whose default backbone is the published one
REAL_TIME = ("rt-detr", "rt-detr-v2", "d-fine")
#: where exported files are kept, since making them takes longer than measuring
FILES = Path("runs/exported")
CLASSES = 80
SIZE, QUICK = (480, 640), (160, 192)
ROUNDS, QUICK_ROUNDS = 5, 3
EAGER = "transformers, eager"
#: how OpenVINO computes; it reads the same graph as from the .xml that export makes of it
HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
#: real images, on which int8 measures ranges and outputs are compared, and how many
PHOTOS, PHOTO_COUNT = DATASETS / "raccoon", 8
#: of the exported file, what prediction needs
OUTPUTS = ["boxes", "scores", "labels"]
#: and what is compared
COMPARED = ["class_scores", "query_boxes"]
Run = Callable[..., Any]


def peer_of(name: str) -> nn.Module:
    """The model of transformers with random weights, as published."""
    torch.manual_seed(0)
    backbone = {} if name in REAL_TIME else {"use_timm_backbone": True, "backbone": "resnet50", "use_pretrained_backbone": False}
    settings = getattr(transformers, f"{PEERS[name]}Config")(num_labels=CLASSES, auxiliary_loss=False, **backbone)
    return getattr(transformers, f"{PEERS[name]}ForObjectDetection")(settings).eval()


def ours_of(peer: Any) -> Model:
    """Our model with the same weights."""
    return build(Config(peer.config.to_dict(), "config"), peer.state_dict(), CLASSES, "peer")[0].eval()


class Graph(nn.Module):
    """What of the model of transformers is exported."""

    def __init__(self, peer: nn.Module):
        super().__init__()
        self.peer = peer

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        out = self.peer(pixel_values=images)
        return out.logits, out.pred_boxes


def eager(model: nn.Module, *given: Any, **named: Any) -> Run:
    def run() -> Any:
        with torch.inference_mode():
            return model(*given, **named)

    return run


def export_theirs(peer: nn.Module, images: Tensor, path: Path) -> None:
    """The model of transformers as ONNX, for images of this size; by torch's older exporter where the newer fails, as with D-FINE and
    RT-DETRv2 in torch 2.14 (no ONNX function for ``aten._is_all_true``)."""
    unfinished, graph = path.with_suffix(".new"), Graph(peer).eval()
    try:
        program = torch.onnx.export(graph, (images,), dynamo=True, opset_version=20, verbose=False)
    except torch.onnx.OnnxExporterError:
        torch.onnx.export(graph, (images,), str(unfinished), dynamo=False, opset_version=17)
    else:
        assert program is not None
        program.save(unfinished)
    unfinished.rename(path)


def in_onnxruntime(path: Path, given: Sequence[np.ndarray], outputs: list[str] | None = None) -> Run:
    """Runs on what is ``given``, or on what the call gives."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return lambda other=given: session.run(outputs, dict(zip(names, other, strict=True)))


def in_openvino(path: Path, given: Sequence[np.ndarray], outputs: list[str], hint: str) -> Run:
    core = openvino_core()
    model = core.read_model(path)
    kept = [next(port for port in model.outputs if name in port.get_names()) for name in outputs]
    part = openvino.Model([port.get_node() for port in kept], model.get_parameters(), "part")
    properties = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = core.compile_model(part, "CPU", properties).create_infer_request()
    return lambda other=given: [values.copy() for values in request.infer(list(other), share_outputs=True).values()]


def variants(name: str, size: tuple[int, int], files: Path) -> Iterator[tuple[str, Run]]:
    """What is measured of a model, by name; files that are there are not made again."""
    peer = peer_of(name)
    model, images = ours_of(peer), torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    yield EAGER, eager(peer, pixel_values=images)
    yield (
        "transformers' ONNX, onnxruntime",
        in_onnxruntime(
            made(files / f"{name}-transformers-{size[0]}x{size[1]}.onnx", lambda path: export_theirs(peer, images, path)), [images.numpy()]
        ),
    )
    yield "boxquery, eager", eager(model, images, last_only=True)
    recipe = preset(name).recipe
    preprocessing = Preprocessing.of(min(size), square=recipe.square, normalize=recipe.normalize)
    detector = Detector(model, [f"class {i}" for i in range(CLASSES)], range(CLASSES), preprocessing)
    pixels = [np.zeros((1, 3, *size), np.uint8), np.array([size], np.int64)]
    path = made(ours_at(name, size, files, "fp32"), lambda path: export(detector, path, size=size))
    small = made(ours_at(name, size, files, "int8"), lambda small: quantized(path, small, size))
    for precision, each in (("fp32", path), ("int8", small)):
        yield f"boxquery, onnxruntime {precision}", in_onnxruntime(each, pixels, OUTPUTS)
    for precision, hint in HINTS.items():
        yield f"boxquery, openvino {precision}", in_openvino(small if precision == "int8" else path, pixels, OUTPUTS, hint)


def ours_at(name: str, size: tuple[int, int], files: Path, precision: str) -> Path:
    return files / f"{name}-boxquery-{size[0]}x{size[1]}{'-int8' * (precision == 'int8')}.onnx"


def quantized(path: Path, small: Path, size: tuple[int, int]) -> None:
    """An exported file in int8, without tracing the model again."""
    resize = Resize(ExportedDetector.open(path, device="cpu").preprocessing, size)
    model, used = int8.quantize(onnx_ir.load(path), int8.inputs_of(int8.calibration_images(PHOTOS, PHOTO_COUNT), resize))
    values = json.loads(model.metadata_props[KEY])
    write_onnx(model, small, {**values, "precision": "int8", "calibration_images": used})


def differences(name: str, size: tuple[int, int], files: Path) -> dict[str, dict[str, float]]:
    """By variant of ours, how far ``scores`` and normalised ``boxes`` are from those of onnxruntime in fp32, which are the model's."""
    opened = {f"boxquery, onnxruntime {each}": in_onnxruntime(ours_at(name, size, files, each), [], COMPARED) for each in ("fp32", "int8")}
    opened |= {
        f"boxquery, openvino {each}": in_openvino(ours_at(name, size, files, each), [], COMPARED, hint) for each, hint in HINTS.items()
    }
    resize = Resize(Preprocessing(min(size)), size)
    given = [[resize(read())[None], np.array([[1, 1]])] for read in int8.calibration_images(PHOTOS, PHOTO_COUNT)[::2]]
    wanted, *_ = ([run(each) for each in given] for run in opened.values())
    return {variant: _far([run(each) for each in given], wanted) for variant, run in opened.items()}


def _far(found: Sequence[Sequence[np.ndarray]], wanted: Sequence[Sequence[np.ndarray]]) -> dict[str, float]:
    apart = [[np.abs(a - b).max(-1) for a, b in zip(one, other, strict=True)] for one, other in zip(found, wanted, strict=True)]
    return {key: float(f"{np.quantile([each[i] for each in apart], 0.95):.2g}") for i, key in enumerate(("scores", "boxes"))}


def made(path: Path, make: Callable[[Path], Any]) -> Path:
    """A file, made if it is not there."""
    if not path.exists():
        make(path)
    return path


def in_turn(runs: Mapping[str, Run], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each, in an order that rotates."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    gc.disable()
    for number in range(-1, rounds):  # the first is not counted
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.process_time()
            runs[name]()
            if number >= 0:
                times[name].append(1000 * (time.process_time() - started))
        gc.collect()
    gc.enable()
    return times


def rows(times: Mapping[str, list[float]], far: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    found = []
    for name, own in times.items():
        faster = [base / each for base, each in zip(times[EAGER], own, strict=True)]
        low, middle, high = statistics.quantiles(faster, n=4)
        found.append({
            "variant": name,
            "ms": round(statistics.median(own), 1),
            "faster": round(middle, 2), "low": round(low, 2), "high": round(high, 2), **far.get(name, {}),
        })  # fmt: skip
    return found


def measure(name: str, quick: bool, files: Path) -> list[dict[str, Any]]:
    """Rows of one model."""
    files.mkdir(parents=True, exist_ok=True)
    size, rounds = (QUICK, QUICK_ROUNDS) if quick else (SIZE, ROUNDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = in_turn(dict(variants(name, size, files)), rounds)
        return rows(times, differences(name, size, files))


def show(name: str, found: Sequence[Mapping[str, Any]]) -> None:
    print(f"\n{name:42}{'CPU ms':>10}{'faster':>9}   quartiles      scores and boxes differ by")
    for row in found:
        far = f"   {row['scores']:.1e} {row['boxes']:.1e}" if "scores" in row else ""
        print(f"  {row['variant']:40}{row['ms']:10.1f}{row['faster']:8.2f}x   {row['low']:.2f} .. {row['high']:.2f}{far}", flush=True)


def table(models: Mapping[str, Any]) -> str:
    """Markdown: a row per model, and by variant CPU milliseconds and how many times faster than transformers' eager model it is."""
    heads = [row["variant"] for row in max(models.values(), key=len)]
    lines = [f"| {' | '.join(['CPU ms', *heads])} |", "|---" * (len(heads) + 1) + "|"]
    for name in PEERS:
        there = {row["variant"]: f"{row['ms']:.0f} ({row['faster']:.2f}x)" for row in models.get(name, ())}
        cells = [there.get(head, "not measured") for head in heads]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small images, three rounds, and nothing is kept")
    parser.add_argument("--only", choices=list(PEERS), help="one model")
    parser.add_argument("--files", type=Path, default=FILES, help="where exported files are kept (default: %(default)s)")
    parser.add_argument("--again", action="store_true", help="measure what is there, too")
    parser.add_argument("--show", action="store_true", help="only print what is kept")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() and not args.quick else {"models": {}}
    for name in PEERS:
        if args.only in (None, name) and not args.show and (args.again or name not in known["models"]):
            known["models"][name] = measure(name, args.quick, args.files)
            if not args.quick:
                write_json(RESULTS, {"conditions": conditions(), "models": known["models"]})
        if name in known["models"]:
            show(name, known["models"][name])
    if not args.quick and known["models"]:
        put_into_page(DOCS / "performance.md", table(known["models"]), "exported")


def conditions() -> dict[str, Any]:
    packages = ("torch", "transformers", "onnxruntime", "openvino")
    return {
        "processor": processor()["name"], "threads": 1, "size": list(SIZE), "batch": 1, "rounds": ROUNDS, "warm_up": 1,
        "versions": {package: metadata.version(package) for package in packages},
    }  # fmt: skip


if __name__ == "__main__":
    main()
