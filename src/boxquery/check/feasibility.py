"""Whether this model can learn this data at this size: objects against queries and cells, steps and learning rate against the usual."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boxquery.augment import Augment
from boxquery.auto import enough_queries
from boxquery.check.findings import Finding
from boxquery.check.floors import everything, measured
from boxquery.data.dataset import Data
from boxquery.data.preprocessing import Preprocessing, object_sizes
from boxquery.evaluation.metrics import limits_note
from boxquery.limits import MAX_DETECTIONS
from boxquery.models import preset

if TYPE_CHECKING:
    from boxquery.models.interface import Model

#: share of the training images with more objects than queries from which it is an error
CROWDED = 0.5
#: share of the training objects smaller than a cell from which it is a note, and a warning
SMALL, MOSTLY_SMALL = 0.1, 0.5
#: share of the mosaics with more objects than queries from which it is a note
CROWDED_MOSAICS = 0.1
#: how many times the preset's learning rate is a warning
FAST = 10.0


@dataclass(frozen=True)
class FeasibilityPlan:
    """What is about to be trained.

    Attributes:
        model, preset: names.
        queries: most predictions per image; limit: the option that sets it.
        stride: pixels per cell of the finest feature map.
        image_size: shortest side in pixels; square: every side, whatever the shape.
        steps: optimizer steps, 0 if not known yet.
        lr, usual_lr: the learning rate, and the preset's.
        start: "random", "trained" (a pretrained backbone), or "" for a whole trained model, whose steps are not checked.
        max_detections: detections per class and image that the evaluation counts.
        drops: later layers have fewer queries; ``queries`` are then those of the last layer, which every object needs.
    """

    model: str
    preset: str
    queries: int
    stride: int
    image_size: int
    steps: int
    lr: float
    usual_lr: float
    start: str = "random"
    drops: bool = False
    limit: str = "num_queries"
    max_detections: int = MAX_DETECTIONS
    square: bool = False

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.image_size, square=self.square)

    @classmethod
    def of(
        cls, model: Model, *, image_size: int, steps: int, lr: float | None = None, start: str = "random",
        max_detections: int = MAX_DETECTIONS, square: bool = False,
    ) -> FeasibilityPlan:  # fmt: skip
        """Of a model that ``create_model`` built; without ``lr`` at the preset's."""
        name, size = model.config["name"], model.config["preset"]
        usual = preset(name, size).recipe.lr
        return cls(
            name, size, model.num_queries_per_layer[-1], model.backbone.strides[0], image_size, steps, lr or usual, usual, start,
            drops_queries(model), "num_queries" if model.has_queries else "detections", max_detections, square,
        )  # fmt: skip


def drops_queries(model: Model) -> bool:
    """Whether later layers have fewer queries."""
    return model.num_queries_per_layer[-1] < model.num_queries_per_layer[0]


def check_objects(data: Data, plan: FeasibilityPlan) -> tuple[dict[str, Any], list[Finding]]:
    """Sizes and numbers of the training objects at the training resolution; and what they mean for this model."""
    per_image = object_sizes(data.splits["train"], plan.preprocessing)
    sizes, numbers = np.concatenate(per_image), np.array([len(own) for own in per_image])
    below = float((sizes.max(1) < plan.stride).mean()) if len(sizes) else 0.0
    facts = {
        "image_size": plan.image_size,
        "cell": plan.stride,
        "queries": plan.queries,
        "side_percentiles": _percentiles(np.sqrt(sizes.prod(1))),
        "below_a_cell": round(below, 4),
        "objects_per_image": _percentiles(numbers),
    }
    return facts, [*_check_queries(numbers, plan), *_check_recall(data, plan), *_check_cells(below, plan)]


def check_mixing(data: Data, plan: FeasibilityPlan, augment: Augment) -> list[Finding]:
    """Whether mosaics would show more objects than there are queries, so that many of them are not made."""
    numbers = np.array([int((~record.ignore).sum()) for record in data.splits["train"]])
    if not augment.mosaic or not numbers.size:
        return []
    over = float((np.random.default_rng(0).choice(numbers, (1000, 4)).sum(1) > plan.queries).mean())
    if over < CROWDED_MOSAICS:
        return []
    text = f"{over:.0%} of the mosaics of four images have more objects than the model predicts ({plan.queries}), if none is cut off."
    remedy = f"Such images are shown alone instead; --option {plan.limit}={enough_queries(int(4 * numbers.max()))} has room for all."
    return [Finding("crowded-mosaics", "note", text, remedy)]


