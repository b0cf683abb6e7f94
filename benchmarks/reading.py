"""Training images per second and core: read, augmented and normalised, beside torchvision's transforms on the same files.

    python benchmarks/reading.py [--images 24] [--image-size 160] [--sides 640,1600,4000]

JPEG files of noise over gradients with those long sides (3 : 2, quality 90), five boxes each. Ours is ``DetectionDataset`` with the
augmentation of DETR (flip, crop, several sizes): the first epoch decodes, the second has what the cache keeps. torchvision's is its v2
transforms as its reference for detection has them (``RandomHorizontalFlip``, ``RandomShortestSize``, float, ``Normalize``) on files that
Pillow opens. Both in one process and thread, in CPU time, taking turns.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from boxquery.data.dataset import Record, Split
from boxquery.data.images import read_image
from boxquery.data.loading import DetectionDataset
from boxquery.data.preprocessing import Preprocessing
from boxquery.data.transforms import TrainTransform


def write_images(folder: Path, count: int, side: int) -> Split:
    rng, records = np.random.default_rng(0), []
    height, width = side * 2 // 3, side
    for i in range(count):
        coarse = rng.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        path = folder / f"{side}-{i}.jpg"
        Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        corners = np.tile(rng.uniform(0, 0.5, (5, 2)), 2) + np.array([0, 0, 0.3, 0.3])
        boxes = (corners * [width, height, width, height]).astype(np.float32)
        records.append(Record(i, path, width, height, boxes, np.zeros(5, np.int64), np.zeros(5, bool), np.ones(5, np.float32)))
    return Split("train", records, lambda record: read_image(record.path or ""))


def torchvisions(split: Split, size: int) -> Callable[[int], object]:
    chain = v2.Compose([
        v2.ToImage(), v2.RandomHorizontalFlip(), v2.RandomShortestSize([size * n // 800 for n in range(480, 801, 32)], size * 1333 // 800),
        v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), v2.SanitizeBoundingBoxes(),
    ])  # fmt: skip

    def one(index: int) -> object:
        record = split[index]
        image = Image.open(record.path).convert("RGB")  # pyright: ignore[reportArgumentType]
        boxes = tv_tensors.BoundingBoxes(record.boxes, format="XYXY", canvas_size=(record.height, record.width))  # pyright: ignore
        return chain(image, {"boxes": boxes, "labels": torch.from_numpy(record.labels)})

    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=24, help="(default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=160, help="(default: %(default)s)")
    parser.add_argument("--sides", default="640,1600,4000", help="(default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for side in map(int, args.sides.split(",")):
            split = write_images(Path(folder), args.images, side)
            dataset = DetectionDataset(split, TrainTransform(Preprocessing(args.image_size)), cache=True)
            theirs, spent = torchvisions(split, args.image_size), {"first epoch": 0.0, "cached": 0.0, "torchvision": 0.0}
            runs = {"first epoch": lambda i, own=dataset: own[0, i], "cached": lambda i, own=dataset: own[1, i], "torchvision": theirs}
            theirs(0)  # what is loaded once
            for i in range(len(split)):
                for name, run in runs.items():
                    start = time.process_time()
                    run(i)
                    spent[name] += time.process_time() - start
            print(f"{side} px:", ", ".join(f"{name} {len(split) / value:.0f}/s" for name, value in spent.items()), flush=True)


if __name__ == "__main__":
    main()
