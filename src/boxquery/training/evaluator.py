"""What the val split says of a model while it trains: its AP, and what its queries read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from boxquery.data.dataset import Split
from boxquery.data.loading import DetectionDataset
from boxquery.data.transforms import ResizeTransform
from boxquery.detector import Detector
from boxquery.evaluation.alignment import measure_split, with_objects
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import DetectionsByImage, drop_unreadable, predict_split
from boxquery.models.interface import Model
from boxquery.training.config import RunConfig
from boxquery.training.processes import everywhere, rank, world_size

COLUMNS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "duplicate_rate", "best_threshold")
#: one image in so many of an epoch is looked at again for the alignment; a traced forward pass and its measurement cost 0.3 to 0.75 of an
#: image's training step, so this is 0.6 to 1.5 % of the steps. Of an epoch of fewer images it is the one that there must be
SAMPLED, SAMPLED_AT_MOST = 50, 32


class Evaluator:
    """Evaluates models on the val split, as ``boxquery evaluate`` does; its images are kept resized where they fit into memory.

    Args:
        detector: classes and preprocessing.
        warn: called with a line for each image that cannot be read.
    """

    def __init__(self, config: RunConfig, detector: Detector, val: Split, warn: Callable[[str], None]):
        self.config, self.detector, self.val, self.warn = config, detector, val, warn
        self.images = DetectionDataset(val, ResizeTransform(detector.resize), cache=True, strict=config.strict)
        seen = config.length.epoch_batches * config.batch_size
        #: none of a model that has no queries to measure
        self.sample = with_objects(val, min(max(seen // SAMPLED, 1), SAMPLED_AT_MOST)) if detector.model.has_queries else []
        #: the query of each of their objects after the last epoch
        self.finders: list[int] = []

    def read_images(self) -> None:
        """Read the images that are kept, or the first evaluation would be the slowest, and in a short run it is the only one."""
        if self.images.cache is not None:
            for place in range(len(self.val)):
                self.images[place]

    def evaluate(self, model: Model) -> tuple[dict[str, Any], DetectionsByImage]:
        """Metrics, and the predictions that they were computed from. Every process predicts its share of the images."""
        share = range(rank(), len(self.val), world_size())
        self.detector.model = model
        limit = self.config.max_detections
        found = predict_split(
            self.detector, self.val, batch_size=self.config.evaluation_batch, only=share, cached=self.images, max_detections=limit,
            warn=self.warn,
        )  # fmt: skip
        found = {place: own for part in everywhere(found) for place, own in part.items()}
        val, kept = drop_unreadable(self.val, found)
        return evaluate(val, kept, [str(n) for n in self.detector.classes], self.detector.ids, max_detections=limit), found

    def alignment(self, model: Model) -> dict[str, Any]:
        """Of the same few images after every epoch."""
        if not self.sample:
            return {}
        self.detector.model = model
        found = measure_split(self.detector, self.val, only=self.sample, cached=self.images)
        changes, self.finders = found.changes(self.finders), found.query.tolist()
        return {**found.columns(), "query_changes": changes}

    def state_dict(self) -> dict[str, Any]:
        return {"finders": self.finders}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.finders = state_dict["finders"]
