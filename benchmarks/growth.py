"""How time and memory grow with pixels, queries, objects per image and images: the curves of docs/performance.md.

    python benchmarks/growth.py                        # measures what is missing, draws, writes the page; resumable
    python benchmarks/growth.py --only images          # one of pixels, queries, objects, images
    python benchmarks/growth.py --show                 # only page and figures

One thread, float32, preset ``small``, random weights; seconds are CPU time, the median of a few repetitions after one that is not counted.
Each point is measured in a forked process of its own, and its memory is the growth of that process's peak from before the measured work,
with the model or the data made (Linux only: /proc/self/clear_refs). What is measured:

- pixels: inference of one image and a training step (forward, matching, loss, backward, AdamW) on it, three to four in aspect;
- queries: the same at 240 x 320 pixels; deformable-detr one-stage, so that its queries are not bound by tokens;
- objects: a training step at 240 x 320 pixels on one image with so many objects, 300 queries;
- images: a data set of so many images of 64 x 48 pixels with two objects each: open it as COCO and as YOLO (every image's header is read),
  check it, draw an epoch's order, list it for predict, and evaluate 20 predictions per image.

The growth that is printed is the exponent of time or memory against the quantity between its last two points: 1 is linear.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image

import boxquery as bq
from boxquery.benchmark.machine import processor
from boxquery.data.dataset import Record
from boxquery.data.loading import EpochSampler
from boxquery.data.open import open_data
from boxquery.evaluation.metrics import evaluate
from boxquery.files import atomic_write, write_json
from boxquery.models import preset
from boxquery.optimization import Optimization
from boxquery.predict.sources import find_images
from cells import DOCS, put_into_page, svg

RESULTS, PAGE = DOCS / "experiments" / "results" / "growth.json", DOCS / "performance.md"
CLASSES = 20
MODELS = ("detr", "deformable-detr", "anchor-detr", "rt-detr")
#: short sides of the images; the long side is 4/3 of them
SIDES = (120, 240, 480, 720)
QUERIES = (50, 100, 200, 400, 800, 1600)
OBJECTS = (1, 10, 30, 100, 300)
IMAGES = (1_000, 10_000, 100_000)
#: repetitions of a step or an inference of which the median counts
REPETITIONS = 2
DETECTIONS = 20


class Point(NamedTuple):
    """One measurement: what grows, the line that it is on, and how much of it there is."""

    quantity: str
    line: str
    amount: int


class Cost(NamedTuple):
    seconds: float
    memory_mb: float


# -- one point in a process of its own ------------------------------------------------------------------------------------------------


def apart(work: Callable[[], Callable[[], object]], repetitions: int) -> Cost:
    """CPU seconds and growth of the peak of what ``work`` returns, in a fork of this process."""
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_child, args=(work, repetitions, theirs))
    process.start()
    theirs.close()
    try:
        return Cost(*mine.recv())
    finally:
        process.join()


def _child(work: Callable[[], Callable[[], object]], repetitions: int, pipe: Connection) -> None:
    run = work()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is held now
    before = _status("VmRSS")
    times = []
    for _ in range(repetitions + 1):
        started = time.process_time()
        run()
        times.append(time.process_time() - started)
    pipe.send((statistics.median(times[1:] or times), (_status("VmHWM") - before) / 1e6))


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


# -- what is measured -----------------------------------------------------------------------------------------------------------------


def inference(model: str, side: int, **options: Any) -> Callable[[], object]:
    net, images = _net(model, **options).eval(), torch.randn(1, 3, *_size(model, side))

    def run() -> None:
        with torch.inference_mode():
            net(images, last_only=True)

    return run


def step(model: str, side: int, objects: int = 8, **options: Any) -> Callable[[], object]:
    net, images = _net(model, **options).train(), torch.randn(1, 3, *_size(model, side))
    chance = torch.Generator().manual_seed(0)
    boxes = torch.rand(objects, 4, generator=chance) * 0.5 + 0.25
    targets = [{"labels": torch.randint(CLASSES, (objects,), generator=chance), "boxes": boxes}]
    optimizer = Optimization(net, preset(model, "small").recipe, {0: 1000}).optimizer

    def run() -> None:
        optimizer.zero_grad()
        net.loss(net(images, targets=targets), targets)[0].backward()
        optimizer.step()

    return run


def _net(model: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return bq.create_model(model, classes=CLASSES, preset="small", **options)


def _size(model: str, side: int) -> tuple[int, int]:
    """A square of as many pixels where the model is for squares; in multiples of 32."""
    if preset(model, "small").recipe.square:
        side = round(side * math.sqrt(4 / 3) / 32) * 32
        return side, side
    return side, side * 4 // 3


def pictures(folder: Path, count: int) -> None:
    """So many different images, and YOLO's label files beside them."""
    for kind in ("images", "labels"):
        (folder / kind / "train").mkdir(parents=True)
    chance = np.random.default_rng(0)
    for i in range(count):
        noise = chance.integers(0, 255, (3, 4, 3), np.uint8)
        Image.fromarray(noise).resize((64, 48)).save(folder / "images" / "train" / f"{i:06d}.jpg", quality=60)
        (folder / "labels" / "train" / f"{i:06d}.txt").write_text("".join(f"{i % CLASSES} {x} .5 .2 .4\n" for x in (0.3, 0.7)))
    (folder / "data.yaml").write_text(f"train: images/train\nnames: {[f'class {i}' for i in range(CLASSES)]}\n")


