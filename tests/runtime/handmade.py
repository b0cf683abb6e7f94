"""An exported model made by hand, in the agreed format: fixed boxes, and scores that grow with the brightness of the image."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from boxquery.data.preprocessing import Preprocessing
from boxquery.runtime import seal
from boxquery.runtime.engines import openvino_core

QUERIES, CLASSES = 6, ["cat", None, "owl"]
_chance = np.random.default_rng(5)
#: cxcywh in 0..1, and what the mean of the pixels in 0..1 is multiplied with; a class without a name has 0
BOXES = np.concatenate([_chance.uniform(0.3, 0.7, (QUERIES, 2)), _chance.uniform(0.2, 0.7, (QUERIES, 2))], 1).astype(np.float32)
FACTORS = (_chance.uniform(0.2, 1.0, (QUERIES, 3)) * [1, 0, 1]).astype(np.float32)


def corners() -> np.ndarray:
    return np.concatenate([BOXES[:, :2] - BOXES[:, 2:] / 2, BOXES[:, :2] + BOXES[:, 2:] / 2], 1)


def record(**changes: Any) -> dict[str, Any]:
    return {
        "format": 1, "boxquery": "0.1.0", "model": "detr", "preset": "tiny", "classes": CLASSES, "ids": [17, 18, 90], "threshold": 0.1,
        "preprocessing": Preprocessing(64).to_dict(), "queries": QUERIES, "top_k": 10, "has_no_object": False, "size": None, "batch": None,
        "precision": "fp32", "opset": 18, "runtime": {"onnxruntime": ">=1.18"}, seal.KEY: seal.EMPTY, **changes,
    }  # fmt: skip


def write(path: Path, **changes: Any) -> Path:
    """An .onnx, or an .xml with its .bin; ``changes`` of the record, or ``record=None`` for a file that has none.

    The graph's own ``sides`` are those that the record says, unless they are given; ``crc32=None`` is a file from before check sums;
    ``factor`` of the scores.
    """
    sides, factor = changes.pop("sides", None), np.float32(changes.pop("factor", 1))
    values = changes.pop("record", record(**changes))
    height, width = sides or (values["size"] if values and values["size"] else ("height", "width"))
    constants = {
        "corners": corners()[None], "factors": factor * FACTORS[None], "most": np.float32(255), "count": np.array([QUERIES]),
        "order": np.array([1, 0, 1, 0]), "one": np.array([1]), "axes": np.array([1, 2, 3]), "last": np.array([2]),
        "four": np.array([1, 1, 4]),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats", "axes"], ["grey"], keepdims=1),
        helper.make_node("Squeeze", ["grey", "last"], ["grey3"]),
        helper.make_node("Div", ["grey3", "most"], ["mean"]),
        helper.make_node("Mul", ["factors", "mean"], ["class_scores"]),
        helper.make_node("Cast", ["sizes"], ["lengths"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["lengths", "order"], ["scale2"], axis=1),
        helper.make_node("Unsqueeze", ["scale2", "one"], ["scale"]),
        helper.make_node("Mul", ["corners", "scale"], ["query_boxes"]),
        helper.make_node("ReduceMax", ["class_scores", "last"], ["best"], keepdims=0),
        helper.make_node("ArgMax", ["class_scores"], ["kinds"], axis=2, keepdims=0),
        helper.make_node("TopK", ["best", "count"], ["scores", "queries"], axis=1),
        helper.make_node("GatherElements", ["kinds", "queries"], ["labels"], axis=1),
        helper.make_node("Unsqueeze", ["queries", "last"], ["rows1"]),
        helper.make_node("Tile", ["rows1", "four"], ["rows"]),
        helper.make_node("GatherElements", ["query_boxes", "rows"], ["boxes"], axis=1),
    ]
    inputs = [("images", TensorProto.UINT8, ["batch", 3, height, width]), ("sizes", TensorProto.INT64, ["batch", 2])]
    number, whole = TensorProto.FLOAT, TensorProto.INT64
    outputs = [
        ("boxes", number, ["batch", QUERIES, 4]), ("scores", number, ["batch", QUERIES]), ("labels", whole, ["batch", QUERIES]),
        ("queries", whole, ["batch", QUERIES]), ("class_scores", number, ["batch", QUERIES, 3]),
        ("query_boxes", number, ["batch", QUERIES, 4]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "handmade", *([helper.make_tensor_value_info(*each) for each in some] for some in (inputs, outputs)),
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    if path.suffix == ".onnx":
        if values is not None:
            helper.set_model_props(model, {"boxquery": json.dumps(values)})
        onnx.save(model, path)
    else:
        import openvino

        read = openvino_core().read_model(model.SerializeToString())
        if values is not None:
            read.set_rt_info(json.dumps(values), ["boxquery"])
        openvino.save_model(read, path, compress_to_fp16=False)
    if values is not None and seal.KEY in values and values[seal.KEY]:
        seal.seal(path)
    return path


def write_other(path: Path) -> None:
    """An .onnx that has a record of ours, and another graph."""
    (x, y) = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {"boxquery": json.dumps(record(crc32=None))})
    onnx.save(model, path)
