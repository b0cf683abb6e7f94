"""Photographs that no choice of this library was made on: trees from the air, of the package deepforest (MIT), as a data set.

    python benchmarks/trees.py runs/trees                                  # downloads 20 MB by pip
    python benchmarks/peer.py trees=runs/trees --scenes --seconds 500 --seeds 0

The package has two aerial photographs of Yellowstone in which every tree has its box. Each is cut into equal tiles of about 320 pixels,
and a tree belongs to every tile that has at least half of its box: the larger photograph is train, the other one, of another place, val.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from boxquery.data.dataset import Record, Split
from boxquery.data.open import open_data
from coco import write_coco

PACKAGE, INSIDE = "deepforest==2.1.0", "deepforest/data"
PHOTOGRAPHS = {"train": "2019_YELL_2_528000_4978000_image_crop2", "val": "2019_YELL_2_541000_4977000_image_crop"}
TILE, LEAST = 320, 0.5


def download(folder: Path) -> None:
    """The photographs and their boxes, as ``folder``/train and ``folder``/val in Pascal VOC's layout."""
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        for part, name in PHOTOGRAPHS.items():
            (folder / part).mkdir()
            for ending in ("png", "xml"):
                (folder / part / f"{name}.{ending}").write_bytes(wheel.read(f"{INSIDE}/{name}.{ending}"))


def tiles(split: Split, out: Path) -> list[Record]:
    """Cut every image; the tiles are files in ``out``."""
    out.mkdir(parents=True)
    found = []
    for place, record in enumerate(split):
        image = split.read(place)
        across, down = (round(side / TILE) for side in (record.width, record.height))
        xs, ys = (np.linspace(0, side, n + 1).round().astype(int) for side, n in ((record.width, across), (record.height, down)))
        for row, column in np.ndindex(down, across):
            left, top, right, bottom = (int(edge) for edge in (xs[column], ys[row], xs[column + 1], ys[row + 1]))
            path = out / f"{place}-{row}-{column}.png"
            image.crop((left, top, right, bottom)).save(path)
            clipped = np.clip(record.boxes, (left, top, left, top), (right, bottom, right, bottom))
            areas = (clipped[:, 2:] - clipped[:, :2]).prod(1)
            kept = areas >= LEAST * (record.boxes[:, 2:] - record.boxes[:, :2]).prod(1)
            found.append(
                replace(record, path=path, width=right - left, height=bottom - top, boxes=clipped[kept] - (left, top, left, top),
                        labels=record.labels[kept], ignore=record.ignore[kept], areas=areas[kept])
            )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        download(Path(folder))
        data = open_data(folder)
        for part in PHOTOGRAPHS:
            print(write_coco(data.names, tiles(data.split(part), out / part), out / part))


if __name__ == "__main__":
    main()
