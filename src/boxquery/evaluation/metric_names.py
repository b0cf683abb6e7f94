"""The metrics of images and of scenes by name, as tables and charts have them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricNames:
    """Keys of an evaluation (``boxquery.evaluation.metrics.evaluate``, ``boxquery.evaluation.nuscenes.evaluate_scenes``).

    Attributes:
        unit: what is evaluated, in words.
        shown: what is printed; the first decides, and the model with the higher value is the better one.
        others: what a table of accuracy has beside it; a data set may not measure all of it.
        duplicates: whether there is a ``duplicate_rate``, and NMS that may lower it.
    """

    unit: str
    shown: tuple[str, str]
    others: tuple[str, ...]
    duplicates: bool

    @property
    def better(self) -> str:
        """The metric that decides which model is better."""
        return self.shown[0]


OF_IMAGES = MetricNames("image", ("AP", "AP50"), ("AP75", "APs", "APm", "APl"), duplicates=True)
OF_SCENES = MetricNames(
    "scene", ("mAP", "NDS"), ("AP@0.5", "AP@1", "AP@2", "AP@4", "mATE", "mASE", "mAOE", "mAVE", "mAAE"), duplicates=False
)
BY_UNIT = {metrics.unit: metrics for metrics in (OF_IMAGES, OF_SCENES)}
