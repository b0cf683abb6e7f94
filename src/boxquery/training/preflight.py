"""What is printed before the first epoch, and what is reason enough not to begin."""

from __future__ import annotations

from rich.console import Console

from boxquery.augment import Augment
from boxquery.check.feasibility import FeasibilityPlan, drops_queries
from boxquery.check.findings import Finding
from boxquery.check.run_checks import CheckResult, run_checks
from boxquery.data.dataset import Data, Split
from boxquery.errors import UserError, count
from boxquery.models.interface import Model
from boxquery.training.config import RunConfig
from boxquery.training.processes import rank


def report_data(console: Console, data: Data) -> None:
    """What was read. Raises ``UserError`` where nothing can be trained or evaluated on it, or where labels are beyond the classes."""
    images = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    images += " image" if sum(map(len, data.splits.values())) == 1 else " images"
    classes = f"{count(len(data.names), 'class', 'classes')}: {', '.join(data.names[:12])}"
    console.print(f"{data.source}: {data.format}, {images}, {classes}", markup=False)
    for line in data.messages():
        console.print(line, style="yellow" if line.startswith("skipped") else "", markup=False)
    data.training_split()
    data.split("val")
    if all(record.ignore.all() for record in data.splits["val"]):
        console.print("note: without boxes in val no epoch is better than another: model/ will hold the weights of the last one")
    for name, split in data.splits.items():
        for record in split:  # once here, since a loss that looked would make a GPU wait in every step
            if len(record.labels) and not 0 <= record.labels.min() <= record.labels.max() < len(data.names):
                found, most = f"{record.labels.min()} to {record.labels.max()}", len(data.names) - 1
                raise UserError(f"{data.source}: split {name!r}, image {record.id}: labels {found}, where classes go from 0 to {most}")


def check_queries(model: Model, split: Split) -> None:
    """Raises ``UserError`` for an image with more objects than queries are left in the last layer: every layer matches all of them."""
    fullest = max(split, key=lambda record: int((~record.ignore).sum()))
    most, queries = int((~fullest.ignore).sum()), model.num_queries_per_layer[-1]
    if drops_queries(model) and most > queries:
        raise UserError(
            f"image {fullest.id!r} has {most} objects, but the last layer keeps {queries} queries: end num_queries with {most} or more"
        )


def check(config: RunConfig, model: Model, data: Data, augment: Augment, findings: list[Finding]) -> CheckResult:
    """What the check found. Raises ``CheckFailed`` for an error among it, unless ``force``."""
    start = "" if config.start_from else "trained" if config.pretrained else "random"
    steps = config.length.total_steps
    plan = FeasibilityPlan.of(
        model, image_size=config.image_size, square=bool(config.square), steps=steps, lr=config.lr, start=start,
        max_detections=config.max_detections,
    )  # fmt: skip
    result = run_checks(data, findings, plan, augment, seed=config.seed, picture="always" if rank() == 0 else "never")
    if not config.force:
        result.raise_if_failed()
    return result


def report_findings(console: Console, result: CheckResult) -> None:
    """Every finding; they name the picture, which has to be written before."""
    for level, line in result.lines():
        console.print(line, style="" if level == "note" else "yellow", markup=False)
