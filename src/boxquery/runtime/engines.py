"""What runs an exported graph: onnxruntime for .onnx, OpenVINO for .xml. Neither is imported before a file needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from boxquery.errors import UserError, one_line
from boxquery.runtime.record import KEY, Record

#: names of outputs, images uint8 [B, 3, h, w], sizes int64 [B, 2] -> these outputs
Run = Callable[[Sequence[str], np.ndarray, np.ndarray], list[np.ndarray]]
#: how OpenVINO computes on a CPU; left to itself it takes bf16 for a graph in fp32 wherever the processor has it. fp16 is how weights
#: are stored
_OPENVINO_PRECISION = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}
_LONGEST = 200


@dataclass(frozen=True)
class Engine:
    """An opened file: what it says of itself, how to run it, and by what, on which device."""

    record: Record
    run: Run
    runtime: str
    device: str


def open_file(path: Path, device: str, threads: int | None) -> Engine:
    """Open a file by its ending; see ``boxquery.runtime.load``."""
    openers = {".onnx": _open_onnx, ".xml": _open_openvino}
    if path.suffix.lower() not in openers:
        raise UserError(f"{path}: must be an exported model, .onnx or .xml; boxquery export makes one from a run")
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a model that boxquery export has written")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device!r}: an exported model runs on auto, cpu or cuda")
    return openers[path.suffix.lower()](path, device, _threads(threads))


def _threads(given: int | None) -> int:
    """Threads of an operator: as given, else as OMP_NUM_THREADS says; 0 leaves it to the runtime."""
    if given is not None:
        if given < 1:
            raise UserError(f"threads={given}: must be at least 1")
        return given
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def _open_onnx(path: Path, device: str, threads: int) -> Engine:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors  # pyright: ignore[reportAttributeAccessIssue]
    except ImportError as error:
        raise UserError(f"{path}: needs the package onnxruntime: pip install onnxruntime ({one_line(error)})") from error
    runtime = f"onnxruntime {onnxruntime.__version__}"
    there = onnxruntime.get_available_providers()
    providers = ["CPUExecutionProvider"]
    if device != "cpu" and "CUDAExecutionProvider" in there:
        providers.insert(0, "CUDAExecutionProvider")
    elif device == "cuda":
        raise UserError(f"device='cuda': this {runtime} has no CUDA provider; pip install onnxruntime-gpu in its place, or use cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    broken = (
        errors.InvalidProtobuf, errors.InvalidGraph, errors.InvalidArgument, errors.Fail, errors.NoModel, errors.NotImplemented,
        errors.RuntimeException, errors.NoSuchFile, errors.EPFail,
    )  # fmt: skip
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
    except (*broken, RuntimeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {runtime} cannot open it ({one_line(error)[:_LONGEST]}); copy or export it again") from error
    if device == "cuda" and session.get_providers()[0] != providers[0]:
        raise UserError(f"device='cuda': {runtime} could not load its CUDA provider (a driver or library is missing); use cpu")

    def run(names: Sequence[str], images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        try:
            return [np.asarray(values) for values in session.run(names, {"images": images, "sizes": sizes})]
        except broken as error:
            raise UserError(f"{path}: {runtime} failed on images of {_shape(images)} ({one_line(error)[:_LONGEST]})") from error

    return Engine(Record.read(text, path), run, runtime, "cuda" if session.get_providers()[0].startswith("CUDA") else "cpu")


def _open_openvino(path: Path, device: str, threads: int) -> Engine:
    try:
        import openvino
    except ImportError as error:
        raise UserError(f"{path}: needs the package openvino: pip install openvino ({one_line(error)})") from error
    runtime = f"openvino {openvino.__version__.partition('-')[0]}"
    if device == "cuda":
        raise UserError(f"device='cuda': {runtime} has no CUDA; use cpu, or export to .onnx")
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise UserError(f"{path}: its weights are missing: {weights.name} must lie beside it")
    with open(path, "rb") as file:
        head = file.read(4096)
    if b"<net " not in head:  # what is not its own, OpenVINO would try to read as a model of TensorFlow
        raise UserError(f"{path}: not a model of OpenVINO; give one that boxquery export has written")
    core = openvino.Core()
    try:
        model = core.read_model(path)
        record = Record.read(str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else None, path)
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISION[record.precision],
        }
        if threads:
            properties["INFERENCE_NUM_THREADS"] = threads
        request = core.compile_model(model, "CPU", properties).create_infer_request()
    except RuntimeError as error:
        raise UserError(f"{path}: {runtime} cannot open it ({reason(error)}); copy or export both files again") from error

    def run(names: Sequence[str], images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        try:
            found = request.infer({"images": images, "sizes": sizes})
        except RuntimeError as error:
            raise UserError(f"{path}: {runtime} failed on images of {_shape(images)} ({reason(error)})") from error
        return [found[name] for name in names]

    return Engine(record, run, runtime, "cpu")


def reason(error: Exception) -> str:
    """OpenVINO's last line that is not about its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[-1][:_LONGEST] if lines else type(error).__name__


def _shape(images: np.ndarray) -> str:
    return "x".join(map(str, images.shape))
