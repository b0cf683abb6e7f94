"""``boxquery compare``: which model learns fastest on these data, under the same budget. Imports no torch until a plan is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter
from rich.console import Console

from boxquery.cluster import Engine, cores
from boxquery.compare.plan import FILE, CompareFlags, ComparisonPlan, entries_of, resolved_plan, same_data
from boxquery.compare.ray_runner import run_by_ray
from boxquery.compare.report import write_report
from boxquery.compare.results import RESULTS, collect
from boxquery.compare.runner import Runner, adopt
from boxquery.compare.table import result_table
from boxquery.data.scenes.open import only_images, open_scenes
from boxquery.errors import UserError, count
from boxquery.evaluation.metric_names import OF_SCENES
from boxquery.files import write_json
from boxquery.limits import check_above_zero
from boxquery.progress import stderr_console


def parse_names(kind: Any, tokens: Any) -> list[str]:
    """``--models detr,dab-detr`` -> a list."""
    return [name.strip() for token in tokens for name in token.value.split(",") if name.strip()]


def parse_sweep(kind: Any, tokens: Any) -> dict[str, list[Any]]:
    """``--sweep num_queries=10,30`` -> a dictionary of lists; values are read as ``--option`` reads them."""
    found: dict[str, list[Any]] = {}
    for token in tokens:
        name, equals, text = token.value.partition("=")
        try:
            values = yaml.safe_load(f"[{text}]")
        except yaml.YAMLError as error:
            raise ValueError(f"--sweep {token.value!r}: write name=a,b,c") from error
        if not name or not equals or not values:
            raise ValueError(f"--sweep {token.value!r}: write name=a,b,c")
        found[name.replace("-", "_")] = values
    return found


Names = Annotated[list[str] | None, Parameter(name=("--models", "--model"), converter=parse_names, n_tokens=1, allow_repeating=True)]
Sweep = Annotated[dict[str, list[Any]] | None, Parameter(name="--sweep", converter=parse_sweep, accepts_keys=False, n_tokens=1)]
Folders = Annotated[list[Path] | None, Parameter(consume_multiple=True)]


@dataclass(frozen=True)
class Comparison:
    """The results, for people a table and two sentences, for programs JSON.

    Attributes:
        result: see ``boxquery.compare.results.collect``.
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
    models: Names = None,
    plan: Path | None = None,
    sweep: Sweep = None,
    seeds: int = 3,
    flags: Annotated[CompareFlags, Parameter(name="*")] = CompareFlags(),  # noqa: B008
    out: Path | None = None,
    jobs: int | None = None,
    adopt_from: Annotated[list[Path] | None, Parameter(name="--adopt", consume_multiple=True)] = None,
    show: Folders = None,
    engine: Engine = "local",
) -> Comparison:
    """Train several models under the same budget, data order, augmentation and evaluation, and report which learns fastest.

    Args:
        data: Data set in COCO, Pascal VOC or YOLO layout, or `shapes` for the built-in scenes; nuScenes' folder or `surround` for models of
            several cameras; may be omitted to resume --out.
        models: Models to compare, separated by commas; `boxquery models` lists them.
        plan: YAML file that maps labels to model, preset, options and lr (docs/compare.md), in place of --models.
        sweep: Values of an option for a single model, as in num_queries=10,30,100.
        seeds: Runs per model, with seeds 0, 1, ...
        out: Folder of the comparison. The same command resumes it, and processes that share it divide the runs. Default: `comparisons/`
            and the name of the data.
        jobs: Runs at a time, one thread each. Default: one per CPU core; 1 on a GPU.
        adopt_from: Folders with finished runs: those with the configuration of a planned run are copied instead of trained.
        show: Folders that are parts of one comparison, to report on without training; written into --out, or the first of them.
        engine: Where the runs are: processes of this machine, or workers of the Ray cluster at RAY_ADDRESS (docs/scale.md).

    Writes ``compare.yaml``, ``results.json`` and ``report.html``; a run that fails does not stop the others. Raises ``UserError``.
    """
    if show:
        if data is not None or models or plan is not None or sweep or adopt_from:
            raise UserError("--show trains nothing: leave out data, --models, --plan, --sweep and --adopt")
        return _write_results(out or show[0], show)
    if out is None:
        if data is None:
            raise UserError("name the data to compare on, or the folder of a comparison to resume: --out DIR")
        out = Path("comparisons") / Path(data).resolve().name
    check_above_zero(jobs=jobs, seeds=seeds)
    flags.check()
    console = stderr_console()
    if models or plan is not None or sweep:
        if data is None:
            raise UserError("name the data: boxquery compare DATA --models A,B,... --out DIR")
        entries = entries_of(models or [], plan, sweep or {}, flags)
        if flags.pretrained == "auto" and (out / FILE).exists():
            flags = replace(flags, pretrained=ComparisonPlan.read(out).pretrained)
        plan_of_flags = resolved_plan(data, entries, range(seeds), flags, lambda line: console.print(line, markup=False))
        agreed = _write_plan(plan_of_flags, out, console)
    else:
        if not (out / FILE).exists():
            raise UserError(f"{out}: no comparison there to resume; name what to compare: --models A,B,...")
        agreed = ComparisonPlan.read(out)
        if data is not None and not same_data(agreed.data, data):
            raise UserError(f"{out} compares on {agreed.data}, not {data}: choose another --out, or name models")
    for planned, found in adopt(agreed, out, adopt_from or []):
        console.print(f"{planned.name}: adopted from {found}", markup=False, highlight=False)
    try:
        if engine == "ray":
            run_by_ray(agreed, out, jobs, console)
        else:
            Runner(agreed, out, jobs or (cores() if agreed.device == "cpu" else 1), console).run()
    finally:
        written = _write_results(out, [out])
    runs = written.result["runs"]
    if all(run["status"] == "failed" for run in runs):
        raise UserError(f"every run failed; the first: {runs[0]['reason']} (their output is in {out / 'state'})")
    return written


def _write_plan(plan: ComparisonPlan, folder: Path, console: Console) -> ComparisonPlan:
    """Write the plan, merged with the one that is there, after a look at the data."""
    from boxquery.data.open import open_data
    from boxquery.training.scene_task import check_scene_augment

    if (folder / FILE).exists():
        plan = ComparisonPlan.read(folder).merge(plan, folder)
    else:
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
            raise UserError(f"{folder} exists and is not a comparison; choose another --out")
        if plan.metrics is OF_SCENES:
            check_scene_augment(plan.augment)
            only_images({"images": plan.images, "annotations": plan.annotations}, plan.data)
            opened = open_scenes(plan.data, strict=plan.strict)
        else:
            opened = open_data(plan.data, strict=plan.strict, images=plan.images, annotations=plan.annotations)
        for name in ("train", "val"):
            opened.split(name)
    plan.write(folder)
    each = f"{count(len(plan.entries), 'model')} x {count(len(plan.seeds), 'seed')}, {plan.budget()} each"
    console.print(f"{each}: {folder / FILE}", markup=False)
    return plan


def _write_results(folder: Path, parts: Sequence[Path]) -> Comparison:
    result = collect(parts)
    write_json(folder / RESULTS, result)
    return Comparison(result, write_report(folder / "report.html", result))
