"""What tiles find of small objects: large scenes, looked at as a whole and in tiles by a model trained on small ones.

    python benchmarks/tiles.py --out runs/tiles                        # trains for two CPU minutes first, unless the folder holds a run
    python benchmarks/tiles.py --out src/boxquery/weights/shapes --tiles 160 --overlaps 0.2,0.4        # the model that comes along

A scene has 1,280 pixels and the objects of eight built-in scenes of 160 pixels at their own size, 10 to 96 pixels, strewn over it: seen
whole by the model's 160 pixels, the largest are 12. Beside ours stand class-wise NMS of the boxes of all views, and the merging that most
libraries have: NMS by the intersection over the smaller box (IoS), both at 0.5.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image

import boxquery as bq
from boxquery.data.dataset import Data, Record, Split
from boxquery.data.shapes import shapes_data
from boxquery.data.shapes.paint import paint
from boxquery.data.shapes.silhouettes import silhouette
from boxquery.evaluation.metrics import evaluate
from boxquery.runtime import predictor
from boxquery.runtime.tiles import merge_views

SIDE, CELL, GROUPS = 1280, 160, 8


def large_scenes(number: int) -> Data:
    """Scenes of 1,280 pixels with the objects of eight validation scenes each, every group in a cell of its own, moved by half a cell."""
    small = shapes_data(size=CELL)
    scenes = small.splits["test"].records
    records, seen = [], {}
    for index in range(number):
        random = np.random.default_rng([7, index])
        cells = random.permutation((SIDE // CELL - 1) ** 2)[:GROUPS]
        things = []
        for group, cell in enumerate(cells.tolist()):
            corner = np.array(divmod(cell, SIDE // CELL - 1)) * CELL + CELL // 2
            things += [
                (thing.label, thing.angle, thing.box + np.tile(corner, 2)) for thing in scenes.layout(GROUPS * index + group % GROUPS)
            ]
        boxes = np.stack([box for _, _, box in things]).astype(np.float32)
        labels = np.array([label for label, _, _ in things])
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        records.append(Record(f"large/{index}", None, SIDE, SIDE, boxes, labels, np.zeros(len(boxes), bool), areas))
        seen[records[-1].id] = [(silhouette(label), angle, box) for label, angle, box in things]

    def draw(record: Record) -> Image.Image:
        return paint(np.random.default_rng([8, int(str(record.id).rpartition("/")[2])]), SIDE, seen[record.id], rough=False)

    return Data("large scenes", "shapes", small.names, small.ids, {"val": Split("val", records, draw)}, [])


def plain_merge(views, found, *, smaller: bool):
    """NMS per class over the boxes of all views, at an IoU (or IoS) of 0.5."""
    boxes = np.concatenate([each.boxes + np.tile(view[:2], 2) for view, each in zip(views, found, strict=True)]).astype(np.float32)
    scores, labels = (np.concatenate([getattr(each, name) for each in found]) for name in ("scores", "labels"))
    order = np.argsort(-scores, kind="stable")
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    free, kept = np.ones(len(boxes), bool), []
    for i in order:
        if free[i]:
            kept.append(i)
            shared = (np.minimum(boxes[i, 2:], boxes[:, 2:]) - np.maximum(boxes[i, :2], boxes[:, :2])).clip(0).prod(1)
            whole = np.minimum(area[i], area) if smaller else area[i] + area - shared
            free &= (labels != labels[i]) | (shared <= 0.5 * whole)
    return boxes[kept], scores[kept], labels[kept]


OTHERS = {"NMS": partial(plain_merge, smaller=False), "NMS by IoS": partial(plain_merge, smaller=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--tiles", default="160,320")
    parser.add_argument("--overlaps", default="0.2")
    parser.add_argument("--scenes", type=int, default=10)
    given = parser.parse_args()
    if not given.out.exists():
        bq.train(
            "shapes", model="deformable-detr", preset="tiny", minutes=given.minutes, clock="cpu", pretrained=False, seed=0, out=given.out
        )
    detector, data = bq.load(given.out), large_scenes(given.scenes)
    records = data.splits["val"]
    sides = np.concatenate([np.sqrt(record.areas) for record in records])
    print(f"{len(records)} scenes of {SIDE} pixels, {len(sides)} objects, median side {np.median(sides):.0f} pixels")
    print("| looked at | merged by | AP | AP50 | APs | APm | CPU seconds per image |\n|---|---|--:|--:|--:|--:|--:|")

    def show(what: str, how: str, found: dict, seconds: float | None = None) -> None:
        figures = " | ".join(f"{found[name] or 0:.3f}" for name in ("AP", "AP50", "APs", "APm"))
        print(f"| {what} | {how} | {figures} | {'' if seconds is None else f'{seconds:.2f}'} |", flush=True)

    def measure(what: str, **settings) -> None:
        seen = []

        def merge(views, found):
            seen.append((views, found))
            return merge_views(views, found)

        started = time.process_time()
        with mock.patch.object(predictor, "merge_views", merge):
            found = detector.evaluate(data, split="val", batch_size=8, **settings)
        show(what, "ours" if seen else "", found, (time.process_time() - started) / len(records))
        for how, other in OTHERS.items() if seen else ():
            merged = {i: other(*each) for i, each in enumerate(seen)}
            show(what, how, evaluate(records, merged, detector.classes, detector.ids))

    own = detector.image_size
    for size in (own, 4 * own):
        detector.image_size = size
        measure(f"the whole image at {size}")
    detector.image_size = own
    for tiles in map(int, given.tiles.split(",")):
        for overlap in map(float, given.overlaps.split(",")):
            measure(f"and tiles of {tiles}, overlap {overlap:g}", tiles=tiles, overlap=overlap)


if __name__ == "__main__":
    main()
