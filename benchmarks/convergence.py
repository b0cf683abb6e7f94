"""The article's main claim in miniature: how many images each system has to see, next to DETR.

    python benchmarks/convergence.py                     # everything; if stopped, run it again to continue
    python benchmarks/convergence.py --show              # only the table and the figure, from existing results

Every model trains with preset "tiny" on the built-in scenes at 128 pixels: the same scenes, order, batch size, schedule, one feature map
at stride 8, and the same candidate learning rates. AP is measured on the 200 validation scenes after every 2,000 images seen. As in the
papers, the backbone is pre-trained and the transformer starts from random weights: first, ``PRETRAINING`` trains a backbone on other
scenes, the same file for all, with its stem, first stage and batch norms frozen. A model's learning rate is the one that needs fewer
images to AP50 0.30 with the first seed or, if neither gets there, the one with the higher final AP50; the other seed runs at that rate
only, so it confirms a choice, on other scenes, that it had no part in. A model that does not get there has one longer run, at the lower
rate: DETR ``--long``, others twice as long. Deformable DETR is the article's: without refinement, two-stage or denoising.

Runs use one thread each, ``--jobs`` at a time, and are in ``--runs``, where the model after the first 2,000 images is kept as ``early``.
Results are in ``--out``: ``results.json`` (every curve; runs that are finished there are not repeated), ``table.md``, ``convergence.svg``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import geometric_mean, mean
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

import boxquery as bq
from boxquery.compare.results import reached
from boxquery.data.shapes import shapes_data
from boxquery.models import register
from boxquery.models.recipes import NARROW_RESNET10
from boxquery.report.run_files import read_run

HERE = Path(__file__).parent
RATES, SEEDS = (5e-4, 2.5e-4), (0, 1)
#: images in an epoch of the built-in scenes
EPOCH = 2000
GOAL = 0.30
#: an AP50 that DETR reaches in its long run: where its images are compared with the others'
LEVEL = 0.15
FIVE = ("deformable-detr", "smca-detr", "anchor-detr", "dab-detr", "sam-detr")
#: turns off what "tiny" adds to the article's system, or to one map
PLAIN: dict[str, dict[str, Any]] = {
    "deformable-detr": {"box_refine": False, "two_stage": False, "matching": "one-to-one", "levels": 1},
    "dab-deformable-detr": {"levels": 1},
}
#: name -> model and options; after the family, the article's question about SAM-DETR, and docs/mixing.md's combination
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, PLAIN.get(name, {})) for name in bq.list_models()} | {
    "sam-detr-without-cross-attention": ("sam-detr", {"cross_attention": False}),
    "anchor-smca": ("anchor-smca", {}),
}
BODY: dict[str, Any] = json.loads(json.dumps({**NARROW_RESNET10, "output_stride": 8}))  # lists instead of tuples, as in a run's settings
#: pre-trains the backbone: proposals and denoising supervise every cell; without an encoder its features have to suffice
PRETRAINING: dict[str, Any] = {
    "model": "deformable-detr", "preset": "tiny", "image_size": 128, "epochs": 3, "lr": 1e-3, "seed": 1000, "device": "cpu",
    "precision": "float32", "pretrained": False, "options": {"levels": 1, "encoder_layers": 0, "backbone_options": BODY},
}  # fmt: skip

Run = tuple[str, float, int, int]  # model, learning rate, seed, epochs


def first_runs(models: list[str], images: int) -> list[Run]:
    """Every model at each learning rate with the first seed; those outside the family at the first rate only."""
    every = [(model, rate, SEEDS[0], images // EPOCH) for rate in RATES for model in models if model in bq.list_models()]
    return every + [(model, RATES[0], SEEDS[0], images // EPOCH) for model in models if model not in bq.list_models()]


def other_runs(models: list[str], images: int, long: int, curves: dict[str, list[dict[str, float]]]) -> list[Run]:
    """Longer runs of models that did not reach the goal, then the other seeds of each model at its chosen learning rate."""
    rows = [row for row in summary(curves, images) if row["model"] in models]
    rates = {row["model"]: row["rate"] for row in rows}
    late = [row["model"] for row in rows if row["images_to_goal"][0] is None]
    every = [(model, min(RATES), SEEDS[0], (long if model == "detr" else 2 * images) // EPOCH) for model in late]
    return every + [(model, rates[model], seed, images // EPOCH) for seed in SEEDS[1:] for model in models if model in rates]


def name_of(run: Run) -> str:
    model, rate, seed, epochs = run
    return f"{model}-{rate:g}-{seed}-{epochs}"


def backbone(folder: Path) -> Path:
    """The backbone file that all runs start from; trained if missing."""
    file = folder / "backbone.safetensors"
    if not file.exists():
        torch.set_num_threads(1)
        where, scenes = folder / "pretraining", shapes_data(train=4000, seed=PRETRAINING["seed"])
        model = bq.train(scenes, out=where, resume=(where / "last.ckpt").exists(), **PRETRAINING).model
        start = "backbone.body."
        weights = {name.removeprefix(start): v.contiguous() for name, v in model.state_dict().items() if name.startswith(start)}
        save_file(weights, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    return file


def train(folder: Path, run: Run, weights: Path) -> None:
    """One run in its own process; resumes one that was stopped."""
    where = folder / name_of(run)
    command = [sys.executable, __file__, "--one", json.dumps([str(where), str(weights), *run])]
    with (folder / f"{where.name}.log").open("a") as log:
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log)
        while (status := _ended(process)) is None:
            if len(curve(where)) == 1 and not (where / "early").exists():
                shutil.copytree(where / "model", where / "early")
    print(f"{where.name}: {'done' if status == 0 else f'failed with status {status}, see {log.name}'}", flush=True)


def _ended(process: subprocess.Popen) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(5)
    return None


def one(where: str, weights: str, system: str, rate: float, seed: int, epochs: int) -> None:
    """Entry point of such a process."""
    register("anchor-smca", combination())
    model, options = SYSTEMS[system]
    options = {"dilation": False, **options, "backbone_options": BODY}
    settings: dict[str, Any] = {"model": model, "preset": "tiny", "options": options, "pretrained": weights, "backbone_lr_factor": 1.0}
    settings |= {"image_size": 128, "epochs": epochs, "lr": rate, "seed": seed, "device": "cpu", "precision": "float32", "workers": 0}
    bq.train(shapes_data(seed=seed), out=Path(where), resume=(Path(where) / "last.ckpt").exists(), **settings)


def combination() -> ModuleType:
    """The model composed in docs/mixing.md."""
    module = ModuleType("anchor_smca")
    page = (HERE.parent / "docs" / "mixing.md").read_text()
    source = page.split("```python\n")[1].split("```")[0]
    sys.modules[module.__name__] = module  # where a dataclass looks for its module
    exec(compile(source, "docs/mixing.md", "exec"), module.__dict__)
    module.__doc__ = source.split('"""')[1]
    return module


