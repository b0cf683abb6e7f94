"""What runs an exported graph: onnxruntime for .onnx, OpenVINO for .xml. Neither is imported before a file needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from boxquery.errors import UserError, one_line
from boxquery.runtime.record import KEY, Record
from boxquery.runtime.seal import check_seal

#: names of outputs, images uint8 [B, 3, h, w] and sizes int64 [B, 2], or of scenes images uint8 [B, V, 3, h, w] and lidar2img float32
#: [B, V, 4, 4] -> these outputs
Run = Callable[[Sequence[str], np.ndarray, np.ndarray], list[np.ndarray]]
#: how OpenVINO computes on a CPU; left to itself it takes bf16 for a graph in fp32 wherever the processor has it. fp16 is how weights
#: are stored
_OPENVINO_PRECISION = {"fp32": "f32", "fp16": "f32", "bf16": "bf16", "int8": "f32"}
_LONGEST = 200
_MOST_THREADS = 1024
#: a graph's inputs and outputs that are used: type as NumPy calls it, and rank
_INPUTS = {"images": ("uint8", 4), "sizes": ("int64", 2)}
_SCENE_INPUTS = {"images": ("uint8", 5), "lidar2img": ("float32", 4)}
_OUTPUTS = {
    "boxes": ("float32", 3), "scores": ("float32", 2), "labels": ("int64", 2), "class_scores": ("float32", 3),
    "query_boxes": ("float32", 3),
}  # fmt: skip
#: what OpenVINO and onnxruntime call these types
_TYPES = {"u8": "uint8", "i64": "int64", "f32": "float32", "tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(float)": "float32"}
#: name of an input or output -> its type, and its shape with None for a dimension that may vary
Ports = dict[str, tuple[str, list[int | None]]]


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
        what = "not a file" if path.exists() else "no such file"
        raise UserError(f"{path}: {what}; give a model that boxquery export has written")
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device!r}: an exported model runs on auto, cpu or cuda")
    return openers[path.suffix.lower()](path, device, _threads(threads))


def _threads(given: int | None) -> int:
    """Threads of an operator: as given, else as OMP_NUM_THREADS says; 0 leaves it to the runtime."""
    if given is not None:
        if not isinstance(given, int) or isinstance(given, bool) or not 1 <= given <= _MOST_THREADS:
            raise UserError(f"threads={given!r}: must be a whole number from 1 to {_MOST_THREADS}")
        return given
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isdecimal() and (len(first) > 4 or int(first) > _MOST_THREADS):
        raise UserError(f"OMP_NUM_THREADS={first[:40]}: an exported model runs on at most {_MOST_THREADS} threads; set it to less")
    return int(first) if first.isdecimal() else 0


def _check_graph(path: Path, record: Record, inputs: Ports, outputs: Ports) -> None:
    """Raise ``UserError`` for a graph that is not of the agreed inputs and outputs, or not as its record says."""
    needed = _inputs(record)
    for kind, wanted, there in (("input", needed, inputs), ("output", _OUTPUTS, outputs)):
        for name, (type_, rank) in wanted.items():
            if name not in there or there[name][0] != type_ or len(there[name][1]) != rank:
                raise UserError(f"{path}: its graph has no {kind} {name!r} of {type_} and {rank} dimensions; export it again from its run")
    if other := sorted(inputs.keys() - needed.keys()):
        raise UserError(f"{path}: its graph has a further input {other[0]!r}; export it again from its run")
    sides, said = inputs["images"][1][-2:], record.size or (None, None)
    if any(side is not None and side != length for side, length in zip(sides, said, strict=True)):
        height, width = (side or "any" for side in sides)
        size = list(record.size) if record.size else "null"
        raise UserError(f"{path}: its record says size {size}, its graph {height} x {width}; export it again from its run")
    known = outputs["class_scores"][1][2]
    if known not in (None, len(record.classes)):
        raise UserError(f"{path}: its record names {len(record.classes)} classes, its graph has {known}; export it again from its run")


def _inputs(record: Record) -> dict[str, tuple[str, int]]:
    return _INPUTS if record.scenes is None else _SCENE_INPUTS


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
    check_seal(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    broken = (
        errors.InvalidProtobuf, errors.InvalidGraph, errors.InvalidArgument, errors.Fail, errors.NoModel, errors.NotImplemented,
        errors.RuntimeException, errors.NoSuchFile, errors.EPFail,
    )  # fmt: skip
    try:
        # with the processor alone there is nothing to fall back to, but onnxruntime would print that it does
        session = onnxruntime.InferenceSession(path, options, providers=providers, enable_fallback=len(providers) > 1)
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
    except (*broken, RuntimeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {runtime} cannot open it ({one_line(error)[:_LONGEST]}); copy or export it again") from error
    if device == "cuda" and session.get_providers()[0] != providers[0]:
        raise UserError(f"device='cuda': {runtime} could not load its CUDA provider (a driver or library is missing); use cpu")

    def run(names: Sequence[str], images: np.ndarray, beside: np.ndarray) -> list[np.ndarray]:
        try:
            return [np.asarray(values) for values in session.run(names, dict(zip(inputs, (images, beside), strict=True)))]
        except broken as error:
            raise UserError(f"{path}: {runtime} failed on images of {_shape(images)} ({one_line(error)[:_LONGEST]})") from error

    record = Record.read(text, path)
    inputs = list(_inputs(record))
    _check_graph(path, record, _onnx_ports(session.get_inputs()), _onnx_ports(session.get_outputs()))
    return Engine(record, run, runtime, "cuda" if session.get_providers()[0].startswith("CUDA") else "cpu")


def _onnx_ports(ports: Sequence[Any]) -> Ports:
    return {
        str(port.name): (_TYPES.get(port.type, str(port.type)), [length if isinstance(length, int) else None for length in port.shape])
        for port in ports
    }


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
    if _root(path) != "net":  # what is not its own, OpenVINO would try to read as a model of TensorFlow
        raise UserError(f"{path}: not a model of OpenVINO; give one that boxquery export has written")
    check_seal(path)
    core = openvino_core()
    try:
        model = core.read_model(path)
        record = Record.read(str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else None, path)
        properties: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _OPENVINO_PRECISION[record.precision],
        }
        if threads:
            properties["INFERENCE_NUM_THREADS"] = threads
        _check_graph(path, record, _openvino_ports(model.inputs), _openvino_ports(model.outputs))
        request = core.compile_model(model, "CPU", properties).create_infer_request()
    except RuntimeError as error:
        raise UserError(f"{path}: {runtime} cannot open it ({reason(error)}); copy or export both files again") from error

    inputs = list(_inputs(record))

    def run(names: Sequence[str], images: np.ndarray, beside: np.ndarray) -> list[np.ndarray]:
        try:
            found = request.infer(dict(zip(inputs, (images, beside), strict=True)))
        except RuntimeError as error:
            raise UserError(f"{path}: {runtime} failed on images of {_shape(images)} ({reason(error)})") from error
        return [found[name] for name in names]

    return Engine(record, run, runtime, "cpu")


@cache
def openvino_core() -> Any:
    """The one that every file is read and compiled by. With the last reference to a core OpenVINO unloads its libraries, whose threads may
    still run, and the process crashes some time later."""
    import openvino

    return openvino.Core()


def _root(path: Path) -> str:
    """What an XML file's outermost element is called. Raises ``UserError`` for a file that is no XML, or not all of it."""
    names: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: names.append(name) if not names else None
    try:
        with open(path, "rb") as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        raise UserError(f"{path}: not a model of OpenVINO, or damaged ({error}); copy or export it again") from error
    return names[0]


def _openvino_ports(ports: Sequence[Any]) -> Ports:
    found: Ports = {}
    for port in ports:
        type_ = str(port.element_type.get_type_name())
        shape = [length.get_length() if length.is_static else None for length in port.partial_shape]
        for name in port.names:
            found[name] = _TYPES.get(type_, type_), shape
    return found


def reason(error: Exception) -> str:
    """OpenVINO's last line that is not about its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Exception from")]
    return lines[-1][:_LONGEST] if lines else type(error).__name__


def _shape(images: np.ndarray) -> str:
    return "x".join(map(str, images.shape))
