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


def load(path: str | Path, *, device: str = "auto", threads: int | None = None) -> ExportedDetector:
    """A detector from a file that ``boxquery export`` has written.

    Args:
        path: .onnx, which onnxruntime runs, or .xml with its .bin beside it, which OpenVINO runs.
        device: "cpu", "cuda", or "auto": CUDA where onnxruntime has it.
        threads: of an operator; None: as OMP_NUM_THREADS says, else as the runtime chooses.

    Raises ``UserError`` for a file that is no such model, is broken or of a newer format, and where the runtime is missing.
    """
    from boxquery.runtime.exported import ExportedDetector

    return ExportedDetector.open(path, device=device, threads=threads)
