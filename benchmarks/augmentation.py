"""What augmentation costs: CPU milliseconds per training image, for every level and every part alone.

    python benchmarks/augmentation.py DATA [--image-size 320] [--images 200]

One thread, images decoded beforehand (as training keeps them where they fit into memory), from pixels to the model's input: mixing,
resizing, colour, normalisation. Every setting is timed on the same images in turn, three rounds; the median of the rounds is printed,
and the share of it that is above "none", since resizing and normalising are done in any case.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from boxquery.augment import LEVELS, Augment
from boxquery.data.loading import DetectionDataset, Item
from boxquery.data.open import open_data
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.transforms import TrainTransform
from boxquery.models.recipes import SMALL_DATA

STILL = {"scales": (1.0,), "crop": 0.0, "flip": 0.0}
PARTS = {
    "flip=1": Augment(**STILL | {"flip": 1.0}),
    "crop=1": Augment(**STILL | {"crop": 1.0}),
    "colour=0.3": Augment(**STILL, colour=0.3),
    "zoom_out=1": Augment(**STILL, zoom_out=1.0),
    "rotation=10": Augment(**STILL, rotation=10.0),
    "mosaic=1": Augment(**STILL, mosaic=1.0),
    "mixup=1": Augment(**STILL, mixup=1.0),
}
ROUNDS = 3


def milliseconds(dataset: DetectionDataset, images: int, epoch: int) -> float:
    """CPU milliseconds per image."""
    started = time.process_time()
    for index in range(images):
        _ = dataset[Item(epoch, index % len(dataset))]
    return (time.process_time() - started) / images * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--images", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    split = open_data(asked.data).splits["train"]
    settings = {
        "none": LEVELS["none"],
        "light": LEVELS["light"],
        "default (small)": SMALL_DATA.augment,
        "strong": LEVELS["strong"],
        **PARTS,
    }
    first = DetectionDataset(split, TrainTransform(Preprocessing(asked.image_size)), cache=True)
    sets = {}
    for name, augment in settings.items():
        sets[name] = DetectionDataset(split, TrainTransform(Preprocessing(asked.image_size), augment))
        sets[name].cache = first.cache
    for index in range(len(split)):
        _ = first[index]
    times: dict[str, list[float]] = {name: [] for name in sets}
    for epoch in range(ROUNDS):
        for name, dataset in sets.items():
            times[name].append(milliseconds(dataset, asked.images, epoch))
    least = statistics.median(times["none"])
    print("| augmentation | ms per image | above none |\n|---|---|---|")
    for name, values in times.items():
        own = statistics.median(values)
        print(f"| `{name}` | {own:.1f} | {own - least:.1f} |")


if __name__ == "__main__":
    main()
