"""The public names that need torch, see ``boxquery/__init__.py``. Nothing inside the library imports this module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

from boxquery import detector, model_folder
from boxquery.data.classes import map_labels
from boxquery.data.dataset import Data
from boxquery.data.open import open_data
from boxquery.detector import ImageSource
from boxquery.errors import UserError
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import drop_unreadable, predict_split
from boxquery.explain.explanation import explain
from boxquery.training import run

P = ParamSpec("P")


class Detector(detector.Detector):
    __doc__ = detector.Detector.__doc__

    def save(self, folder: str | Path) -> Path:
        """Write ``config.json`` and ``model.safetensors``, which ``boxquery.load`` reads. Raises ``UserError``."""
        return model_folder.save(self, folder)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload to the hub; returns the address. Needs a login there."""
        return model_folder.push_to_hub(self, repo_id, private=private)

    def explain(self, source: ImageSource | Sequence[ImageSource], *, threshold: float | None = None) -> Any:
        """What every query attended to, how its box moved from layer to layer, and which queries competed for one object.

        Args:
            source: a path, PIL image or RGB uint8 array [H, W, 3] gives an ``Explanation``; a list gives a list. Each keeps the attention
                of every layer, which takes memory.
            threshold: minimum score of a detection, 0..1; None: the detector's own.

        Raises ``UserError`` for an image that cannot be read.
        """
        if isinstance(source, ImageSource):
            return explain(self, source, threshold=threshold)
        return [explain(self, each, threshold=threshold) for each in source]

    def evaluate(
        self,
        data: str | Path | Data,
        *,
        split: str = "val",
        batch_size: int = 8,
        workers: int = 0,
        strict: bool = False,
        nms: float | None = None,
    ) -> dict[str, Any]:
        """AP and the metrics around it on a split of a data set; classes are matched by name.

        Args:
            nms: IoU threshold of class-wise NMS (1 disables it); None: the model's own (none for DETRs).
            strict: an image that cannot be read is fatal; otherwise it is named on stderr and left out.

        Raises ``UserError`` if the data lacks the split or has a class that the detector does not know.
        """
        if nms is not None and not 0 < nms <= 1:
            raise UserError(f"nms={nms}: must be an IoU above 0 and at most 1, which disables it")
        opened = open_data(data, strict=strict) if isinstance(data, str | Path) else data
        records = map_labels(opened, split, self.classes)
        found = predict_split(self, records, batch_size=batch_size, workers=workers, nms=nms, strict=strict)
        records, found = drop_unreadable(records, found)
        names = [f"(no name {i})" if name is None else name for i, name in enumerate(self.classes)]
        return evaluate(records, found, names, self.ids)


def _public(make: Callable[P, detector.Detector]) -> Callable[P, Detector]:
    """The same function, returning the ``Detector`` of this module."""

    @wraps(make)
    def made(*args: P.args, **kwargs: P.kwargs) -> Detector:
        base = make(*args, **kwargs)
        public = Detector(base.model, base.classes, base.ids, base.preprocessing, base.threshold)
        public.run = base.run
        return public

    return made


load = _public(model_folder.load)
train = _public(run.train)
