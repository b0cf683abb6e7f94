"""``boxquery check``: what the data is, what is wrong with it, what will go wrong. Imports no torch before it is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from boxquery.errors import UserError
from boxquery.flags import DEFAULT_MODEL, DEFAULT_PRESET, Options

if TYPE_CHECKING:
    from boxquery.check.feasibility import Plan
    from boxquery.check.run_checks import Checkup

_CLASSES = 20  # rows of the table of classes
_STYLES = {"doomed": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class Shown:
    """A checkup as a person reads it, as a program does, and as an exit status."""

    checkup: Checkup
    plan: Plan

    @property
    def status(self) -> int:
        return self.checkup.status

    def summary(self) -> dict[str, Any]:
        return self.checkup.values()

    def show(self) -> None:
        console = Console(soft_wrap=True, highlight=False)
        facts, ahead = self.checkup.facts["data"], self.checkup.facts["ahead"]
        table = Table(title=f"{facts['source']} ({facts['format']})", title_justify="left")
        table.add_column("")
        for name in facts["splits"]:
            table.add_column(name, justify="right")
        for key, title in (("images", "images"), ("empty_images", "of them empty"), ("objects", "boxes"), ("ignored", "ignored boxes")):
            table.add_row(title, *(f"{split[key]:,}" for split in facts["splits"].values()))
        for i, name in list(enumerate(facts["names"]))[:_CLASSES]:
            table.add_row(f"  {name}", *(f"{split['per_class'][i]:,}" for split in facts["splits"].values()))
        if len(facts["names"]) > _CLASSES:
            table.add_row(f"  and {len(facts['names']) - _CLASSES} more classes", *[""] * len(facts["splits"]))
        console.print(table)
        side, number = ahead["side_percentiles"], ahead["objects_an_image"]
        console.print(
            f"For {self.plan.model} ({self.plan.preset}) at {ahead['image_size']} px: objects are {side['0']:g} to {side['100']:g} px "
            f"(median {side['50']:g}), a cell is {ahead['cell']} px, {ahead['below_a_cell']:.0%} of the objects are smaller; an image has "
            f"{number['0']:g} to {number['100']:g} objects (median {number['50']:g}), the model at most {ahead['queries']} answers.",
            markup=False,
        )
        for line in facts["notes"]:
            console.print(f"note: {line}", markup=False)
        for line in facts["skipped"]:
            console.print(f"skipped: {line}", markup=False, style="yellow")
        for finding in self.checkup.findings:
            console.print(finding.line(), markup=False, style=_STYLES[finding.level])
        if not any(finding.level != "note" for finding in self.checkup.findings):
            console.print("Nothing speaks against training on this.")
        console.print(f"{self.checkup.seconds:.1f} s")


def check(
    data: str,
    /,
    *,
    model: str | None = None,
    preset: str | None = None,
    options: Options = None,
    image_size: int | None = None,
    epochs: int | None = None,
    learn: bool = False,
    out: Path | None = None,
    strict: bool = False,
    seed: int = 0,
) -> Shown:
    """Say before training what the data is, what is wrong with it, and what will go wrong; ``train`` begins with it, too.

    Args:
        data: a folder or file in COCO, Pascal VOC or YOLO layout, or ``shapes``.
        model, preset, options, image_size, epochs: what would be trained, as for ``train``.
        learn: also prove, in at most a minute, that the model learns four of the images by heart (at 160 pixels, preset "tiny").
        out: a folder for ``check.json``, ``check.png`` (images with their boxes as the network will see them) and ``check.html``.
        strict: boxes and images at fault are fatal instead of skipped.
        seed: of the picture's augmentation, and of the proof.

    The exit status is 1 where a run on this data would be worth nothing, 2 where the data cannot be read at all.
    """
    from boxquery.check.annotation_format import open_with_evidence
    from boxquery.check.run_checks import examine
    from boxquery.data.transforms import Augment
    from boxquery.models import preset as known_preset

    if epochs is not None and epochs < 1:
        raise UserError(f"epochs={epochs}: must be above 0")
    model, preset = model or DEFAULT_MODEL, preset or DEFAULT_PRESET
    recipe = known_preset(model, preset).recipe
    with _progress() as told:
        opened, evidence = open_with_evidence(data, strict=strict)
        _need_train(opened)
        plan = _plan(opened, model, preset, options or {}, image_size, epochs)
        augment = Augment(scales=recipe.scales, crop=recipe.crop, colour=recipe.colour)
        checkup = examine(opened, evidence, plan, augment, seed=seed, picture=out is not None, told=told)
        if learn:
            from boxquery.check.overfit import prove

            proof = prove(opened, plan.model, options or {}, seed=seed, told=lambda done, total: told("learning", done, total))
            checkup.proof = proof.values()
            checkup.add([proof.finding()])
            checkup.seconds += proof.seconds
    if out is not None:
        from boxquery.report.page import write_check

        checkup.write(out)
        write_check(out)
    return Shown(checkup, plan)


def _need_train(data: Any) -> None:
    if not len(data.splits.get("train", ())):
        raise UserError(f"{data.source}: no images in split 'train'; check looks at what would be trained on")


def _plan(data: Any, model: str, preset: str, options: dict[str, Any], image_size: int | None, epochs: int | None) -> Plan:
    """What ``train`` would do with these settings; the model is built without memory for its weights."""
    import torch

    from boxquery.check.feasibility import Plan
    from boxquery.models import create_model
    from boxquery.models import preset as known_preset

    recipe = known_preset(model, preset).recipe
    with torch.device("meta"):
        built = create_model(model, classes=len(data.names), preset=preset, **options)
    batch = min(recipe.batch_size, len(data.splits["train"]))
    steps = (epochs or recipe.epochs) * max(len(data.splits["train"]) // batch, 1)
    return Plan.of(built, image_size=image_size or recipe.image_size, steps=steps, batch_size=batch)


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar on a terminal; silence elsewhere."""
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
