"""Small data sets of the built-in scenes, written in the three layouts, into which faults are planted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from boxquery.data.dataset import Data, Record
from boxquery.data.shapes import shapes_data
from tests.data.writers import FORMATS, Picture, drawn

SIDE = 96


def scenes(train: int = 40, val: int = 20, seed: int = 0) -> Data:
    return shapes_data(train=train, val=val, test=1, size=SIDE, seed=seed, crowding=0.0, max_objects=5)


def pictures(train: int = 40, val: int = 20, seed: int = 0) -> list[Picture]:
    return drawn(scenes(train, val, seed))


def write(folder: Path, layout: str, images: list[Picture]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    return str(FORMATS[layout](folder, images))


def changed(data: Data, split: str, change) -> Data:
    """The data with every record of a split changed."""
    new: list[Record] = [change(record) for record in data.splits[split]]
    return replace(data, splits={**data.splits, split: replace(data.splits[split], records=new)})


def kept(record: Record, keep: np.ndarray) -> Record:
    return replace(record, boxes=record.boxes[keep], labels=record.labels[keep], ignore=record.ignore[keep], areas=record.areas[keep])
