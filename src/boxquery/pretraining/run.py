"""A run of patch detection, by the parts of every run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boxquery.check.findings import Finding
from boxquery.data.dataset import Data
from boxquery.detector import Detector
from boxquery.errors import UserError
from boxquery.model_folder import load
from boxquery.pretraining.images import open_images
from boxquery.pretraining.task import PatchTask
from boxquery.training import fit
from boxquery.training.config import PretrainFlags, RunConfig, RunFlags


def open_task(source: Any, flags: RunFlags) -> tuple[PatchTask, list[Finding]]:
    """See ``boxquery.training.fit.open_task``. Raises ``UserError``."""
    assert isinstance(flags, PretrainFlags | RunConfig)
    data = source if isinstance(source, Data) else str(source)
    return PatchTask(open_images(data, flags.patches, strict=flags.strict)), []


def start(source: Any, out: Path | None, requested: PretrainFlags, resume: bool) -> Detector:
    """Train as requested; the model that was kept, as any other. Raises ``UserError``."""
    run = fit.start(source, out, requested, resume, opener=open_task).run
    if run is None:
        raise UserError("the run has no folder")
    return load(run)
