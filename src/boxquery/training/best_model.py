"""The best model of a run by AP, and how long it has been the best.

Of equal APs that of the later epoch is better, since it has learned for longer. An undefined AP (no boxes to find) counts as 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boxquery.detector import Detector
from boxquery.limits import DEFAULT_THRESHOLD
from boxquery.model_folder import save
from boxquery.models.interface import Model


class BestModel:
    """Keeps the best model of a run in a folder.

    Args:
        detector: classes and preprocessing of the model.
        patience: evaluations without a better AP after which the run stops; 0: none.
    """

    def __init__(self, folder: Path, detector: Detector, patience: int):
        self.folder, self.detector, self.patience = folder, detector, patience
        self.best, self.epoch, self.waited = -1.0, 0, 0

    def update(self, epoch: int, metrics: dict[str, Any], model: Model, write: bool) -> None:
        """Compare the model of an epoch by its metrics with the best so far, and ``write`` it if it is better."""
        score = metrics["AP"] or 0.0
        # patience is for an AP that does not improve, not for one that cannot
        self.waited = 0 if score > self.best else self.waited + (metrics["AP"] is not None)
        if score >= self.best:
            self.best, self.epoch = score, epoch
            self.detector.threshold = DEFAULT_THRESHOLD if metrics["best_threshold"] is None else metrics["best_threshold"]
            if write:
                d = self.detector
                chosen = {"number": epoch, "kept": f"the highest AP on val: {score:.4f}" if score else "the last one: no AP to choose by"}
                save(Detector(model, d.classes, d.ids, d.preprocessing, d.threshold), self.folder, epoch=chosen)

    def __str__(self) -> str:
        """For people: "the best model (epoch 7)"."""
        return f"the best model (epoch {self.epoch})" if self.best > 0 else f"the last model (epoch {self.epoch}; no AP to choose by)"

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "epoch": self.epoch, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.epoch, self.waited = (state_dict[name] for name in ("best", "epoch", "waited"))
