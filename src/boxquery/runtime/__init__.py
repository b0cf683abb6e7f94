"""Detection without torch: exported models, by NumPy, Pillow, and onnxruntime or OpenVINO.

>>> from boxquery import runtime
>>> det = runtime.load("model.onnx")
>>> det.predict("street.jpg")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from boxquery.runtime.exported import ExportedDetector
    from boxquery.runtime.exported_scenes import ExportedSceneDetector


def load(path: str | Path, *, device: str = "auto", threads: int | None = None) -> ExportedDetector:
    """A detector of images from a file that ``boxquery export`` has written.

    Args:
        path: .onnx, which onnxruntime runs, or .xml with its .bin beside it, which OpenVINO runs.
        device: "cpu", "cuda", or "auto": CUDA where onnxruntime has it.
        threads: of an operator; None: as OMP_NUM_THREADS says, else as the runtime chooses.

    Raises ``UserError`` for a file that is no such model, is broken, of a newer format or of a model of scenes (``load_scenes``), and
    where the runtime is missing.
    """
    from boxquery.runtime.exported import ExportedDetector

    return ExportedDetector.open(path, device=device, threads=threads)


def load_scenes(path: str | Path, *, device: str = "auto", threads: int | None = None) -> ExportedSceneDetector:
    """``load`` for a model that finds 3-D boxes in scenes of several cameras. Raises ``UserError`` for one of images."""
    from boxquery.runtime.exported_scenes import ExportedSceneDetector

    return ExportedSceneDetector.open(path, device=device, threads=threads)
