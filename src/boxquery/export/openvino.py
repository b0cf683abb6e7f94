"""An ONNX file as OpenVINO's pair of files, .xml and .bin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from boxquery.errors import UserError
from boxquery.runtime import seal
from boxquery.runtime.engines import openvino_core, reason
from boxquery.runtime.record import KEY


def read_graph(path: Path) -> Any:
    """An ``openvino.Model`` of a file. By the core, not by ``convert_model``, which reports its use to OpenVINO's makers. Raises
    ``UserError``."""
    try:
        return openvino_core().read_model(path)
    except RuntimeError as error:
        raise UserError(f"OpenVINO cannot read the model's graph ({reason(error)}); use --to onnx, or report it") from error


def write_openvino(model: Any, path: Path, values: dict[str, Any], *, half: bool) -> None:
    """Write an ``openvino.Model`` and its metadata; ``half`` stores the weights in 16 bits. Raises ``UserError``
    where the operating system refuses, as when the disk is full."""
    import openvino

    model.set_rt_info(json.dumps({**values, seal.KEY: seal.EMPTY}), [KEY])
    try:
        openvino.save_model(model, path, compress_to_fp16=half)
    except RuntimeError as error:
        raise UserError(f"{path.name}: OpenVINO cannot write it ({reason(error)}); make room, or write elsewhere") from error
    seal.seal(path)
