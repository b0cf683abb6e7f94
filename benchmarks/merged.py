"""One data set of the training images of several, in COCO's layout, to measure on more images than any of them has.

    python benchmarks/merged.py runs/merged path/to/raccoon path/to/bccd path/to/cards
    python benchmarks/peer.py merged=runs/merged --tune --scenes --only auto --seconds 1250 --preset tiny --seeds 0 --results RESULTS.json

Its classes are those of all, each named by its set and itself. Images are copied.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

from boxquery.data.dataset import Record
from boxquery.data.open import open_data
from coco import write_coco


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("sets", nargs="+", type=Path)
    args = parser.parse_args()
    pictures = args.out / "train"
    pictures.mkdir(parents=True)
    names: list[str] = []
    records: list[Record] = []
    for path in args.sets:
        data, first = open_data(str(path)), len(names)
        names += [f"{path.name} {name}" for name in data.names]
        for record in data.training_split():
            assert record.path is not None
            copy = pictures / f"{len(records) + 1:06}{record.path.suffix.lower()}"
            shutil.copyfile(record.path, copy)
            records.append(replace(record, path=copy, labels=record.labels + first))
    print(write_coco(names, records, pictures))


if __name__ == "__main__":
    main()
