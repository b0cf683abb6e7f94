"""What is printed before the first epoch, and what is reason enough not to begin."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from boxquery.augment import Augment
from boxquery.check.findings import Finding
from boxquery.check.run_checks import CheckResult
from boxquery.errors import UserError
from boxquery.models.interface import Model
from boxquery.training.config import RunConfig
from boxquery.training.processes import rank
from boxquery.training.task import Task


def report_data(console: Console, task: Task) -> None:
    """What was read. Raises ``UserError`` where nothing can be trained or evaluated on it, or where labels are beyond the classes."""
    data = task.data
    counts = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    number = sum(map(len, data.splits.values()))
    console.print(f"{data.source}: {data.format}, {counts} {task.unit}{'s' * (number != 1)}, {task.contents}", markup=False)
    for line in data.messages():
        console.print(line, style="yellow" if line.startswith("skipped") else "", markup=False)
    task.check_data()
    if all(record.ignore.all() for record in task.val):
        console.print("note: without boxes in val no epoch is better than another: model/ will hold the weights of the last one")
    for name, split in data.splits.items():
        for record in split:  # once here, since a loss that looked would make a GPU wait in every step
            if len(record.labels) and not 0 <= record.labels.min() <= record.labels.max() < len(data.names):
                found, most = f"{record.labels.min()} to {record.labels.max()}", len(data.names) - 1
                raise UserError(
                    f"{data.source}: split {name!r}, {task.unit} {record.id}: labels {found}, where classes go from 0 to {most}"
                )


def check(task: Task, config: RunConfig, model: Model, augment: Augment, findings: Sequence[Finding]) -> CheckResult:
    """What the check found. Raises ``CheckFailed`` for an error among it, unless ``force``."""
    result = task.check(config, model, augment, findings, picture=rank() == 0)
    if not config.force:
        result.raise_if_failed()
    return result


def report_findings(console: Console, result: CheckResult) -> None:
    """Every finding; they name the picture, which has to be written before."""
    for level, line in result.lines():
        console.print(line, style="" if level == "note" else "yellow", markup=False)
