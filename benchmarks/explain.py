"""`explain` beside `predict`: seconds on one 800 x 1333 image with the published architectures, random weights.

    python benchmarks/explain.py [--repetitions N] [--only NAME]

One thread of the CPU, float32, in one process; runs of the two are interleaved and timed as CPU time of the process; what is printed are
medians, and the ratio of the medians. `explain` is what `Detector.explain` does: the trace of every layer, without the maps, which are
drawn from it when they are asked for. What a map of one query costs stands beside it.
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


def measure(name: str, image: Image.Image, repetitions: int) -> str:
    """One row of the table."""
    torch.manual_seed(0)
    detector = Detector(bq.create_model(name, classes=CLASSES), [str(i) for i in range(CLASSES)], list(range(CLASSES)), Preprocessing(800))
    story = detector.explain(image)
    detector.predict(image)
    times = [(seconds(lambda: detector.predict(image)), seconds(lambda: detector.explain(image))) for _ in range(repetitions)]
    predicted, explained = (statistics.median(each) for each in zip(*times, strict=True))
    maps = seconds(lambda: [story.heatmap(0, layer) for layer in range(len(story.boxes))])
    origin = seconds(lambda: story.origin(0))
    return f"| {name} | {predicted:.2f} | {explained:.2f} | {explained / predicted:.2f} | {maps:.2f} | {origin:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", choices=MODELS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    pixels = np.random.default_rng(0).integers(0, 255, (800, 1333, 3), dtype=np.uint8)
    print("| model (paper) | predict, s | explain, s | ratio | a query's maps, s | its origin, s |\n|---|---|---|---|---|---|")
    for name in [asked.only] if asked.only else MODELS:
        print(measure(name, Image.fromarray(pixels), asked.repetitions), flush=True)


if __name__ == "__main__":
    main()
