"""Small data sets, described once and written in every format and layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

from boxquery.data.dataset import Data

NAMES = ["cat", "dog", "owl"]  # sorted, as VOC sorts them
SIZE = (64, 48)


@dataclass
class Thing:
    """An object: a name, corners x1, y1, x2, y2 in pixels (or what a fault puts there), crowd or difficult."""

    name: str
    box: list
    ignore: bool = False


@dataclass
class Picture:
    """An image file of ``size`` with its objects, in a split; ``stated`` is the size that the annotations claim."""

    stem: str
    split: str
    things: list[Thing]
    size: tuple[int, int] = SIZE
    stated: tuple[int, int] | None = SIZE
    data: bytes | None = None  # instead of an image
    missing: bool = False
    fields: dict = field(default_factory=dict)


def pictures(count: int = 24, splits: tuple[str, ...] = ("train", "train", "val"), seed: int = 0) -> list[Picture]:
    """Images with 0 to 4 objects of integer corners; at least one in every second image."""
    rng = np.random.default_rng(seed)
    result = []
    for i in range(count):
        things = []
        for _ in range(int(rng.integers(i % 2, 5))):
            x, y = rng.integers(0, SIZE[0] - 12), rng.integers(0, SIZE[1] - 12)
            things.append(Thing(NAMES[rng.integers(3)], [int(x), int(y), int(x + rng.integers(3, 12)), int(y + rng.integers(3, 12))]))
        result.append(Picture(f"p{i:03d}", splits[i % len(splits)], things))
    return result


def drawn(data: Data) -> list[Picture]:
    """The train and val scenes of a data set, named after their split; classes become the three of ``NAMES`` in turn."""
    result = []
    for name in ("train", "val"):
        for i, record in enumerate(data.splits[name]):
            things = [Thing(NAMES[c % 3], [float(v) for v in b]) for b, c in zip(record.boxes, record.labels, strict=True)]
            stream, size = BytesIO(), (record.width, record.height)
            data.splits[name].read(i).save(stream, "PNG")
            result.append(Picture(f"{name}{i:03d}", name, things, size=size, stated=size, data=stream.getvalue()))
    return result


def save_image(path: Path, picture: Picture) -> None:
    """The picture's file: noise, or ``data``, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.data is not None:
        path.write_bytes(picture.data)
    elif not picture.missing:
        rng = np.random.default_rng(len(picture.stem))
        width, height = picture.size
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)


def coco_content(images: list[Picture], ids: tuple[int, ...] = (3, 17, 90)) -> dict:
    """COCO annotations; category ids are sparse unless others are given. The image ids count from 100."""
    content: dict = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in zip(ids, NAMES, strict=True)]}
    number = dict(zip(NAMES, ids, strict=True))
    for i, picture in enumerate(images):
        entry = {"id": 100 + i, "file_name": f"{picture.stem}.png", **picture.fields}
        if picture.stated:
            entry |= {"width": picture.stated[0], "height": picture.stated[1]}
        content["images"].append(entry)
        for thing in picture.things:
            try:
                x1, y1, x2, y2 = thing.box
                bbox = [x1, y1, x2 - x1, y2 - y1]
            except (TypeError, ValueError):
                bbox = thing.box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": 100 + i,
                    "category_id": number.get(thing.name, 4),
                    "bbox": bbox,
                    "iscrowd": int(thing.ignore),
                }
            )
    return content


def write_coco(root: Path, images: list[Picture]) -> Path:
    """``annotations/instances_SPLIT2017.json`` and ``SPLIT2017/``."""
    for split in dict.fromkeys(picture.split for picture in images):
        group = [picture for picture in images if picture.split == split]
        for picture in group:
            save_image(root / f"{split}2017" / f"{picture.stem}.png", picture)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(coco_content(group)))
    return root


def write_coco_file(root: Path, images: list[Picture]) -> Path:
    """One JSON beside the images."""
    for picture in images:
        save_image(root / f"{picture.stem}.png", picture)
    (root / "data.json").write_text(json.dumps(coco_content(images)))
    return root


def write_roboflow(root: Path, images: list[Picture]) -> Path:
    """``train/_annotations.coco.json`` among the images, "val" as ``valid/``."""
    for split in dict.fromkeys(picture.split for picture in images):
        place = root / {"val": "valid"}.get(split, split)
        group = [picture for picture in images if picture.split == split]
        for picture in group:
            save_image(place / f"{picture.stem}.png", picture)
        (place / "_annotations.coco.json").write_text(json.dumps(coco_content(group)))
    return root


