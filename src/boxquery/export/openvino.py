"""An ONNX file as OpenVINO's pair of files, .xml and .bin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from boxquery.runtime.record import KEY


def read_graph(path: Path) -> Any:
    """An ``openvino.Model`` of a file. By the core, not by ``convert_model``, which reports its use to OpenVINO's makers."""
    import openvino

    return openvino.Core().read_model(path)


def write_openvino(model: Any, path: Path, values: dict[str, Any], *, half: bool) -> None:
    """Write an ``openvino.Model`` and its metadata; ``half`` stores the weights in 16 bits."""
    import openvino

    model.set_rt_info(json.dumps(values), [KEY])
    openvino.save_model(model, path, compress_to_fp16=half)
