"""Static quantisation: large matrix products and convolutions in 8 bits, by ranges that activations have on images of the user's own."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from boxquery.data.dataset import Data
from boxquery.data.images import read_image
from boxquery.data.open import open_data
from boxquery.data.preprocessing import Resize
from boxquery.data.scenes.open import open_scenes
from boxquery.data.scenes.records import SceneData
from boxquery.data.scenes.resize import SceneResize
from boxquery.errors import UserError, count, one_line
from boxquery.export.onnx import check_fits, silent
from boxquery.export.packages import CALIBRATION_IMAGES
from boxquery.predict.sources import find_images
from boxquery.progress import Progress, note

ReadImage = Callable[[], Image.Image]
#: reads an image, or the images of a scene, as inputs of the graph by their names
ReadInputs = Callable[[], dict[str, np.ndarray]]
#: modules, of a model as ``boxquery.models`` builds it, whose products stay in float32: they make coordinates, or are small. Prediction
#: heads, proposals and other starts of queries; where queries look (references, positions, sampling points and their weights); weights that
#: one activation has for another
FLOAT = re.compile(
    r"^model\.(heads|queries|place|encoder\.place|tokens)\b|"
    r"\.(sampling_offsets|attention_weights|points|feature_weights|position_weights|query_position|key_position|dynamic_layer|gates|"
    r"position_encoder)\b"
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
    return [found[i] for i in _spread(len(found), wanted)]


def inputs_of(images: Sequence[ReadImage], resize: Resize) -> list[ReadInputs]:
    """Images as inputs of a graph, one by one, resized as the exported file resizes them."""

    def read(image: ReadImage) -> dict[str, np.ndarray]:
        opened = image()
        return {"images": resize(opened)[None], "sizes": np.array([[opened.height, opened.width]])}

    return [partial(read, image) for image in images]


def scene_inputs(source: str | Path | SceneData, wanted: int | None, resize: SceneResize) -> list[ReadInputs]:
    """Scenes on which ranges are measured, evenly spaced over the training split of a data set, or its first one with scenes. Raises
    ``UserError`` where there are none."""
    data = source if isinstance(source, SceneData) else open_scenes(source)
    split = data.split(_training_split(data))

    def read(i: int) -> dict[str, np.ndarray]:
        scene, pixels = split[i], resize.pixels(split.read(i))
        return {"images": pixels[None], "lidar2img": resize.lidar2img(scene.lidar2img, scene.sizes)[None].astype(np.float32)}

    return [partial(read, i) for i in _spread(len(split), wanted)]


def _spread(count: int, wanted: int | None) -> list[int]:
    """``wanted`` numbers below ``count``, evenly spaced."""
    wanted = min(wanted or CALIBRATION_IMAGES, count)
    return [i * count // wanted for i in range(wanted)]


def _training_split(data: Data | SceneData) -> str:
    return next((name for name in ("train", *data.splits) if name in data.splits and len(data.splits[name])), "train")


def _of_data(data: Data) -> list[ReadImage]:
    split = data.split(_training_split(data))
    return [partial(split.read, i) for i in range(len(split))]


def quantize(model: Any, images: list[ReadInputs]) -> tuple[Any, int]:
    """An ``onnx_ir.Model`` in 8 bits (QDQ), of one in float32, and how many images, or scenes, could be read.

    Weights are signed and have a scale per channel, activations are unsigned and have one each, from their least and largest value. Outside
    the backbone, what does not multiply by weights (attention, norms, softmax, sampling, boxes, post-processing) stays in float32, as does
    what ``FLOAT`` names.

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
            inputs = _Inputs(images, bar)
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

    def __init__(self, images: list[ReadInputs], bar: Progress):
        self.read = 0
        self.inputs = self._all(images, bar)

    def _all(self, images: list[ReadInputs], bar: Progress) -> Iterator[dict[str, np.ndarray]]:
        for read in images:
            bar.advance()
            try:
                inputs = read()
            except UserError as error:
                bar.warn(f"warning: {error}; left out")
                continue
            self.read += 1
            yield inputs

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.inputs, None)
