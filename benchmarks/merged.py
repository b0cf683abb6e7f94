"""One data set of the training images of several, in COCO's layout, to measure on more images than any of them has.

    python benchmarks/merged.py runs/merged path/to/raccoon path/to/bccd path/to/cards
    python benchmarks/peer.py merged=runs/merged --tune --scenes --only auto --seconds 1250 --preset tiny --seeds 0 --results RESULTS.json

Its classes are those of all, each named by its set and itself. Images are copied.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from boxquery.data.open import open_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("sets", nargs="+", type=Path)
    args = parser.parse_args()
    pictures = args.out / "train"
    pictures.mkdir(parents=True)
    names: list[str] = []
    images, annotations = [], []
    for path in args.sets:
        data, first = open_data(str(path)), len(names) + 1
        names += [f"{path.name} {name}" for name in data.names]
        for record in data.training_split():
            assert record.path is not None
            number = len(images) + 1
            file = f"{number:06}{record.path.suffix.lower()}"
            shutil.copyfile(record.path, pictures / file)
            images.append({"id": number, "file_name": file, "width": record.width, "height": record.height})
            for box, label, ignored in zip(record.boxes.tolist(), record.labels.tolist(), record.ignore.tolist(), strict=True):
                left, top, right, bottom = box
                size = [right - left, bottom - top]
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "category_id": first + label, "bbox": [left, top, *size],
                     "area": size[0] * size[1], "iscrowd": int(ignored)}
                )  # fmt: skip
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    found = {"images": images, "annotations": annotations, "categories": categories}
    (pictures / "_annotations.coco.json").write_text(json.dumps(found))
    print(f"{args.out}: {len(images)} images, {len(annotations)} objects of {len(names)} classes")


if __name__ == "__main__":
    main()
