"""The best model of a run by one metric (AP), and how long it has been the best.

Of equal APs that of the later epoch is better, since it has learned for longer. An undefined AP (no boxes to find) counts as 0.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from boxquery.limits import DEFAULT_THRESHOLD
from boxquery.models.interface import Model
from boxquery.training.task import Task


class BestModel:
    """Keeps the best model of a run in a folder.

    Args:
        detector: of the task; what belongs to the model.
        task: has the metric, the higher the better, and writes models.
        patience: evaluations without a better AP after which the run stops; 0: none.
    """

    def __init__(self, folder: Path, detector: Any, task: Task, patience: int):
        self.folder, self.detector, self.task, self.better, self.patience = folder, detector, task, task.better, patience
        self.best, self.epoch, self.waited = -1.0, 0, 0

    def update(self, epoch: int, metrics: dict[str, Any], model: Model, write: bool) -> None:
        """Compare the model of an epoch by its metrics with the best so far, and ``write`` it if it is better."""
        score = metrics[self.better] or 0.0
        # patience is for an AP that does not improve, not for one that cannot
        self.waited = 0 if score > self.best else self.waited + (metrics[self.better] is not None)
        if score >= self.best:
            self.best, self.epoch = score, epoch
            self.detector.threshold = DEFAULT_THRESHOLD if metrics["best_threshold"] is None else metrics["best_threshold"]
            if write:
                kept = f"the highest {self.better} on val: {score:.4f}" if score else f"the last one: no {self.better} to choose by"
                detector = copy.copy(self.detector)
                detector.model = model
                self.task.save(detector, self.folder, epoch={"number": epoch, "kept": kept})

    def __str__(self) -> str:
        """For people: "the best model (epoch 7)"."""
        if self.best > 0:
            return f"the best model (epoch {self.epoch})"
        return f"the last model (epoch {self.epoch}; no {self.better} to choose by)"

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.epoch, self.waited = (state_dict[name] for name in ("best", "epoch", "waited"))