def coco(folder: Path, count: int) -> Path:
    """The same objects as COCO's JSON."""
    content = {
        "images": [{"id": i, "file_name": f"{i:06d}.jpg", "width": 64, "height": 48} for i in range(count)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(CLASSES)],
        "annotations": [
            {"id": 2 * i + k, "image_id": i, "category_id": i % CLASSES, "bbox": [x, 14.4, 12.8, 19.2], "area": 245.76, "iscrowd": 0}
            for i in range(count)
            for k, x in enumerate((12.8, 38.4))
        ],
    }
    path = folder.with_suffix(".json")
    path.write_text(json.dumps(content))
    return path


def over_images(line: str, folder: Path, count: int) -> Callable[[], object]:
    """What is done with a data set of so many images."""
    if line == "open as COCO":
        path = coco(folder, count)
        return lambda: open_data(str(path), images=str(folder / "images" / "train"))
    if line == "open as YOLO":
        return lambda: open_data(str(folder))
    if line == "check":
        from boxquery.cli import run

        def checked() -> None:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                assert run(["check", str(folder), "--model", "deformable-detr", "--out", str(folder.with_suffix(".checked"))]) in (0, 1)

        return checked
    if line == "order of an epoch":
        return lambda: sum(1 for _ in EpochSampler(count, 0))
    if line == "list for predict":
        return lambda: find_images([str(folder / "images" / "train")])
    chance = np.random.default_rng(0)
    boxes = np.array([[12.8, 14.4, 25.6, 33.6], [38.4, 14.4, 51.2, 33.6]], np.float32)
    areas, ignore = np.full(2, 245.76, np.float32), np.zeros(2, bool)
    records = [Record(i, None, 64, 48, boxes, np.full(2, i % CLASSES), ignore, areas) for i in range(count)]
    drawn = np.repeat(boxes, DETECTIONS // 2, 0)
    found = {
        i: (
            (drawn + chance.normal(0, 3, drawn.shape)).astype(np.float32),
            chance.random(DETECTIONS, np.float32),
            chance.integers(0, CLASSES, DETECTIONS),
        )
        for i in range(count)
    }
    return lambda: evaluate(records, found, [f"class {i}" for i in range(CLASSES)], range(CLASSES))


OVER_IMAGES = ("open as COCO", "open as YOLO", "check", "order of an epoch", "list for predict", "evaluate")


def points() -> list[Point]:
    lines = [f"{model}, {what}" for model in MODELS for what in ("inference", "step")]
    return [
        *(Point("pixels", line, side * (side * 4 // 3)) for line in lines for side in SIDES),
        *(Point("queries", line, queries) for line in lines for queries in QUERIES),
        *(Point("objects", f"{name}, step", amount) for name in ("detr", "deformable-detr", "dn-detr", "d-fine") for amount in OBJECTS),
        *(Point("images", line, amount) for line in OVER_IMAGES for amount in IMAGES),
    ]


def work_of(point: Point, folder: Callable[[int], Path]) -> tuple[Callable[[], Callable[[], object]], int]:
    """How to prepare a point, and how often it is repeated."""
    if point.quantity == "images":
        place = folder(point.amount) if point.line in FILES else Path()
        return lambda: over_images(point.line, place, point.amount), 0
    model, _, what = point.line.partition(", ")
    side = round(math.sqrt(point.amount * 3 / 4)) if point.quantity == "pixels" else 240
    options: dict[str, Any] = {} if point.quantity == "pixels" else {"num_queries": point.amount if point.quantity == "queries" else 300}
    if point.quantity == "queries":
        options |= {"deformable-detr": {"two_stage": False}, "anchor-detr": {"patterns": 1}}.get(model, {})
    if what == "inference":
        return lambda: inference(model, side, **options), REPETITIONS
    objects = point.amount if point.quantity == "objects" else 8
    return lambda: step(model, side, objects, **options), REPETITIONS


FILES = ("open as COCO", "open as YOLO", "check", "list for predict")


def measure(todo: Iterable[Point], results: Path) -> None:
    """Measure the points that are not in the results, which are kept one by one."""
    with TemporaryDirectory() as root:

        def folder(count: int) -> Path:
            place = Path(root) / str(count)
            if not place.exists():
                pictures(place, count)
            return place

        for point in todo:
            known = read(results)
            if point in known:
                continue
            cost = apart(*work_of(point, folder))
            print(f"{point.quantity} {point.amount:,}, {point.line}: {cost.seconds:.3f} s, {cost.memory_mb:.1f} MB", flush=True)
            known[point] = cost
            rows = [{**key._asdict(), "seconds": round(c.seconds, 5), "memory_mb": round(c.memory_mb, 2)} for key, c in known.items()]
            facts = {"processor": processor()["name"], "threads": 1, "torch": torch.__version__, "boxquery": bq.__version__}
            write_json(results, {"conditions": facts, "points": rows})


def read(results: Path) -> dict[Point, Cost]:
    rows = json.loads(results.read_text())["points"] if results.exists() else []
    return {Point(*(row[key] for key in Point._fields)): Cost(row["seconds"], row["memory_mb"]) for row in rows}


# -- page -----------------------------------------------------------------------------------------------------------------------------


def lines_of(known: Mapping[Point, Cost], quantity: str) -> dict[str, list[tuple[int, Cost]]]:
    """By line the amounts that are measured, rising, with their costs."""
    found: dict[str, list[tuple[int, Cost]]] = {}
    for point in points():
        if point.quantity == quantity and point in known:
            found.setdefault(point.line, []).append((point.amount, known[point]))
    return found


def exponent(line: list[tuple[int, Cost]], value: Callable[[Cost], float]) -> str:
    """Of the last two points."""
    if len(line) < 2 or min(value(cost) for _, cost in line[-2:]) <= 0:
        return "-"
    (small, a), (large, b) = line[-2:]
    return f"{math.log(value(b) / value(a)) / math.log(large / small):.2f}"


def draw(known: Mapping[Point, Cost], quantity: str) -> str:
    """Seconds and megabytes against the quantity, both axes logarithmic, with dotted lines that are linear growth."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, NullLocator

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    axes = figure.subplots(1, 2)
    lines = lines_of(known, quantity)
    names = list(dict.fromkeys(name.partition(", ")[0] for name in lines))
    for axis, (unit, value) in zip(axes, (("CPU seconds", lambda cost: cost.seconds), ("MB", lambda cost: cost.memory_mb)), strict=True):
        for name, line in lines.items():
            model, _, what = name.partition(", ")
            style = "o--" if what == "inference" else "o-"
            axis.plot(
                [amount for amount, _ in line], [max(value(cost), 1e-4) for _, cost in line], style, ms=3.5, lw=1.5,
                color=f"C{names.index(model)}", label=name,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel=LABELS[quantity], ylabel=unit)
        amounts = sorted({amount for line in lines.values() for amount, _ in line})
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xticks(amounts, [f"{amount:,}" for amount in amounts], fontsize=8)
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
        limits, edges = axis.get_ylim(), axis.get_xlim()
        for shift in range(-8, 12):
            axis.plot(edges, [10.0**shift, 10.0**shift * edges[1] / edges[0]], ":", color="0.82", lw=0.8, zorder=0)
        axis.set(ylim=limits, xlim=edges)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return svg(figure)


LABELS = {
    "pixels": "pixels of the image",
    "queries": "queries",
    "objects": "objects in the image",
    "images": "images of the data set",
}


def table(known: Mapping[Point, Cost], quantity: str) -> str:
    """Markdown: per line the costs of its points, and how they grow between the last two."""
    lines = lines_of(known, quantity)
    amounts = sorted({amount for line in lines.values() for amount, _ in line})
    head = [LABELS[quantity], *(f"{amount:,}" for amount in amounts), "growth of time", "growth of memory"]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, line in lines.items():
        cells = {amount: f"{_seconds(cost.seconds)}, {cost.memory_mb:,.0f} MB" for amount, cost in line}
        growth = [exponent(line, lambda cost: cost.seconds), exponent(line, lambda cost: cost.memory_mb)]
        rows.append(f"| {name} | {' | '.join([cells.get(amount, '-') for amount in amounts] + growth)} |")
    return "\n".join(rows)


def _seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def show(results: Path, keep: bool) -> None:
    """Print the tables; with ``keep`` also draw the figures and write the page."""
    known = read(results)
    for quantity in LABELS:
        text = table(known, quantity)
        print(text)
        if keep and lines_of(known, quantity):
            figure = DOCS / "performance" / f"{quantity}.svg"
            atomic_write(figure, draw(known, quantity))
            picture = f"![CPU seconds and memory against {LABELS[quantity]}](performance/{figure.name})"
            put_into_page(PAGE, f"{picture}\n\n{text}", quantity)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(LABELS), help="measure only what grows with these")
    parser.add_argument("--most", type=int, default=10**9, help="leave out larger amounts (default: none)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(default: %(default)s)")
    parser.add_argument("--show", action="store_true", help="only write page and figures")
    args = parser.parse_args()
    if sys.platform != "linux":
        parser.error("memory is measured by /proc, which only Linux has")
    torch.set_num_threads(1)
    if not args.show:
        measure((p for p in points() if args.only in (None, p.quantity) and p.amount <= args.most), args.results)
    show(args.results, keep=args.results == RESULTS)


if __name__ == "__main__":
    main()