def voc_text(picture: Picture) -> str:
    """The XML of one image."""
    lines = [f"<annotation><filename>{escape(picture.fields.get('file_name', picture.stem + '.png'))}</filename>"]
    if picture.stated:
        lines.append(f"<size><width>{picture.stated[0]}</width><height>{picture.stated[1]}</height><depth>3</depth></size>")
    for thing in picture.things:
        name = thing.name if thing.name in NAMES else ""
        corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), thing.box, strict=False))
        lines.append(f"<object><name>{name}</name><difficult>{int(thing.ignore)}</difficult><bndbox>{corners}</bndbox></object>")
    return "\n".join([*lines, "</annotation>"])


def write_voc(root: Path, images: list[Picture]) -> Path:
    """``Annotations/``, ``JPEGImages/`` and ``ImageSets/Main/``."""
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for picture in images:
        save_image(root / "JPEGImages" / f"{picture.stem}.png", picture)
        (root / "Annotations" / f"{picture.stem}.xml").write_text(voc_text(picture))
        with (root / "ImageSets" / "Main" / f"{picture.split}.txt").open("a") as file:
            file.write(picture.stem + "\n")
    return root


def write_voc_lower_case(root: Path, images: list[Picture]) -> Path:
    """``annotations/`` and ``images/``, without lists."""
    (root / "annotations").mkdir(parents=True)
    for picture in images:
        save_image(root / "images" / f"{picture.stem}.png", picture)
        (root / "annotations" / f"{picture.stem}.xml").write_text(voc_text(picture))
    return root


def write_voc_flat(root: Path, images: list[Picture]) -> Path:
    """XML files beside the images."""
    for picture in images:
        save_image(root / f"{picture.stem}.png", picture)
        (root / f"{picture.stem}.xml").write_text(voc_text(picture))
    return root


def write_voc_folders(root: Path, images: list[Picture]) -> Path:
    """XML files beside the images, a folder for each split."""
    for split in dict.fromkeys(picture.split for picture in images):
        write_voc_flat(root / split, [picture for picture in images if picture.split == split])
    return root


def yolo_text(picture: Picture) -> str:
    """The lines of one image, nine decimals."""
    width, height = picture.size
    lines = []
    for thing in picture.things:
        label = NAMES.index(thing.name) if thing.name in NAMES else 7
        try:
            x1, y1, x2, y2 = thing.box
            numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
            lines.append(" ".join([str(label), *(f"{v:.9f}" for v in numbers)]))
        except (TypeError, ValueError):
            lines.append(" ".join(map(str, [label, *thing.box])))
    return "\n".join(lines) + "\n"


def write_yolo(root: Path, images: list[Picture]) -> Path:
    """``data.yaml``, ``images/SPLIT`` and ``labels/SPLIT``."""
    for picture in images:
        save_image(root / "images" / picture.split / f"{picture.stem}.png", picture)
        labels = root / "labels" / picture.split
        labels.mkdir(parents=True, exist_ok=True)
        (labels / f"{picture.stem}.txt").write_text(yolo_text(picture))
    splits = dict.fromkeys(picture.split for picture in images)
    (root / "data.yaml").write_text("\n".join([f"names: {NAMES}", f"nc: {len(NAMES)}", *(f"{s}: images/{s}" for s in splits)]))
    return root


def write_yolo_roboflow(root: Path, images: list[Picture]) -> Path:
    """``train/images``, ``train/labels`` and a ``data.yaml`` whose paths start one folder too high, as some exporters write it."""
    lines = [f"names: {NAMES}"]
    for split in dict.fromkeys(picture.split for picture in images):
        folder = {"val": "valid"}.get(split, split)
        lines.append(f"{split}: ../{folder}/images")
        (root / folder / "labels").mkdir(parents=True)
        for picture in (p for p in images if p.split == split):
            save_image(root / folder / "images" / f"{picture.stem}.png", picture)
            (root / folder / "labels" / f"{picture.stem}.txt").write_text(yolo_text(picture))
    (root / "data.yaml").write_text("\n".join(lines))
    return root


def write_yolo_classes(root: Path, images: list[Picture]) -> Path:
    """``classes.txt``, ``images/`` and ``labels/`` without splits."""
    for picture in images:
        save_image(root / "images" / f"{picture.stem}.png", picture)
        (root / "labels").mkdir(exist_ok=True)
        (root / "labels" / f"{picture.stem}.txt").write_text(yolo_text(picture))
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


Writer = Callable[[Path, list[Picture]], Path]
FORMATS: dict[str, Writer] = {"coco": write_coco, "voc": write_voc, "yolo": write_yolo}
LAYOUTS: list[tuple[Writer, str, bool]] = [  # writer, format, has splits
    (write_coco, "coco", True),
    (write_coco_file, "coco", False),
    (write_roboflow, "coco", True),
    (write_voc, "voc", True),
    (write_voc_lower_case, "voc", False),
    (write_voc_flat, "voc", False),
    (write_voc_folders, "voc", True),
    (write_yolo, "yolo", True),
    (write_yolo_roboflow, "yolo", True),
    (write_yolo_classes, "yolo", False),
]
