"""Time `explain` beside `predict` on one 800 x 1333 image, with the published architectures and random weights.

    python benchmarks/explain.py [--repetitions N] [--only NAME]

One CPU thread, float32, one process. Runs of the two alternate and are timed as CPU time of the process; medians are printed, and their
ratio. `explain` is `Detector.explain`: the trace of every layer, without the maps, which are drawn from it on request. The cost of one
query's maps is printed beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from PIL import Image

import boxquery as bq
from boxquery.api import Detector
from boxquery.data.preprocessing import Preprocessing

MODELS = ("detr", "deformable-detr", "dab-detr")
CLASSES = 91


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def time_model(name: str, image: Image.Image, repetitions: int) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    detector = Detector(bq.create_model(name, classes=CLASSES), [str(i) for i in range(CLASSES)], list(range(CLASSES)), Preprocessing(800))
    explanation = detector.explain(image)
    detector.predict(image)
    times = [(seconds(lambda: detector.predict(image)), seconds(lambda: detector.explain(image))) for _ in range(repetitions)]
    predict, explain = (statistics.median(each) for each in zip(*times, strict=True))
    maps = seconds(lambda: [explanation.heatmap(0, layer) for layer in range(len(explanation.boxes))])
    origin = seconds(lambda: explanation.origin(0))
    return f"| {name} | {predict:.2f} | {explain:.2f} | {explain / predict:.2f} | {maps:.2f} | {origin:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each (default: %(default)s)")
    parser.add_argument("--only", choices=MODELS, help="one model (default: all)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 255, (800, 1333, 3), dtype=np.uint8)
    print("| model (paper) | predict, s | explain, s | ratio | a query's maps, s | its origin, s |\n|---|---|---|---|---|---|")
    for name in [args.only] if args.only else MODELS:
        print(time_model(name, Image.fromarray(pixels), args.repetitions), flush=True)


if __name__ == "__main__":
    main()
