"""``boxquery compare``: which model learns fastest on these data, under the same budget. Imports no torch until a plan is made."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter
from rich.console import Console

from boxquery.compare.plan import FILE, ComparisonPlan, entries_of, resolved_plan, same_data
from boxquery.compare.report import write_report
from boxquery.compare.results import RESULTS, collect
from boxquery.compare.runner import Runner, adopt
from boxquery.compare.table import result_table
from boxquery.errors import UserError
from boxquery.files import write_json
from boxquery.flags import Options, check_above_zero


def names(kind: Any, tokens: Any) -> list[str]:
    """``--models detr,dab-detr`` -> a list."""
    return [name.strip() for token in tokens for name in token.value.split(",") if name.strip()]


def values(kind: Any, tokens: Any) -> dict[str, list[Any]]:
    """``--sweep num_queries=10,30`` -> a dictionary of lists; values are read as ``--option`` reads them."""
    found: dict[str, list[Any]] = {}
    for token in tokens:
        name, equals, text = token.value.partition("=")
        try:
            known = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError as error:
            raise ValueError(f"--sweep {token.value!r}: write name=a,b,c") from error
        if not name or not equals or not known:
            raise ValueError(f"--sweep {token.value!r}: write name=a,b,c")
        found[name.replace("-", "_")] = known
    return found


Names = Annotated[list[str] | None, Parameter(name=("--models", "--model"), converter=names, n_tokens=1, allow_repeating=True)]
Sweep = Annotated[dict[str, list[Any]] | None, Parameter(name="--sweep", converter=values, accepts_keys=False, n_tokens=1)]
Folders = Annotated[list[Path] | None, Parameter(consume_multiple=True)]


@dataclass(frozen=True)
class Comparison:
    """What came out; a person reads a table and two sentences, a program JSON.

    Attributes:
        result: as ``boxquery.compare.results.collect`` describes it.
        report: the page.
    """

    result: dict[str, Any]
    report: Path

    def summary(self) -> dict[str, Any]:
        return {**self.result, "report": str(self.report)}

    def show(self) -> None:
        console = Console(highlight=False)
        if self.result["entries"]:
            console.print(result_table(self.result))
        for line in (*self.result["conclusion"], *self.result["notes"]):
            console.print(line, markup=False)
        for run in self.result["runs"]:
            if run["status"] == "failed":
                console.print(f"failed: {run['label']}, seed {run['seed']}: {run['reason']}", markup=False, soft_wrap=True)
        console.print(f"report: {self.report}", markup=False, soft_wrap=True)


def compare(
    data: str | None = None,
    /,
    *,
    out: Path | None = None,
    models: Names = None,
    plan: Path | None = None,
    sweep: Sweep = None,
    minutes: float | None = None,
    epochs: int | None = None,
    images_seen: int | None = None,
    seeds: int = 3,
    preset: str = "small",
    options: Options = None,
    image_size: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    pretrained: bool = False,
    freeze_backbone: bool = False,
    device: str = "auto",
    precision: str = "auto",
    strict: bool = False,
    jobs: int | None = None,
    adopt_from: Annotated[list[Path] | None, Parameter(name="--adopt", consume_multiple=True)] = None,
    show: Folders = None,
) -> Comparison:
    """Train several models under the same budget, data order, augmentation and evaluation, and report which learns fastest.

    Args:
        data: a folder or file in COCO, Pascal VOC or YOLO layout, or the word ``shapes``; not needed to go on with ``out``.
        out: the folder of the comparison; None: ``comparisons/`` and the name of the data. The same command goes on with it; a second one,
            also on another machine, shares the work.
        models: names, separated by commas.
        plan: instead of models a YAML file: labels, each with ``model``, ``preset``, ``options``, ``lr`` as far as they differ.
        sweep: one model over values of an option: ``num_queries=10,30,100``.
        minutes: budget of every run: of the processor, so that a busy machine does not decide; on CUDA of the wall.
        epochs: instead, passes over the training images; where no budget is given the presets' own, which must agree.
        images_seen: instead, training images seen in all.
        seeds: runs of every model, with seeds 0, 1, ...
        preset: size and recipe: "paper", "small" or "tiny".
        options: of every model; on the command line ``--option name=value``, repeated.
        image_size: short side in pixels, for all; None: the presets', which must agree.
        batch_size: images a step, for all; None: the presets', which must agree.
        lr: rate of every model; None: each preset's own.
        pretrained: start from backbone weights of the hub.
        freeze_backbone: train none of the backbone.
        device: "auto", "cpu" or "cuda".
        precision: "auto", "float32" or "bf16".
        strict: boxes and images at fault are fatal instead of skipped.
        jobs: runs at a time, one thread each; None: as many as this machine has cores, on CUDA one.
        adopt_from: folders with finished runs; those whose configuration is a planned one count as done.
        show: train nothing: read these folders as parts of one comparison, and write results and report into ``out`` or the first of them.

    Writes ``compare.yaml``, ``results.json`` and ``report.html``; a model that fails does not stop the others. Raises ``UserError``.
    """
    if show:
        if data is not None or models or plan is not None or sweep or adopt_from:
            raise UserError("--show reads folders and trains nothing: leave out data, models, plan, sweep and adopt")
        return _written(out or show[0], [Path(folder) for folder in show])
    if out is None:
        if data is None:
            raise UserError("name the data to compare on, or the folder of a comparison to go on with: --out DIR")
        out = Path("comparisons") / Path(data).resolve().name
    check_above_zero(
        jobs=jobs, seeds=seeds, epochs=epochs, minutes=minutes, images_seen=images_seen, image_size=image_size, batch_size=batch_size, lr=lr
    )
    console = Console(stderr=True, soft_wrap=True)
    out = Path(out)
    if models or plan is not None or sweep:
        if data is None:
            raise UserError("name the data: boxquery compare DATA --models A,B,... --out DIR")
        if sum(value is not None for value in (minutes, epochs, images_seen)) > 1:
            raise UserError("--minutes, --epochs and --images-seen are three ways to say how long every run may learn; give one of them")
        wish = ComparisonPlan(
            data=str(data),
            entries=tuple(entries_of(models or [], plan, sweep or {}, preset, options or {}, lr)),
            seeds=tuple(range(seeds)),
            epochs=epochs,
            minutes=minutes,
            images_seen=images_seen,
            image_size=image_size or 0,
            batch_size=batch_size or 0,
            pretrained=pretrained,
            freeze_backbone=freeze_backbone,
            device=device,
            precision=precision,
            strict=strict,
        )
        agreed = _agreed(wish, out, console)
    else:
        if not (out / FILE).exists():
            raise UserError(f"{out}: no comparison there to go on with; name what to compare: --models A,B,...")
        agreed = ComparisonPlan.read(out)
        if data is not None and not same_data(agreed.data, str(data)):
            raise UserError(f"{out} compares on {agreed.data}, not {data}: choose another --out, or name models")
    for planned, found in adopt(agreed, out, [Path(folder) for folder in adopt_from or []]):
        console.print(f"{planned.name}: adopted from {found}", markup=False, highlight=False)
    try:
        Runner(agreed, out, jobs or (1 if agreed.device == "cuda" else _cores()), console).run()
    finally:
        written = _written(out, [out])
    reasons = [run["reason"] for run in written.result["runs"]]
    if all(run["status"] == "failed" for run in written.result["runs"]):
        raise UserError(f"every run failed; the first: {reasons[0]} (what each printed is in {out / 'state'})")
    return written


def _agreed(wish: ComparisonPlan, folder: Path, console: Console) -> ComparisonPlan:
    """The plan, checked and written down before anything is trained; with what an earlier command planned there."""
    from boxquery.data.open import open_data

    plan = resolved_plan(wish)
    if (folder / FILE).exists():
        plan = ComparisonPlan.read(folder).merge(plan, folder)
    else:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise UserError(f"{folder} is there and no comparison; choose another --out")
        opened = open_data(plan.data, strict=plan.strict)
        for name in ("train", "val"):
            opened.split(name)
    plan.write(folder)
    models, seeds = len(plan.entries), len(plan.seeds)
    each = f"{models} model{'s' * (models > 1)} x {seeds} seed{'s' * (seeds > 1)}, {plan.budget()} each"
    console.print(f"{each}: {folder / FILE}", markup=False)
    return plan


def _written(folder: Path, parts: Sequence[Path]) -> Comparison:
    result = collect(parts)
    write_json(folder / RESULTS, result)
    return Comparison(result, write_report(folder / "report.html", result))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