def _percentiles(values: np.ndarray) -> dict[str, float]:
    return {str(q): round(float(np.percentile(values, q)), 1) if len(values) else 0.0 for q in (0, 10, 50, 90, 100)}


def _check_queries(numbers: np.ndarray, plan: FeasibilityPlan) -> Iterator[Finding]:
    over = numbers > plan.queries
    if over.any():
        what = "predictions" if plan.limit == "detections" else "queries in its last layer" if plan.drops else "queries"
        yield Finding(
            "more-objects-than-queries", "error" if plan.drops or over.mean() > CROWDED else "warning",
            f"{over.sum()} of {len(numbers)} training images have more objects (up to {numbers.max()}) than the model has {what} "
            f"({plan.queries}): {(numbers - plan.queries).clip(0).sum()} of {numbers.sum()} objects can never be detected.",
            f"Give --option {plan.limit}={enough_queries(numbers.max())} or more{', in every layer' * plan.drops}.",
        )  # fmt: skip


def _check_recall(data: Data, plan: FeasibilityPlan) -> Iterator[Finding]:
    """Images of which not all objects can be found, since the model predicts fewer."""
    for name, split in data.splits.items():
        numbers = np.array([int((~record.ignore).sum()) for record in split])
        if name != "train" and numbers.size and numbers.max() > plan.queries:
            yield Finding(
                "recall-bounded", "warning",
                f"Recall on {name} can be at most {np.minimum(numbers, plan.queries).sum() / numbers.sum():.2f}: up to {numbers.max()} "
                f"objects per image, and the model predicts at most {plan.queries}.",
                f"Give --option {plan.limit}={enough_queries(numbers.max())} or more.",
            )  # fmt: skip
        if name != "train" and numbers.size:
            for line in limits_note(split, plan.max_detections, int(numbers.max())):
                yield Finding("many-objects", "note", f"{name}: {line}", "")


def _check_cells(below: float, plan: FeasibilityPlan) -> Iterator[Finding]:
    if below >= SMALL:
        finer = ", or a model with finer maps (deformable-detr)" if plan.stride > 8 else ""
        larger = f"A larger --image-size helps ({2 * plan.image_size} doubles their size){finer}."
        yield Finding(
            "objects-below-a-cell", "warning" if below > MOSTLY_SMALL else "note",
            f"{below:.0%} of the training objects are smaller than a cell of the finest feature map ({plan.stride} px at image size "
            f"{plan.image_size}); few of them will be found.",
            larger if below > MOSTLY_SMALL else "",
        )  # fmt: skip


def check_steps(plan: FeasibilityPlan) -> Iterator[Finding]:
    """Whether the steps are fewer than this model needed, and whether the learning rate is far too high."""
    floor = measured(plan.model).get("floor", {}).get(plan.start, {})
    if plan.steps <= floor.get("not_within", 0):
        later = f", and above 0 after {floor['left']}" if floor.get("left") else ""
        start = {"random": "from random weights", "trained": "from a pretrained backbone"}[plan.start]
        yield Finding(
            "too-few-steps", "warning",
            f"{plan.steps} steps are probably too few for {plan.model} to detect anything: on the built-in scenes, {start} and at preset "
            f"{everything()['protocol'].get('preset')}, its AP was still 0 after {floor['not_within']} steps{later}.",
            "Train for more epochs, or choose deformable-detr, which needs the fewest.",
        )  # fmt: skip
    if plan.lr > FAST * plan.usual_lr:
        yield Finding(
            "rate-too-high", "warning",
            f"The learning rate {plan.lr:g} is {plan.lr / plan.usual_lr:.0f} times the preset's {plan.usual_lr:g}.",
            "Leave --lr out, or expect the loss to stop falling or to become NaN.",
        )  # fmt: skip
