"""What the val split says of a model while it trains: its metrics, and what its queries read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

from boxquery.evaluation.alignment import with_objects
from boxquery.evaluation.predictions import drop_unreadable
from boxquery.models.interface import Model
from boxquery.training.config import RunConfig
from boxquery.training.processes import everywhere, rank, world_size
from boxquery.training.task import D, Task

#: one image in so many of an epoch is looked at again for the alignment; a traced forward pass and its measurement cost 0.3 to 0.75 of an
#: image's training step, so this is 0.6 to 1.5 % of the steps. Of an epoch of fewer images it is the one that there must be
SAMPLED, SAMPLED_AT_MOST = 50, 32


class Evaluator(Generic[D]):
    """Evaluates models on the val split, as ``boxquery evaluate`` does; what is resized of it is kept where it fits into memory.

    Args:
        detector: of the task, with any model.
        warn: called with a line for each image that cannot be read.
    """

    def __init__(self, config: RunConfig, detector: D, task: Task[D], warn: Callable[[str], None]):
        self.config, self.detector, self.task, self.warn = config, detector, task, warn
        self.images = task.val_dataset(detector, config.strict)
        seen = config.length.epoch_batches * config.batch_size
        number = min(max(seen // SAMPLED, 1), SAMPLED_AT_MOST)
        self.sample = with_objects(task.val, number) if task.measures_alignment(detector.model) else []
        #: the query of each of their objects after the last epoch
        self.finders: list[int] = []

    def read_images(self) -> None:
        """Read the images that are kept, or the first evaluation would be the slowest, and in a short run it is the only one."""
        if self.images.cache is not None:
            for place in range(len(self.task.val)):
                self.images[place]

    def evaluate(self, model: Model) -> tuple[dict[str, Any], dict[int, Any]]:
        """Metrics, and the predictions that they were computed from. Every process predicts its share of the images."""
        share = range(rank(), len(self.task.val), world_size())
        self.detector.model = model
        found = self.task.predict(self.detector, self.task.val, self.config, only=share, cached=self.images, warn=self.warn)
        found = {place: own for part in everywhere(found) for place, own in part.items()}
        val, kept = drop_unreadable(self.task.val, found)
        return self.task.evaluate(val, kept, self.config), found

    def alignment(self, model: Model) -> dict[str, Any]:
        """Of the same few images after every epoch."""
        if not self.sample:
            return {}
        self.detector.model = model
        found = self.task.alignment(self.detector, self.sample, self.images)
        changes, self.finders = found.changes(self.finders), found.query.tolist()
        return {**found.columns(), "query_changes": changes}

    def state_dict(self) -> dict[str, Any]:
        return {"finders": self.finders}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.finders = state_dict["finders"]
