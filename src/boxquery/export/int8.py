"""Static quantisation: large matrix products and convolutions in 8 bits, by ranges that activations have on images of the user's own."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxquery.data.dataset import Data
from boxquery.data.images import read_image
from boxquery.data.open import open_data
from boxquery.data.preprocessing import Resize
from boxquery.errors import UserError, count, one_line
from boxquery.export.onnx import check_fits, silent
from boxquery.export.packages import CALIBRATION_IMAGES
from boxquery.predict.sources import find_images
from boxquery.progress import Progress, note

ReadImage = Callable[[], Image.Image]
#: modules, of a model as ``boxquery.models`` builds it, whose products stay in float32: they make coordinates, or are small. Prediction
#: heads, proposals and other starts of queries; where queries look (references, positions, sampling points and their weights); weights that
#: one activation has for another
FLOAT = re.compile(
    r"^model\.(heads|queries|place|encoder\.place|tokens)\b|"
    r"\.(sampling_offsets|attention_weights|points|feature_weights|position_weights|query_position|key_position|dynamic_layer|gates)\b"
)
#: operators that have weights; and those between them in a backbone, which would else convert to float32 and back
_PRODUCTS, _BETWEEN = ("Conv", "MatMul"), ("Add", "Relu", "MaxPool")


def calibration_images(source: str | Path | Data, wanted: int | None) -> list[ReadImage]:
    """Images on which ranges are measured, evenly spaced over the training split of a data set (or its first one with images), or over all
    images of a folder. Raises ``UserError`` where there are none."""
    if isinstance(source, Data):
        found = _of_data(source)
    else:
        try:
            found = _of_data(open_data(source))
        except UserError as error:
            sources, notes = find_images([str(source)])
            found = [partial(read_image, each.path) for each in sources]
            note(f"--calibrate: all {count(len(found), 'image')} of the folder, since its annotations cannot be used ({error})")
            for line in notes:
                note(line)
    wanted = min(wanted or CALIBRATION_IMAGES, len(found))
    return [found[i * len(found) // wanted] for i in range(wanted)]


def _of_data(data: Data) -> list[ReadImage]:
    name = next((name for name in ("train", *data.splits) if name in data.splits and len(data.splits[name])), "train")
    split = data.split(name)
    return [partial(split.read, i) for i in range(len(split))]


def quantize(model: Any, images: list[ReadImage], resize: Resize) -> tuple[Any, int]:
    """An ``onnx_ir.Model`` in 8 bits (QDQ), of one in float32, and how many images could be read.

    Weights are signed and have a scale per channel, activations are unsigned and have one each, from their least and largest value. Outside
    the backbone, what does not multiply by weights (attention, norms, softmax, sampling, boxes, post-processing) stays in float32, as does
    what ``FLOAT`` names.

    Args:
        resize: the exported file's own.

    Raises ``UserError`` where no image can be read, or onnxruntime cannot quantise the graph.
    """
    import onnx_ir
    import onnxruntime
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    check_fits(model)
    with tempfile.TemporaryDirectory() as folder, silent("", "onnx_ir"):
        float32, folded, int8 = (Path(folder) / f"{name}.onnx" for name in ("float32", "folded", "int8"))
        onnx_ir.save(model, float32)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 3
        # its constants are computed; products and additions stay apart, so that they keep their names
        onnxruntime.InferenceSession(float32, options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"])
        chosen = in_8_bits(onnx_ir.load(folded))
        with Progress("calibrate", len(images)) as bar:
            inputs = _Inputs(images, resize, bar)
            try:
                quantize_static(  # which asks a reader for ``get_next`` alone
                    folded, int8, inputs,  # pyright: ignore[reportArgumentType]
                    op_types_to_quantize=[*_PRODUCTS, *_BETWEEN], nodes_to_quantize=chosen, per_channel=True,
                    quant_format=QuantFormat.QDQ, weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
                )  # fmt: skip
            except (ValueError, RuntimeError) as error:
                if not inputs.read:
                    raise UserError("--calibrate: none of the images could be read; give others") from error
                what = f"onnxruntime {onnxruntime.__version__} cannot quantise the model"
                raise UserError(f"{what} ({one_line(error)[:200]}); use another precision, or report it") from error
        quantised = onnx_ir.load(int8)
        onnx_ir.external_data.load_to_model(quantised)
    return quantised, inputs.read


def in_8_bits(model: Any) -> list[str]:
    """Names of the nodes of an ``onnx_ir.Model`` that are to be in 8 bits: products by weights, and what lies between the backbone's."""
    weights = model.graph.initializers
    products = [node for node in model.graph if node.op_type in _PRODUCTS and node.inputs[1] is not None and node.inputs[1].name in weights]
    between = [node for node in model.graph if node.op_type in _BETWEEN and node.name.startswith("model.backbone.")]
    return [node.name for node in products + between if not FLOAT.search(node.name)]


class _Inputs:
    """Inputs of the graph, image by image, as onnxruntime asks for them; images that cannot be read are named and left out."""

    def __init__(self, images: list[ReadImage], resize: Resize, bar: Progress):
        self.read = 0
        self.inputs = self._all(images, resize, bar)

    def _all(self, images: list[ReadImage], resize: Resize, bar: Progress) -> Iterator[dict[str, np.ndarray]]:
        for read in images:
            bar.advance()
            try:
                image = read()
            except UserError as error:
                bar.warn(f"warning: {error}; left out")
                continue
            self.read += 1
            yield {"images": resize(image)[None], "sizes": np.array([[image.height, image.width]])}

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)
