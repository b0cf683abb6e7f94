"""What a trained model finds at image sizes that are no multiples of its strides, with published and with exact ``valid_ratios``.

    python benchmarks/image_sizes.py runs/mine path/to/data --sizes 256 258 260 262 264 272

``path/to/data`` has a val split. The weights are the same; only where cells and boxes lie on the image differs (``boxquery.parts.memory``).
Prints AP of each size, and by how many pixels of the input boxes are too far right of their objects, in the left and in the right third of
the image: of detections with a score above .3 and their nearest object with an IoU above .4, the mean.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

import boxquery as bq
from boxquery.data.open import open_data
from boxquery.evaluation.metrics import evaluate
from boxquery.evaluation.predictions import predict_split
from boxquery.models import create_model

SCORE, IOU, THIRD = 0.3, 0.4, 1 / 3


def with_ratios(detector: bq.Detector, kind: str) -> bq.Detector:
    """The same weights in a model with these ``valid_ratios``."""
    name, preset, options = (detector.model.config[key] for key in ("name", "preset", "options"))
    model = create_model(name, classes=len(detector.classes), preset=preset, **{**options, "valid_ratios": kind})
    model.load_state_dict(detector.model.state_dict())
    return bq.Detector(model.eval(), detector.classes, detector.ids, detector.preprocessing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("--sizes", nargs="+", type=int, default=[256, 258, 260, 262, 264, 272], help="short sides (default: %(default)s)")
    args = parser.parse_args()
    data = open_data(args.data)
    val, trained = data.split("val"), bq.load(args.run)
    print("| px | valid_ratios | AP / AP50 / AP75 | too far right: left third, right third (px) |\n|---|---|---|---|")
    for size in args.sizes:
        for kind in ("paper", "exact"):
            detector = with_ratios(trained, kind)
            detector = bq.Detector(detector.model, detector.classes, detector.ids, replace(detector.preprocessing, image_size=size))
            found = predict_split(detector, val, batch_size=4)
            scores = evaluate(val, found, data.names, data.ids)
            ap = " / ".join(f"{scores[key]:.3f}" for key in ("AP", "AP50", "AP75"))
            moved = [m for position, record in enumerate(val) for m in _moved(record, found[position], size)]
            thirds = [np.mean([m for x, m in moved if low <= x < low + THIRD] or np.nan) for low in (0, 1 - THIRD)]
            print(f"| {size} | {kind} | {ap} | {thirds[0]:+.1f}, {thirds[1]:+.1f} |", flush=True)


def _moved(record, found, size: int) -> list[tuple[float, float]]:
    """Of each good detection its object's centre as a share of the image's width, and by how many pixels of the input its own is right."""
    boxes = found[0][found[1] > SCORE]
    if not (len(boxes) and len(record.boxes)):
        return []
    low, high = np.maximum(boxes[:, None, :2], record.boxes[:, :2]), np.minimum(boxes[:, None, 2:], record.boxes[:, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    areas = [(b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, record.boxes)]
    iou = shared / (areas[0][:, None] + areas[1] - shared)
    nearest, scale = iou.argmax(1), size / min(record.width, record.height)
    centres, objects = (b[:, [0, 2]].mean(1) for b in (boxes, record.boxes[nearest]))
    return [(o / record.width, (c - o) * scale) for c, o, good in zip(centres, objects, iou.max(1) > IOU, strict=True) if good]


if __name__ == "__main__":
    main()
