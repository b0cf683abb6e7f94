"""What a trained detector finds: six images of a split, as ``boxquery predict`` draws them, side by side: the picture of the README.

    boxquery train path/to/bccd --minutes 7 --clock cpu --pretrained none --out runs/bccd
    python benchmarks/predictions.py runs/bccd path/to/bccd docs/predictions.jpg

The images are spread evenly over the split, not chosen by how well they came out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from boxquery.cli import run as boxquery
from boxquery.data.open import open_data

COLUMNS, ROWS = 3, 2
WIDTH, HEIGHT, GAP = 400, 300, 6


def grid(run: str, data: str, split: str) -> Image.Image:
    """Detections at the model's own threshold."""
    images = open_data(data).splits[split]
    chosen = [str(images[i * len(images) // (COLUMNS * ROWS)].path) for i in range(COLUMNS * ROWS)]
    page = Image.new("RGB", (COLUMNS * (WIDTH + GAP) - GAP, ROWS * (HEIGHT + GAP) - GAP), "white")
    with TemporaryDirectory() as folder:
        if boxquery(["predict", run, *chosen, "--out", folder]):
            raise SystemExit(1)
        for i, path in enumerate(sorted(Path(folder, "pictures").iterdir())):
            drawn = Image.open(path).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
            page.paste(drawn, (i % COLUMNS * (WIDTH + GAP), i // COLUMNS * (HEIGHT + GAP)))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("data")
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    grid(given.run, given.data, given.split).save(given.out, quality=80)
    print(f"{given.out}: {given.out.stat().st_size / 1024:.0f} KB")


if __name__ == "__main__":
    main()
