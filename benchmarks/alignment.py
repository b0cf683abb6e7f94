"""Do queries attend to their objects, and does AP rise with it? The article's explanation of slow convergence, in two figures.

    python benchmarks/alignment.py reading OUT.png NAME=FOLDER ...      # one object's query: attention in the last decoder layer
    python benchmarks/alignment.py curves OUT.png NAME=RUN ...          # AP50 and alignment over training, a panel per run

A FOLDER is a model folder (``RUN/model``, ``RUN/early`` of benchmarks/convergence.py) or a run; ``RUN@0`` is the run's model before its
first step, rebuilt from its settings. ``reading`` shows a validation scene (``--scene``) and its largest object (or ``--object``); the
query is the one matched to the object in the last layer, as in training. ``curves`` reads ``metrics.csv`` of each run; the point at
0 images is measured on the untrained model. Both print the numbers that they draw.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import boxquery as bq
from boxquery.data.dataset import Data
from boxquery.data.loading import DetectionDataset, collate
from boxquery.data.open import open_data
from boxquery.data.preprocessing import Preprocessing
from boxquery.detector import Detector
from boxquery.evaluation.alignment import measure_batch, measure_split, with_objects
from boxquery.explain.figure import draw_map
from boxquery.training.config import RunConfig
from boxquery.training.pretrained import recorded_weights
from convergence import curve

INK, GOLD, TEAL, QUIET = "#1f2933", "#e0a100", "#0f8b8d", "#8a949e"
#: the untrained model is measured on the objects of at most N images, as in training
MEASURED_IMAGES = 32
#: a query has turned to its object from this multiple of the share that uniform attention has inside it
TURNED = 1.5


def detector_of(where: str, data: Data) -> Detector:
    """A trained model, or with ``@0`` its run's initial model."""
    run, at, moment = where.partition("@")
    if not at:
        return bq.load(run)
    assert moment == "0", f"{where}: only @0 can be rebuilt"
    config = RunConfig.read(Path(run))
    torch.manual_seed(config.seed)
    weights = recorded_weights(config) or False
    model = bq.create_model(config.model, classes=data.names, preset=config.preset, pretrained=weights, **config.options)
    return Detector(model.eval(), data.names, data.ids, Preprocessing(config.image_size))


@torch.no_grad()
def reading(out: Path, models: dict[str, str], data: Data, scene: int, number: int | None) -> None:
    split = data.splits["val"]
    record, image = split[scene], split.read(scene)
    sizes = (record.boxes[:, 2:] - record.boxes[:, :2]).prod(1)
    chosen = int(sizes.argmax()) if number is None else number
    columns = min(4, len(models))
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(2.6 * columns, (2.6 * image.height / image.width + 0.45) * rows), layout="constrained")
    for axis, (name, where) in zip(figure.subplots(rows, columns, squeeze=False).flat, models.items(), strict=False):
        detector = detector_of(where, data)
        batch = collate([DetectionDataset(split, detector.transform)[scene]])
        traced = detector.model.eval()(batch.images, batch.mask, trace="decoder", last_only=True)
        pairs = detector.model.match(traced, batch.targets)[-1]
        found = measure_batch(traced, batch.targets, pairs)
        query, inside, entropy = int(found.query[chosen]), found.inside[-1, chosen], found.entropy[-1, chosen]
        scale = 3
        heat = traced.trace.layers[-1].heatmap(query, (image.height * scale, image.width * scale))
        draw_map(axis, image, heat.map)
        left, top, right, bottom = record.boxes[chosen].tolist()
        axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, ec="white", ls="--", lw=1.5))
        axis.set_title(name, fontsize=10, color=INK)
        axis.set_xlabel(f"{inside:.0%} in the object (uniform: {found.even[chosen]:.0%})", fontsize=9, color=INK)
        axis.set(xticks=[], yticks=[])
        print(f"{name}: query {query}, {inside:.3f} inside ({found.even[chosen]:.3f} if uniform), entropy {entropy:.3f}")
    for axis in figure.axes[len(models) :]:
        axis.set_axis_off()
    figure.savefig(out, dpi=100)


def curves(out: Path, runs: dict[str, str], data: Data) -> None:
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(2.75 * columns, 2.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    positions = with_objects(data.splits["val"], MEASURED_IMAGES)
    for axis, (name, run) in zip(axes.flat, runs.items(), strict=False):
        start = measure_split(detector_of(f"{run}@0", data), data.splits["val"], only=positions).columns()
        points = [{"images": 0.0, "AP50": 0.0, **start}, *curve(Path(run))]
        _panel(axis, name, points)
    lines, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    for axis in list(axes.flat)[len(runs) :]:
        axis.set_axis_off()
    figure.savefig(out, dpi=100)


def _panel(axis: Axes, name: str, points: list[dict[str, float]]) -> None:
    last = max(int(key.removeprefix("inside_")) for key in points[-1] if key.startswith("inside_") and key != "inside_even")
    images = np.array([p["images"] for p in points])
    for key, colour, style, label in (
        ("AP50", GOLD, "-", "AP50"),
        (f"inside_{last}", TEAL, "-", "attention inside the object, last layer"),
        ("inside_1", TEAL, ":", "the same, first layer"),
        (f"entropy_{last}", QUIET, "-", "entropy of attention, last layer"),
    ):
        axis.plot(images, [p.get(key, np.nan) for p in points], color=colour, ls=style, lw=1.6, label=label)
    axis.axhline(points[-1]["inside_even"], color=TEAL, lw=0.8, ls=(0, (1, 3)))
    axis.set_title(name, fontsize=10, color=INK)
    axis.set(ylim=(0, 1), xlim=(0, images[-1]), xlabel="images seen")
    axis.spines[["top", "right"]].set_visible(False)
    numbers = ((p["images"], p["AP50"], p[f"inside_{last}"], p[f"entropy_{last}"]) for p in points)
    print(f"{name}: " + "; ".join(f"{i:,.0f} images AP50 {a:.3f} inside {s:.3f} entropy {e:.3f}" for i, a, s, e in numbers))

    def most(point: dict[str, float]) -> float:
        return max(point[f"inside_{i}"] for i in range(1, last + 1))

    turned, learned = _first(points, lambda p: most(p) >= TURNED * p["inside_even"]), _first(points, lambda p: p["AP50"] >= 0.05)
    print(f"{name}: {TURNED} times the uniform share inside at {turned}, {most(points[-1]):.3f} at the end; AP50 is .05 at {learned}")


def _first(points: list[dict[str, float]], holds: Callable[[dict[str, float]], bool]) -> str:
    """The first evaluation of a run at which a condition holds."""
    return next((f"{p['images']:,.0f} images" for p in points if holds(p)), "no time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("reading", "curves"))
    parser.add_argument("out", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--data", default="shapes", help="data set (default: the built-in scenes)")
    parser.add_argument("--scene", type=int, default=8, help="index of the validation image (default: %(default)s)")
    parser.add_argument("--object", type=int, help="its index in the scene (default: the largest)")
    args = parser.parse_args()
    named, data = dict(each.split("=", 1) for each in args.models), open_data(args.data)
    if args.what == "reading":
        reading(args.out, named, data, args.scene, args.object)
    else:
        curves(args.out, named, data)


if __name__ == "__main__":
    main()
