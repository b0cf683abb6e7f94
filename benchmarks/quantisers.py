"""int8 by onnxruntime's `quantize_static`, which export uses, and by nncf on OpenVINO's graph: AP and CPU time of a trained run in either.

    python benchmarks/quantisers.py RUN DATA [--size 480x640]      # pip install nncf

The same nodes stay in float32 and the same 100 training images give the ranges. AP is that of the split val; milliseconds are the median
CPU time of a call on one image of it, one thread, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import onnx_ir
import torch

import boxquery as bq
from boxquery.api import ExportedDetector
from boxquery.data.open import open_data
from boxquery.data.preprocessing import Resize
from boxquery.export import int8
from boxquery.export.graph import ExportGraph, trace
from boxquery.export.metadata import metadata
from boxquery.export.onnx import to_onnx, write_onnx
from boxquery.export.openvino import read_graph, write_openvino
from boxquery.export_command import parse_size
from exported import in_turn


def by_nncf(path: Path, inputs: list[int8.ReadInputs]) -> Any:
    """An OpenVINO model in int8, of an ONNX file in float32."""
    import nncf

    graph = read_graph(path)
    products = [node.get_friendly_name() for node in graph.get_ops() if node.get_type_name() in ("MatMul", "Convolution")]
    kept = [name for name in products if int8.FLOAT.search(name)]
    scope, data = nncf.IgnoredScope(names=kept), nncf.Dataset([read() for read in inputs])
    return nncf.quantize(graph, data, subset_size=len(inputs), model_type=nncf.ModelType.TRANSFORMER, ignored_scope=scope)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--size", type=parse_size, help="of every input (default: any)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    detector = bq.load(args.run)
    resize = Resize(detector.preprocessing, args.size)
    inputs = int8.inputs_of(int8.calibration_images(args.data, None), resize)
    with tempfile.TemporaryDirectory() as folder:
        plain, small = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        values = metadata(detector, "onnx", "fp32", args.size)
        write_onnx(to_onnx(trace(ExportGraph(detector), args.size)), plain, values)
        in_int8 = values | {"precision": "int8"}
        write_onnx(int8.quantize(onnx_ir.load(plain), inputs)[0], small, in_int8)
        files = {"onnxruntime, fp32": plain, "onnxruntime, int8": small}
        graphs = {"fp32": (read_graph(plain), values), "int8": (read_graph(small), in_int8)}
        graphs["int8 by nncf"] = by_nncf(plain, inputs), in_int8
        for name, (graph, record) in graphs.items():
            files[f"openvino, {name}"] = Path(folder) / f"{name[-4:]}.xml"
            write_openvino(graph, files[f"openvino, {name}"], record, half=False)
        opened = {name: ExportedDetector.open(path, device="cpu", threads=1) for name, path in files.items()}
        image = open_data(args.data).split("val").read(0)
        pixels, sizes = resize(image)[None], np.array([[image.height, image.width]])
        outputs = ("boxes", "scores", "labels")
        times = in_turn({name: lambda each=each: each.engine.run(outputs, pixels, sizes) for name, each in opened.items()}, 15)
        for name, each in opened.items():
            row = {"variant": name, "ms": round(float(np.median(times[name])), 2), "AP": round(each.evaluate(args.data)["AP"], 4)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
