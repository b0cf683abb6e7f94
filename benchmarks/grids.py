"""Four training images in one: a data set whose objects are half as large and four times as many, to choose image sizes on.

    python benchmarks/grids.py runs/cards2x2 path/to/cards
    python benchmarks/peer.py cards2x2=runs/cards2x2 --scenes --only auto --seconds 400 --seeds 0 --image-size 256 --results RESULTS.json

Every image is stretched to a square of 256 pixels, and four of them make one. Its val is of the training images that ``peer.py --tune``
holds out: the val split is not opened.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from boxquery.data.dataset import Record, Split
from boxquery.data.open import open_data
from coco import write_coco
from peer import splits

CELL = 256


def grids(split: Split, folder: Path) -> list[Record]:
    """Grids of four images each, as files in ``folder``; up to three images are left over."""
    folder.mkdir(parents=True)
    found = []
    for start in range(0, len(split) - 3, 4):
        canvas, four = Image.new("RGB", (2 * CELL, 2 * CELL)), [split[start + k] for k in range(4)]
        boxes = []
        for k, record in enumerate(four):
            corner = (k % 2 * CELL, k // 2 * CELL)
            canvas.paste(split.read(start + k).convert("RGB").resize((CELL, CELL)), corner)
            boxes.append(record.boxes * CELL / np.array([record.width, record.height] * 2) + np.array(corner * 2))
        path, every = folder / f"{start // 4:04}.png", np.concatenate(boxes)
        canvas.save(path)
        joined = {name: np.concatenate([getattr(record, name) for record in four]) for name in ("labels", "ignore")}
        areas = (every[:, 2:] - every[:, :2]).prod(1)
        found.append(replace(four[0], path=path, width=2 * CELL, height=2 * CELL, boxes=every, areas=areas, **joined))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("set")
    args = parser.parse_args()
    data = open_data(args.set)
    for part, split in zip(("train", "val"), splits(data, tune=True), strict=True):
        print(write_coco(data.names, grids(split, args.out / part), args.out / part))


if __name__ == "__main__":
    main()
