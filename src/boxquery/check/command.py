"""``boxquery check``: what the data is, what is wrong with it, what will go wrong. Imports no torch before it is needed."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from boxquery.augment import augment_parts, augmentation
from boxquery.auto import SCENE_MODEL, DataFacts, Given, choose, scene_preset
from boxquery.data.scenes.open import holds_scenes, only_images
from boxquery.fine_tuning import find_start, from_shapes, tune
from boxquery.flags import AUTO, DEFAULT_PRESET, Augmentation, Options, Switch, check_seed
from boxquery.limits import check_above_zero

if TYPE_CHECKING:
    from boxquery.check.feasibility import FeasibilityPlan
    from boxquery.check.run_checks import CheckResult
    from boxquery.data.dataset import Split

_CLASSES = 20  # rows of the table of classes
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass(frozen=True)
class ShownCheck:
    """A check as text, as JSON, and as an exit status."""

    result: CheckResult
    plan: FeasibilityPlan | None
    messages: list[str]
    written: list[Path]

    @property
    def status(self) -> int:
        return self.result.status

    def summary(self) -> dict[str, Any]:
        return self.result.values()

    def show(self) -> None:
        console = Console(soft_wrap=True, highlight=False)
        facts = self.result.facts["data"]
        splits, names = facts["splits"], facts["names"]
        table = Table(title=escape(f"{facts['source']} ({facts['format']})"), title_justify="left")
        table.add_column("")
        for name in splits:
            table.add_column(name, justify="right")
        unit = "images" if self.plan else "scenes"
        for key, title in (("images", unit), ("empty_images", "without boxes"), ("objects", "boxes"), ("ignored", "ignored boxes")):
            table.add_row(title, *(f"{split[key]:,}" for split in splits.values()))
        for i, name in enumerate(names[:_CLASSES]):
            table.add_row(escape(f"  {name}"), *(f"{split['per_class'][i]:,}" for split in splits.values()))
        if len(names) > _CLASSES:
            table.add_row(f"  and {len(names) - _CLASSES} more classes", *[""] * len(splits))
        console.print(table)
        for line in [self._objects(), *self.messages]:
            console.print(line, markup=False, style="yellow" if line.startswith("skipped") else None)
        for level, line in self.result.lines():
            console.print(line, markup=False, style=_STYLES[level])
        if not facts["skipped"] and all(finding.level == "note" for finding in self.result.findings):
            console.print("No problem found.")
        if self.written:
            files = ", ".join(sorted(path.name for path in self.written))
            console.print(f"written to {self.result.folder}: {files}", markup=False)
        console.print(f"{self.result.seconds:.1f} s")

    def _objects(self) -> str:
        """How many objects there are, and of images how large, in a line."""
        if self.plan is None:
            at_size = self.result.facts["scenes"]
            return f"{_range(at_size['objects_per_scene'])} objects per training scene, the model predicts at most {at_size['queries']}."
        at_size = self.result.facts["feasibility"]
        side, number = at_size["side_percentiles"], at_size["objects_per_image"]
        return (
            f"For {self.plan.model} ({self.plan.preset}) at {at_size['image_size']} px: objects measure {_range(side)} px, a cell of the "
            f"feature map {at_size['cell']} px, {at_size['below_a_cell']:.0%} of the objects are smaller; {_range(number)} objects per "
            f"training image, the model predicts at most {at_size['queries']}."
        )


def check(
    data: str,
    /,
    *,
    model: str = AUTO,
    preset: str | None = None,
    options: Options = None,
    augment: Augmentation = None,
    image_size: int | None = None,
    epochs: int | None = None,
    overfit: Switch = False,
    out: Path | None = None,
    strict: Switch = False,
    images: str | None = None,
    annotations: str | None = None,
    seed: int = 0,
) -> ShownCheck:
    """Report what the data is, what is wrong with it, and what will go wrong in training. Exit status 1: `train` would refuse it;
    2: the data cannot be read.

    Args:
        data: Data set in COCO, Pascal VOC or YOLO layout, or shapes for the built-in scenes; nuScenes' folder, or surround for those of
            several cameras.
        model: Model to be trained; `boxquery models` lists them. auto chooses as `train` does, for this machine.
        preset: Size and recipe of the model: paper, small, tiny, or a further size that is published, see `boxquery models NAME`. Default:
            auto's choice, or small.
        options: Model option as name=value, repeatable; docs/options.md lists them.
        augment: Draw training images before and after augmentation (augmented.png): what `train` does, or a level (none, light, default,
            strong) and parts as name=value, repeatable; docs/augmentation.md lists them.
        image_size: Short side of the images in pixels. Default: auto's choice, or the preset's.
        epochs: Planned length of the training. Default: auto's choice, or the preset's.
        overfit: Also test, for at most a minute, whether the model can overfit four of the images (at 160 pixels, preset tiny).
        out: Folder for check.json, check.png (images with their boxes) and check.html. Default: checked-DATA where a finding speaks of
            images or --augment is given, else nothing is written.
        strict: Fail on invalid boxes and images instead of skipping them.
        images: Folder of the images, where it is not found by itself. Relative to the data or the working directory.
        annotations: Folder or file of the annotations, where it is not found by itself. Relative to the data or the working directory.
        seed: Seeds the augmentation in the pictures and the overfit test.
    """
    from boxquery.check.annotation_format import open_checked
    from boxquery.check.run_checks import run_checks
    from boxquery.models import check_image_model, check_options
    from boxquery.models import preset as known_preset

    check_above_zero(epochs=epochs, image_size=image_size)
    check_seed(seed)
    flags: dict[str, Any] = {"model": model, "preset": preset or DEFAULT_PRESET, "options": options or {}}
    flags |= {"image_size": image_size, "epochs": epochs, "augment": augment_parts(augment)}
    if holds_scenes(data):
        only_images({"images": images, "annotations": annotations, "augment": augment, "image_size": image_size, "epochs": epochs}, data)
        with _progress_bar() as progress:
            return _check_scenes(data, model, preset, options or {}, overfit, out, strict, seed, progress)
    if model != AUTO:
        check_image_model(model)
        check_options(model, flags["preset"], flags["options"])  # before the data is read
    with _progress_bar() as progress:
        opened, findings = open_checked(data, strict=strict, images=images, annotations=annotations)
        train = opened.split("train")
        if model == AUTO:
            flags = _automatic(
                train, Given(preset=preset, options=options, image_size=image_size, epochs=epochs, augment=augment), opened.source
            )
        shown = augmentation(flags.pop("augment"), known_preset(flags["model"], flags["preset"]).recipe.augment)
        plan = plan_for(**flags, classes=len(opened.names), images=len(train))
        picture = "if needed" if out is None else "always"
        result = run_checks(
            opened, findings, plan, shown, seed=seed, picture=picture, preview=augment is not None, progress=progress
        )  # fmt: skip
        if overfit:
            from boxquery.check.overfit import overfit_batch

            tested = overfit_batch(
                opened, plan.model, options or {}, seed=seed, progress=lambda done, total: progress("overfitting", done, total)
            )
            result.overfit = tested.values()
            result.add([tested.finding()])
            result.seconds += tested.seconds
    if out is None and (result.picture is not None or result.augmented is not None):  # a finding speaks of images, or they were asked for
        out = _own_folder(f"checked-{Path(data).resolve().stem}")
    written = []
    if out is not None:
        from boxquery.report.page import write_check

        written = [*result.write(out), write_check(out)]
    return ShownCheck(result, plan, opened.messages(), written)


def _check_scenes(
    data: str, model: str, preset: str | None, options: dict[str, Any], overfit: bool, out: Path | None, strict: bool, seed: int,
    progress: Callable[[str, int, int], Any],
) -> ShownCheck:  # fmt: skip
    """The same of scenes of several cameras."""
    from boxquery.check.scenes import check_scenes
    from boxquery.data.scenes.open import open_scenes
    from boxquery.device import choose_device
    from boxquery.models import check_options, check_scene_model
    from boxquery.models import preset as known_preset

    if model == AUTO:
        model, preset = SCENE_MODEL, preset or scene_preset(choose_device("auto"))
    preset = preset or DEFAULT_PRESET
    check_scene_model(model)
    check_options(model, preset, options)
    queries = known_preset(model, preset).options.num_queries
    opened = open_scenes(data, strict=strict)
    opened.training_split()
    most = options.get("num_queries", queries)
    result = check_scenes(opened, [], queries=most[-1] if isinstance(most, list) else most, picture=out is not None)
    if overfit:
        from boxquery.check.scene_overfit import overfit_scenes

        tested = overfit_scenes(opened, model, options, seed=seed, progress=lambda done, total: progress("overfitting", done, total))
        result.overfit = tested.values()
        result.add([tested.finding()])
        result.seconds += tested.seconds
    written = []
    if out is not None:
        from boxquery.report.page import write_check

        written = [*result.write(out), write_check(out)]
    return ShownCheck(result, None, opened.messages(), written)


def _own_folder(name: str) -> Path:
    """A folder of that name, or of that name and a number, that is new or holds nothing but what an earlier check wrote."""
    places = (Path(name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(place for place in places if not os.path.lexists(place) or _holds_a_check(place))


def _holds_a_check(place: Path) -> bool:
    return place.is_dir() and all(file.name in ("check.json", "check.png", "augmented.png", "check.html") for file in place.iterdir())


def _range(percentiles: dict[str, float]) -> str:
    low, middle, high = (percentiles[key] for key in ("0", "50", "100"))
    return f"{low:g}" if low == high else f"{low:g} to {high:g} (median {middle:g})"


def _automatic(train: Split, given: Given, source: str) -> dict[str, Any]:
    """The flags that ``auto`` chooses on this machine and that a check depends on; says so on stderr."""
    from boxquery.device import Processor, choose_device
    from boxquery.progress import stderr_console

    console = stderr_console()
    facts, processor = DataFacts.of(train), Processor.of(choose_device("auto"))
    start = find_start(facts, processor, given, lambda line: console.print(line, markup=False))
    choice = from_shapes(choose(facts, processor, given), given, source) if start is None else tune(facts, processor, given, *start)
    for line in choice.lines:
        console.print(line, markup=False)
    return {name: value for name, value in choice.flags().items() if name not in ("lr", "recipe")}


def plan_for(
    model: str, preset: str, options: dict[str, Any], *, classes: int, images: int, image_size: int | None = None,
    epochs: int | None = None, batch_size: int | None = None, square: bool | None = None, start_from: str | None = None,
) -> FeasibilityPlan:  # fmt: skip
    """What ``train`` would do with these flags; the model is built without memory for its weights."""
    import torch

    from boxquery.check.feasibility import FeasibilityPlan
    from boxquery.models import create_model
    from boxquery.models import preset as known_preset

    recipe = known_preset(model, preset).recipe
    with torch.device("meta"):
        built = create_model(model, classes=classes, preset=preset, **options)
    steps = (epochs or recipe.epochs) * max(images // min(batch_size or recipe.batch_size, images), 1)
    return FeasibilityPlan.of(
        built, image_size=image_size or recipe.image_size, square=recipe.square if square is None else square, steps=steps,
        start="" if start_from else "random",
    )  # fmt: skip


@contextmanager
def _progress_bar() -> Iterator[Callable[[str, int, int], Any]]:
    """A bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)