def curve(where: Path) -> list[dict[str, float]]:
    """A row per evaluation: images, CPU seconds, AP, AP50, and the queries' alignment per layer."""
    rows = [row for row in read_run(where).epochs if "AP50" in row] if where.is_dir() else []
    known = ("images", "cpu_seconds", "AP", "AP50", "query_changes")
    return [{k: v for k, v in row.items() if k in known or k.startswith(("inside_", "entropy_", "distance_"))} for row in rows]


def needed(points: list[dict[str, float]], axis: str, goal: float = GOAL) -> float | None:
    """Where on the axis AP50 first reaches the goal, interpolated linearly; None if it does not."""
    return reached(points, axis, goal, "AP50")


def summary(curves: dict[str, list[dict[str, float]]], images: int) -> list[dict[str, Any]]:
    """A row per model at its better learning rate, sorted by name; only runs with the planned number of images."""
    rows = []
    for model in sorted({name.rsplit("-", 3)[0] for name in curves}):
        by_rate: dict[float, list[list[dict[str, float]]]] = {}
        for rate in RATES:
            found = [curves.get(f"{model}-{rate:g}-{seed}-{images // EPOCH}", []) for seed in SEEDS]
            if len(found[0]) == images // EPOCH:
                by_rate[rate] = [points for points in found if len(points) == images // EPOCH]
        if not by_rate:
            continue
        rate = min(by_rate, key=lambda r: (needed(by_rate[r][0], "images") or images, -by_rate[r][0][-1]["AP50"]))
        found = by_rate.pop(rate)
        rows.append({
            "model": model, "rate": rate, "seeds": len(found), "AP": [points[-1]["AP"] for points in found],
            "AP50": [points[-1]["AP50"] for points in found], "images_to_goal": [needed(points, "images") for points in found],
            "cpu_seconds_to_goal": [needed(points, "cpu_seconds") for points in found],
            "other_rates": {f"{r:g}": [points[-1]["AP50"] for points in v] for r, v in by_rate.items()},
        })  # fmt: skip
    return rows


def shown(values: list[float | None], digits: int = 0) -> str:
    return " / ".join("not reached" if v is None else f"{v:,.{digits}f}" for v in values)


def all_curves(folder: Path, out: Path) -> dict[str, list[dict[str, float]]]:
    """Curves of all runs: finished ones from the results, others from their folders."""
    known = json.loads((out / "results.json").read_text())["curves"] if (out / "results.json").exists() else {}
    here = {path.name: curve(path) for path in sorted(folder.iterdir()) if path.name.rsplit("-", 3)[0] in SYSTEMS and path.is_dir()}
    return known | {name: points for name, points in here.items() if len(points) > len(known.get(name, []))}


def write(folder: Path, out: Path, images: int) -> None:
    curves = all_curves(folder, out)
    rows = summary(curves, images)
    (out / "results.json").write_text(json.dumps({"goal": GOAL, "images": images, "summary": rows, "curves": curves}, indent=1) + "\n")
    lines = [
        f"| model | learning rate | images to AP50 {GOAL:.2f} | CPU seconds to it "
        f"| AP50 after {images:,} images | AP | AP50 at the other learning rate |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: mean(n or 10 * images for n in r["images_to_goal"])):
        other = "; ".join(f"{rate}: {shown(values, 3)}" for rate, values in row["other_rates"].items())
        lines.append(
            f"| {row['model']} | {row['rate']:g} | {shown(row['images_to_goal'])} | {shown(row['cpu_seconds_to_goal'])} "
            f"| {shown(row['AP50'], 3)} | {shown(row['AP'], 3)} | {other} |"
        )
    for name, points in sorted(curves.items()):
        model, planned = name.rsplit("-", 3)[0], int(name.rpartition("-")[2])
        if model in SYSTEMS and images // EPOCH < planned == len(points):
            count, last = needed(points, "images"), points[-1]
            outcome = f"needs {count:,.0f} images" if count else f"does not get there in {last['images']:,.0f} images"
            lines.append(f"\nThe longer run of `{model}` ({name}) {outcome}; it ends at AP50 {last['AP50']:.3f}, AP {last['AP']:.3f}.")
    lines += _beside_detr(rows, curves, images)
    (out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    draw(out / "convergence.svg", rows, curves, images)


def _beside_detr(rows: list[dict[str, Any]], curves: dict[str, list[dict[str, float]]], images: int) -> list[str]:
    """Images to ``LEVEL``: DETR's long run over the mean of a model's seeds; at the end the article's five together."""
    long = [points for name, points in curves.items() if name.startswith("detr-") and len(points) > images // EPOCH]
    slow = min((n for points in long if (n := needed(points, "images", LEVEL))), default=None)
    if slow is None:
        return []
    lines = [
        f"\nImages to AP50 {LEVEL:.2f}; DETR's long run needs {slow:,.0f}:\n",
        "| model | images | ratio of DETR's to their mean |",
        "|---|---|---|",
    ]
    ratios = {}
    for row in rows:
        found = [curves[f"{row['model']}-{row['rate']:g}-{seed}-{images // EPOCH}"] for seed in SEEDS[: row["seeds"]]]
        counts = [needed(points, "images", LEVEL) for points in found]
        known = [n for n in counts if n is not None]
        if known and len(known) == len(counts):
            ratios[row["model"]] = slow / mean(known)
            lines.append(f"| {row['model']} | {shown(counts)} | {ratios[row['model']]:.1f} |")
    five = [ratios[name] for name in FIVE if name in ratios]
    return [
        *lines,
        f"\nThe article's five need {min(five):.0f} to {max(five):.0f} times fewer, {geometric_mean(five):.1f} in the geometric mean.",
    ]


def draw(path: Path, rows: list[dict[str, Any]], curves: dict[str, list[dict[str, float]]], images: int) -> None:
    """AP50 against images seen (the claim) and CPU seconds; longer runs in the middle; a line per seed, at the better rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    planned = images // EPOCH
    for number, row in enumerate(rows):
        usual = [curves.get(f"{row['model']}-{row['rate']:g}-{seed}-{planned}", []) for seed in SEEDS]
        longer = [points for name, points in curves.items() if name.startswith(f"{row['model']}-{min(RATES):g}-") and len(points) > planned]
        for axis, name, which in (
            (axes[0], "images", usual),
            (axes[1], "images", longer or usual),
            (axes[2], "cpu_seconds", usual),
        ):
            for points in which:
                if len(points) >= planned:
                    x, y = [0.0, *(p[name] for p in points)], [0.0, *(p["AP50"] for p in points)]
                    axis.plot(x, y, color=f"C{number}", lw=1.5, label=row["model"] if points is which[0] else None)
    for axis, title in zip(
        axes, ("images seen", "images seen, with the longer runs", "CPU seconds (training and evaluation)"), strict=True
    ):
        axis.axhline(GOAL, color="0.7", lw=0.8, ls="--")
        axis.set(xlabel=title, xlim=0, ylim=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("AP50 on 200 validation scenes")
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right upper", frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(SYSTEMS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--images", type=int, default=8000, help="images per run, a multiple of 2,000 (default: %(default)s)")
    parser.add_argument("--long", type=int, default=40000, help="images of DETR's long run (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/convergence"))
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "convergence")
    parser.add_argument("--show", action="store_true", help="only write the table and the figure")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return one(*args.one)
    for folder in (args.out, args.runs):
        folder.mkdir(parents=True, exist_ok=True)
    models = args.models.split(",")
    if not args.show:
        weights = backbone(args.runs)
        for seeds in ("first", "others"):
            known = all_curves(args.runs, args.out)
            every = first_runs(models, args.images) if seeds == "first" else other_runs(models, args.images, args.long, known)
            left = [run for run in every if len(known.get(name_of(run), [])) < run[3]]
            with ThreadPoolExecutor(args.jobs) as pool:
                list(pool.map(lambda run: train(args.runs, run, weights), left))
    write(args.runs, args.out, args.images)


if __name__ == "__main__":
    main()
