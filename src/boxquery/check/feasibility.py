"""What will go wrong with this model at this size: objects beyond its queries or below its cells, too few steps, a rate far off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from boxquery.check.findings import Finding
from boxquery.check.floors import everything, measured
from boxquery.data.dataset import Data
from boxquery.data.preprocessing import Preprocessing, object_sizes
from boxquery.models import preset

if TYPE_CHECKING:
    from boxquery.models.interface import Model

#: share of the training images with more objects than queries from which a run is doomed
CROWDED = 0.5
#: share of the training objects below a cell that is worth a note, and a warning
SMALL, MOSTLY_SMALL = 0.1, 0.5
#: how many times the preset's rate is worth a warning
FAST = 10.0


@dataclass(frozen=True)
class Plan:
    """What is about to be trained.

    Attributes:
        model, preset: names.
        queries: answers an image can have; limit: the option that says so.
        stride: pixels of a cell of the finest map.
        image_size: short side in pixels.
        steps: optimizer steps; batch_size: images in one, over all processes.
        lr, usual_lr: the rate, and the preset's.
        start: "random", "trained" (a trained backbone), or "" where the start has no floor (a whole trained model).
        drops: later layers have fewer queries; ``queries`` are the last one's, which every object of every image needs there.
    """

    model: str
    preset: str
    queries: int
    stride: int
    image_size: int
    steps: int
    batch_size: int
    lr: float
    usual_lr: float
    start: str = "random"
    drops: bool = False
    limit: str = "num_queries"

    @classmethod
    def of(cls, model: Model, *, image_size: int, steps: int, batch_size: int, lr: float = 0.0, start: str = "random") -> Plan:
        """Of a model that ``create_model`` built; ``lr`` 0 is the preset's."""
        name, size = model.config["name"], model.config["preset"]
        usual = preset(name, size).recipe.lr
        return cls(
            name, size, model.num_queries_per_layer[-1], model.backbone.strides[0], image_size, steps, batch_size, lr or usual, usual,
            start, drops_queries(model), "num_queries" if model.has_queries else "detections",
        )  # fmt: skip


def drops_queries(model: Model) -> bool:
    """Whether later layers have fewer queries."""
    return model.num_queries_per_layer[-1] < model.num_queries_per_layer[0]


def objects_ahead(data: Data, plan: Plan) -> tuple[dict[str, Any], list[Finding]]:
    """Sizes at the training resolution and objects an image, of the training split; and what they mean for this model."""
    sides = object_sizes(data.splits["train"], Preprocessing(plan.image_size))
    side, number = np.concatenate(sides), np.array([len(own) for own in sides])
    root = np.sqrt(side.prod(1))
    below = float((side.max(1) < plan.stride).mean()) if len(side) else 0.0
    facts = {
        "image_size": plan.image_size,
        "cell": plan.stride,
        "queries": plan.queries,
        "side_percentiles": dict(zip(("0", "10", "50", "90", "100"), _percentiles(root), strict=True)),
        "below_a_cell": round(below, 4),
        "objects_an_image": dict(zip(("0", "10", "50", "90", "100"), _percentiles(number), strict=True)),
    }
    return facts, [finding for finding in (_queries(number, plan), _cells(below, plan)) if finding is not None]


def _percentiles(values: np.ndarray) -> list[float]:
    return [round(float(v), 1) for v in np.percentile(values, (0, 10, 50, 90, 100))] if len(values) else [0.0] * 5


def _queries(number: np.ndarray, plan: Plan) -> Finding | None:
    over = number > plan.queries
    if not over.any():
        return None
    lost = int((number - plan.queries).clip(0).sum())
    what = "answers" if plan.limit == "detections" else "queries"
    return Finding(
        "more-objects-than-queries", "doomed" if plan.drops or over.mean() > CROWDED else "warning",
        f"{over.sum()} of {len(number)} training images have more objects (up to {number.max()}) than the model has {what} "
        f"{'in its last layer ' * plan.drops}"
        f"({plan.queries}): {lost} of {number.sum()} objects can never be answered.",
        f"Give --option {plan.limit}={_round(number.max())} or more{', in every layer' * plan.drops}.",
    )  # fmt: skip


def _round(most: int) -> int:
    return int(-(-most * 1.2 // 10) * 10)


def _cells(below: float, plan: Plan) -> Finding | None:
    if below < SMALL:
        return None
    return Finding(
        "objects-below-a-cell", "warning" if below > MOSTLY_SMALL else "note",
        f"{below:.0%} of the training objects are smaller than a cell of the finest feature map ({plan.stride} px at image size "
        f"{plan.image_size}); few of them will be found.",
        f"A larger --image-size helps ({2 * plan.image_size} makes them twice as large), or a model with finer maps (deformable-detr)."
        if below > MOSTLY_SMALL else "",
    )  # fmt: skip


def steps_ahead(plan: Plan) -> list[Finding]:
    """Whether the steps are fewer than this model ever needed, and whether the rate is far off."""
    found = []
    floor = measured(plan.model).get("floor", {}).get(plan.start, {})
    if plan.steps <= floor.get("not_within", 0):
        left = f"{floor['left']} were enough" if floor.get("left") else "no longer run was measured"
        how = {"random": "from random weights", "trained": "from a trained backbone"}[plan.start]
        found.append(
            Finding(
                "too-few-steps", "warning",
                f"{plan.steps} steps are fewer than {plan.model} needs to leave AP 0: on the built-in scenes, {how}, "
                f"{floor['not_within']} steps were not enough ({left}; preset {everything()['protocol'].get('preset')}).",
                "Give more epochs, or take deformable-detr, which needs the fewest.",
            )
        )  # fmt: skip
    if plan.lr > FAST * plan.usual_lr:
        found.append(
            Finding(
                "rate-too-high", "warning",
                f"The rate {plan.lr:g} is {plan.lr / plan.usual_lr:.0f} times the preset's {plan.usual_lr:g}.",
                "Leave --lr away, or expect the loss to stop falling or to stop being a number.",
            )
        )  # fmt: skip
    return found
