"""A traced graph as one ONNX file."""

from __future__ import annotations

import ast
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from boxquery.errors import UserError, one_line
from boxquery.export.graph import OUTPUTS
from boxquery.export.packages import OPSET
from boxquery.runtime import seal
from boxquery.runtime.record import KEY

#: bytes that one file of ONNX may have
MOST = 2**31 - 2**24


def to_onnx(program: ExportedProgram) -> Any:
    """An ``onnx_ir.Model`` whose nodes are called as their modules, without the traces of this machine's folders that torch writes into it.
    Raises ``UserError``."""
    names = [str(name) for name in program.graph_signature.user_inputs]
    try:
        with warnings.catch_warnings(), silent("torch.onnx", "onnxscript", "onnx_ir"):
            warnings.simplefilter("ignore")
            made = torch.onnx.export(
                program, dynamo=True, opset_version=OPSET, input_names=names, output_names=OUTPUTS, verbose=False, optimize=True
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        raise UserError(f"torch cannot write the model as ONNX ({type(cause).__name__}: {one_line(cause)[:300]})") from error
    assert made is not None
    model = made.model
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"{_module(node)}/{node.op_type}_{number}"
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return model


def _module(node: Any) -> str:
    """The innermost module in which a node was traced, as ``model.layers.0.ffn.linear1``; empty where torch does not say."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
    return str(scopes[-2]) if len(scopes) > 1 else ""


@contextmanager
def silent(*names: str) -> Iterator[None]:
    """Loggers without their warnings, which are of use to those who write exporters alone."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def check_fits(model: Any) -> None:
    """Raise ``UserError`` for an ``onnx_ir.Model`` that is too large for one file."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    if size > MOST:
        raise UserError(f"the weights have {size / 1e9:.1f} GB, and one file of ONNX holds 2; use --to openvino")


def write_onnx(model: Any, path: Path, values: dict[str, Any]) -> None:
    """Write an ``onnx_ir.Model`` and its metadata. Raises ``UserError`` if it is too large for one file."""
    import onnx_ir

    check_fits(model)
    model.metadata_props[KEY] = json.dumps({**values, seal.KEY: seal.EMPTY})
    onnx_ir.save(model, path)
    seal.seal(path)
