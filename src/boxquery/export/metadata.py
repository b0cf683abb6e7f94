"""What an exported file says of itself: one JSON string from which ``boxquery.runtime`` knows how to use it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from boxquery.detector import Detector
from boxquery.export.packages import ONNX, OPENVINO, OPSET
from boxquery.runtime.record import FORMAT, SCENE_FORMAT, SceneInput
from boxquery.scene_detector import SceneDetector

#: the oldest runtimes that read the files
RUNTIMES = {ONNX: {"onnxruntime": ">=1.18"}, OPENVINO: {"openvino": ">=2025.0"}}


def metadata(
    detector: Detector | SceneDetector, target: str, precision: str, size: tuple[int, int] | None, calibration_images: int | None = None
) -> dict[str, Any]:
    """Plain values; ``size`` is the fixed (height, width) or None, ``top_k`` the detections per image or scene where a query may have
    several classes. Of scenes with what ``SceneInput`` has."""
    model = detector.transformer
    queries = model.num_queries_per_layer[-1]
    has_no_object = model.criterion.classification.has_no_object
    scenes = None
    if isinstance(detector, SceneDetector):
        scenes = SceneInput(detector.resize.images, detector.area, detector.cameras).to_dict()
    return {
        "format": FORMAT if scenes is None else SCENE_FORMAT,
        "boxquery": version("boxquery"),
        "model": model.config["name"],
        "preset": model.config["preset"],
        "classes": detector.classes,
        "ids": detector.ids,
        "threshold": detector.threshold,
        "preprocessing": detector.preprocessing.to_dict(),
        "queries": queries,
        "top_k": queries if has_no_object else model.postprocessor.top_k or queries,
        "has_no_object": has_no_object,
        "size": None if size is None else list(size),
        "batch": None,
        "precision": precision,
        **({} if scenes is None else {"scenes": scenes}),
        "calibration_images": calibration_images,
        "opset": OPSET,
        "runtime": RUNTIMES[target],
    }
